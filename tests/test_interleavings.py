"""What happens at the worst moment: a stop, a close, a drain at each single step of something else."""

from __future__ import annotations

import collections
import errno
import logging
import os
import socket
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
from support.background import Background
from support.log_watch import ExpectLog
from support.stepping import steps
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.concurrency.children import Child
from sockserve.core.active_requests import LiveRequest
from sockserve.core.lifecycle import Lifecycle
from sockserve.core.loop import Loop
from sockserve.core.request_life import take
from sockserve.core.serving import events_of, serving_of, table_of
from sockserve.net.accept_errors import Verdict
from sockserve.testing import call_within

LOOPBACK = ("127.0.0.1", 0)


class Idle(sockserve.BaseRequestHandler):
    """Answers nothing."""


class Tally(sockserve.Observer):
    """Counts without a lock, so that it may be called at any step."""

    def __init__(self) -> None:
        self.events: collections.Counter[str] = collections.Counter()

    def on_accept(self, server: Any, request: Any) -> None:
        """Count."""
        self.events["accept"] += 1

    def on_shutdown(self, server: Any, request: Any) -> None:
        """Count."""
        self.events["shutdown"] += 1


# the start and the end of a loop


def test_a_stop_from_another_thread_is_heard_at_any_step() -> None:
    """Of the loop's start, its first wait and its end; and ``shutdown()`` always returns."""
    for step in steps("line"):
        with sockserve.TCPServer(LOOPBACK, Idle) as server:
            stops: list[Background] = []

            def stop() -> None:
                stops.append(Background(server.shutdown))  # noqa: B023
                stops[-1].settle()  # noqa: B023

            serving = Background(lambda: step.run(server.serve_forever, stop))  # noqa: B023
            serving.settle()
            server.shutdown()
            serving.end(step)
            for each in stops:
                each.end(step)
            assert serving.error is None, step


def test_a_stop_from_a_signal_handler_is_heard_at_any_step() -> None:
    """There ``shutdown()`` cannot wait, and does not."""
    for step in steps("line"):
        with sockserve.TCPServer(LOOPBACK, Idle) as server:
            serving = Background(lambda: step.run(server.serve_forever, server.shutdown))  # noqa: B023
            wait_until(lambda: step.reached or serving.is_asleep())  # noqa: B023
            if not step.reached:
                server.shutdown()
            serving.end(step)
            assert serving.error is None, step


@pytest.mark.parametrize("stop", [lambda each: each.stop(0), lambda each: setattr(each, "stop_requested", True)])
def test_no_stop_falls_between_two_looks(stop: Callable[[Lifecycle], object]) -> None:
    """A loop that begins at any instruction of ``shutdown()``, or of setting the flag, sees that it is to end."""
    for step in steps():
        lifecycle, stay = Lifecycle(), types.SimpleNamespace(stop_requested=False, loop=Loop())
        with stay.loop:
            step.run(lambda: stop(lifecycle), lambda: lifecycle.begin(stay))  # type: ignore[arg-type]  # noqa: B023
            assert stay.stop_requested or not step.reached, step


def test_a_close_at_any_step_of_a_loop_ends_it(expect_log: ExpectLog) -> None:
    """With no other error than that the server is closed, if it was before the loop began."""
    expect_log(logging.WARNING, "came before shutdown")
    for step in steps("line"):
        server = sockserve.TCPServer(LOOPBACK, Idle)
        serving = Background(lambda: step.run(server.serve_forever, lambda: call_within(LIMIT, server.server_close)))  # noqa: B023
        serving.settle()
        if not step.reached:
            server.shutdown()
        serving.end(step)
        assert serving.error in (None, sockserve.ServerClosedError), step
        server.server_close()


def test_a_loop_that_begins_at_any_step_of_a_close_ends(expect_log: ExpectLog) -> None:
    """It may be too late for it to begin, but not too early for it to be told."""
    expect_log(logging.WARNING, "came before shutdown", at_least=0)
    for step in steps():
        server = sockserve.TCPServer(LOOPBACK, Idle)
        serving: list[Background] = []

        def serve() -> None:
            serving.append(Background(server.serve_forever))  # noqa: B023
            serving[-1].settle()  # noqa: B023

        step.run(server.server_close, serve)
        for each in serving:
            each.end(step)
            assert each.error in (None, sockserve.ServerClosedError), step


# pauses


@pytest.mark.parametrize("timeout", [0.0, None], ids=["back off", "none"])
def test_no_pause_is_missed(expect_log: ExpectLog, timeout: float | None) -> None:
    """A suspension at any step of the loop's preparations to wait: whoever waits for the pause is told of it."""
    expect_log(logging.WARNING, "accepting pauses", at_least=0)
    for step in steps():
        with sockserve.TCPServer(LOOPBACK, Idle) as server, Loop() as loop:
            server.attach(loop)
            loop.wake()
            loop._turn()
            # As seen by others: the loop runs, in a thread that is not theirs.
            loop.thread = -1
            acceptor: Any = serving_of(server).lifecycle.acceptor
            if timeout is not None:
                acceptor.failed(OSError(errno.EMFILE, os.strerror(errno.EMFILE)), Verdict.BACK_OFF)
            changes: list[Any] = []

            def suspend() -> None:
                server.suspend()
                change = table_of(server).next_change()
                if not serving_of(server).lifecycle.has_paused():
                    changes.append(change)  # noqa: B023

            step.run(acceptor.before_wait, suspend)
            acceptor.before_wait()
            for change in changes:
                assert change.is_set(), step
            loop.thread = None


def test_a_pools_listener_is_watched_whatever_a_worker_finds_meanwhile() -> None:
    """A worker that meets a short suspension at any step of the coordinator's watch leaves it whole, and once."""
    for step in steps():
        with Pool(LOOPBACK, Idle) as server, Loop() as loop:
            server.attach(loop)
            acceptor: Any = serving_of(server).lifecycle.acceptor
            workers: list[Background] = []

            def find_pause() -> None:
                server.suspend()
                acceptor.may_take()  # noqa: B023
                server.resume()

            def interfere() -> None:
                workers.append(Background(find_pause))  # noqa: B023
                workers[-1].settle()  # noqa: B023

            step.run(acceptor.before_wait, interfere)
            for worker in workers:
                worker.end(step)
            acceptor.before_wait()
            assert acceptor.watching, step


# observers


@pytest.mark.parametrize("verb", ["add_observer", "remove_observer"])
def test_observers_may_come_and_go_in_any_thread(verb: str) -> None:
    """Another thread adds one at any step of the exchange, and both are done."""
    for step in steps():
        with sockserve.TCPServer(LOOPBACK, Idle) as server:
            first, ours, theirs = sockserve.Observer(), sockserve.Observer(), sockserve.Observer()
            server.observers = (first,) if verb == "add_observer" else (first, ours)
            others: list[Background] = []

            def interfere() -> None:
                others.append(Background(lambda: server.add_observer(theirs)))  # noqa: B023
                others[-1].settle()  # noqa: B023

            step.run(lambda: getattr(server, verb)(ours), interfere)  # noqa: B023
            for other in others:
                other.end(step)
            expected = {first, ours} if verb == "add_observer" else {first}
            assert set(server.observers) == expected | ({theirs} if others else set()), step


# a request's life


class Pool(sockserve.ThreadPoolTCPServer):
    """A single worker."""

    max_workers = 1


class Kept(sockserve.ThreadingMixIn, sockserve.TCPServer):
    """Leaves it to somebody else to serve its requests."""

    def process_request(self, request: Any, client_address: Any) -> None:
        """Do nothing with it here."""


def test_an_executor_that_is_quicker_than_the_loop_counts_once() -> None:
    """Another thread serves the request whole, at any step of the loop's end of it."""
    for step in steps():
        with Kept(LOOPBACK, Idle) as server:
            tally = Tally()
            server.observers = (tally,)
            ours, peer = socket.socketpair()
            with ours, peer:
                workers: list[Background] = []

                def serve() -> None:
                    # From the moment when process_request() could have handed it over.
                    if any(each.state in ("verify", "kept") for each in table_of(server).all()):
                        workers.append(Background(lambda: server.process_request_thread(ours, "peer")))  # noqa: B023
                        workers[-1].settle()  # noqa: B023

                live = LiveRequest(table_of(server), events_of(server), ours, "peer")
                step.run(lambda: take(server, live), serve)  # noqa: B023
                for worker in workers:
                    worker.end(step)
                    assert worker.error is None, step
                if not workers:
                    server.process_request_thread(ours, "peer")
                assert tally.events == {"accept": 1, "shutdown": 1}, step
                assert server.active_requests == (), step


def test_a_kept_request_is_in_the_table_while_it_is_taken() -> None:
    """Whoever lists the requests in progress sees one that a worker takes from its subclass at any step of that."""
    for step in steps():
        with Kept(LOOPBACK, Idle) as server:
            table = table_of(server)
            ours, peer = socket.socketpair()
            with ours, peer:
                live = LiveRequest(table, events_of(server), ours, "peer")
                take(server, live)
                assert live.state == "kept"
                assert step.run(table.all, lambda: table.take(ours)) == [live], step  # noqa: B023
                table.discard(live)


def test_whoever_waits_for_idleness_misses_no_end() -> None:
    """A request that ends at any step of ``wait_idle()`` ends the wait."""
    for step in steps():
        with sockserve.TCPServer(LOOPBACK, Idle) as server:
            table = table_of(server)
            live = table.add(object(), "peer")
            waiting = Background(lambda: step.run(server.wait_idle, lambda: table.discard(live)))  # noqa: B023
            waiting.settle()
            table.discard(live)
            waiting.end(step)


@pytest.mark.parametrize("verb", ["drain", "wait_idle", "shutdown", "suspend"])
def test_a_signal_handler_may_use_any_verb_at_any_step_of_a_request(verb: str) -> None:
    """It waits neither for the request that it interrupted nor for a lock, and does that one no harm."""

    class Answer(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"answer")

    counters = sockserve.Counters()
    accepted = 0
    for step in steps("line"):
        with sockserve.TCPServer(LOOPBACK, Answer) as server:
            server.observers = (counters,)
            with socket.create_connection(server.server_address, LIMIT) as client:
                results: list[Any] = []
                serving = Background(
                    lambda: step.run(server.handle_request, lambda: results.append(getattr(server, verb)()))  # noqa: B023
                )
                serving.end(step)
                accepted += 1
                assert serving.error is None, step
                assert client.recv(100) == b"answer", step
                if verb == "drain":
                    assert results in ([], [(0, 0)]), step
                elif verb == "wait_idle":
                    assert results in ([], [True]), step
    assert counters.accepted == counters.handled == accepted
    assert counters.active == 0


def test_a_drain_from_another_thread_is_right_at_any_step_of_a_request() -> None:
    """It is over when the request is, counts it at most once, and never as cut."""

    class Answer(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"answer")

    for step in steps("line"):
        with sockserve.TCPServer(LOOPBACK, Answer) as server:
            drained: list[sockserve.Drained] = []
            drains: list[Background] = []

            def drain() -> None:
                drains.append(Background(lambda: drained.append(server.drain())))  # noqa: B023
                drains[-1].settle()  # noqa: B023

            with socket.create_connection(server.server_address, LIMIT) as client:
                serving = Background(lambda: step.run(server.handle_request, drain))  # noqa: B023
                serving.end(step)
                for each in drains:
                    each.end(step)
                assert client.recv(100) == b"answer", step
            assert drained in ([], [(0, 0)], [(1, 0)]), step
            assert server.active_requests == (), step


@pytest.mark.filterwarnings("ignore:unclosed <socket.socket:ResourceWarning")
def test_an_exception_of_a_signal_handler_costs_that_request_at_most() -> None:
    """KeyboardInterrupt at any step of the loop's work on a request leaves nobody whom ``server_close()`` cannot end.

    Where the system's accept() has just returned the connection is closed by its last reference.
    """

    class Wait(sockserve.BaseRequestHandler[Any, socket.socket]):
        def handle(self) -> None:
            self.request.recv(1)

    def interrupt() -> None:
        raise KeyboardInterrupt

    for step in steps("line"):
        server = sockserve.ThreadingTCPServer(LOOPBACK, Wait)
        with socket.create_connection(server.server_address, LIMIT) as client:
            serving = Background(lambda: step.run(server.handle_request, interrupt))  # noqa: B023
            serving.end(step)
            assert serving.error in (None, KeyboardInterrupt), step
            client.shutdown(socket.SHUT_WR)
            call_within(LIMIT, server.server_close)
            try:
                assert client.recv(1) == b"", step
            except ConnectionResetError:
                pass
            except TimeoutError:
                pytest.fail(f"the client hangs after {step}")
        assert server.wait_idle(LIMIT), step


def test_a_worker_that_a_signal_tore_the_loop_from_is_still_waited_for(expect_log: ExpectLog) -> None:
    """KeyboardInterrupt while the loop's thread waits for the new one to begin: the worker serves on, and is cut."""
    expect_log(logging.WARNING, "cut .* in progress for")
    begun = threading.Event()

    class Wait(sockserve.BaseRequestHandler[Any, socket.socket]):
        def handle(self) -> None:
            begun.set()
            self.request.recv(1)

    class Torn(threading.Thread):
        def start(self) -> None:
            super().start()
            begun.wait(LIMIT)
            raise KeyboardInterrupt

    class Server(sockserve.ThreadingTCPServer):
        drain_timeout = 0.05

        def make_thread(self, target: Callable[[], object]) -> threading.Thread:
            return Torn(target=target)

    server = Server(LOOPBACK, Wait)
    with socket.create_connection(server.server_address, LIMIT) as client:
        with pytest.raises(KeyboardInterrupt):
            server.handle_request()
        assert len(server.active_requests) == 1
        call_within(LIMIT, server.server_close)
        assert client.recv(1) == b""
    assert server.active_requests == ()


# children


def test_a_child_is_reaped_once() -> None:
    """Whoever else reaps it at any step of ``reap()``: one of the two passes its exit status on."""
    for step in steps():
        # Some hundred children: to fork this process would take ten times as long.
        pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], {})
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        statuses: list[int] = []
        child = Child(pid, statuses.append)
        step.run(child.reap, child.reap)
        child.close()
        assert statuses == [7], step
