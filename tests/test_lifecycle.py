"""Stopping, pausing and starting again: what each verb promises, from wherever it is called."""

from __future__ import annotations

import logging
import socket
import threading
import time
import types
from collections.abc import Iterator
from typing import Any

import pytest
from support.handlers import handlers
from support.log_watch import ExpectLog
from support.stepping import steps
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.core.serving import serving_of, table_of
from sockserve.pytest_plugin import Running
from sockserve.testing import Stall, ask, call_within, connect

LOOPBACK = ("127.0.0.1", 0)
ECHO = handlers(sockserve).Echo

inline_or_threads = pytest.mark.parametrize(
    "server_class", [sockserve.TCPServer, sockserve.ThreadingTCPServer, sockserve.ThreadPoolTCPServer]
)


class Gate(sockserve.BaseRequestHandler[Any, socket.socket]):
    """Waits for ``opened`` without reading, then answers."""

    begun: threading.Semaphore
    opened: threading.Event

    def handle(self) -> None:
        """Wait, then answer."""
        self.begun.release()
        self.opened.wait(LIMIT)
        self.request.sendall(b"open")


@pytest.fixture
def gate() -> Iterator[type[Gate]]:
    """A handler with events of its own; opened at the end, whatever happened."""

    class OwnGate(Gate):
        begun = threading.Semaphore(0)
        opened = threading.Event()

    yield OwnGate
    OwnGate.opened.set()


class Serving(threading.Thread):
    """A thread that runs ``serve_forever()``."""

    def __init__(self, server: Any) -> None:
        super().__init__(target=server.serve_forever, daemon=True)
        self.start()

    def end(self) -> None:
        """Return when it has ended."""
        self.join(LIMIT)
        assert not self.is_alive()


# shutdown


def test_two_threads_may_stop_a_server_at_once(running: Running) -> None:
    """Each ``shutdown()`` returns when the loop has ended, and finds it ended."""
    server = running(sockserve.TCPServer(LOOPBACK, ECHO))
    barrier = threading.Barrier(5)
    still_serving: list[bool] = []

    def stop() -> None:
        barrier.wait(LIMIT)
        server.shutdown()
        still_serving.append(server.wait_until_serving(0))

    threads = [threading.Thread(target=stop) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert still_serving == [False] * 5


def test_shutdown_gives_up_after_its_timeout(running: Running, gate: type[Gate]) -> None:
    """A loop that is busy with an inline handler ends later: TimeoutError says so, and the stop stays asked for."""
    server = running(sockserve.TCPServer(LOOPBACK, gate))
    with connect(server) as client:
        assert gate.begun.acquire(timeout=LIMIT)
        with pytest.raises(TimeoutError, match=r"0\.01 seconds"):
            server.shutdown(timeout=0.01)
        gate.opened.set()
        assert client.recv(4) == b"open"
        server.shutdown(timeout=LIMIT)
        assert not server.wait_until_serving(0)


def test_a_server_can_be_started_again_and_again() -> None:
    """A hundred times, and it answers each time."""
    with sockserve.TCPServer(LOOPBACK, ECHO) as server:
        for number in range(100):
            serving = Serving(server)
            assert server.wait_until_serving(LIMIT)
            if number % 10 == 0:
                assert ask(server, b"%d" % number) == b"%d" % number
            server.shutdown()
            serving.join(LIMIT)
            assert not serving.is_alive()


def test_a_start_and_a_stop_may_race() -> None:
    """A hundred servers that are started and stopped in the same moment from two threads, all end."""
    for _ in range(100):
        with sockserve.TCPServer(LOOPBACK, ECHO) as server:
            barrier = threading.Barrier(2)

            def start(server: Any = server, barrier: threading.Barrier = barrier) -> None:
                barrier.wait(LIMIT)
                server.serve_forever()

            thread = threading.Thread(target=start, daemon=True)
            thread.start()
            barrier.wait(LIMIT)
            server.shutdown(LIMIT)
            thread.join(LIMIT)
            assert not thread.is_alive()


def test_a_stop_that_came_first_may_be_followed_by_the_close() -> None:
    """Then the late ``serve_forever()`` returns quietly, and only that one."""
    server = sockserve.TCPServer(LOOPBACK, ECHO)
    server.shutdown()
    server.server_close()
    server.serve_forever()
    with pytest.raises(sockserve.ServerClosedError):
        server.serve_forever()


def test_the_private_flag_stops_at_once(running: Running) -> None:
    """Programs set it from handlers; it reads as what was set."""

    class Last(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            self.server._BaseServer__shutdown_request = True  # type: ignore[attr-defined]
            self.wfile.write(b"last")

    server: Any = running(sockserve.ThreadingTCPServer(LOOPBACK, Last), poll_interval=3600)
    assert server._BaseServer__shutdown_request is False
    assert ask(server, b"") == b"last"
    assert server._BaseServer__is_shut_down.wait(LIMIT)
    assert server._BaseServer__shutdown_request is False


def test_the_private_flag_can_be_taken_back_before_the_start(running: Running) -> None:
    """As in the standard library, whose loop looks at it when it runs."""
    server: Any = sockserve.TCPServer(LOOPBACK, ECHO)
    server._BaseServer__shutdown_request = True
    assert server._BaseServer__shutdown_request is True
    server._BaseServer__shutdown_request = False
    running(server)
    assert ask(server, b"served") == b"served"


def test_wait_until_serving(running: Running) -> None:
    """True while a loop serves, after a failed start too, and False when the time is up."""
    server = sockserve.TCPServer(LOOPBACK, ECHO)
    assert not server.wait_until_serving(0)
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(server.wait_until_serving(LIMIT)))
    waiting.start()
    server.server_close()
    with pytest.raises(sockserve.ServerClosedError):
        server.serve_forever()
    server.socket = socket.create_server(LOOPBACK)
    running(server)
    waiting.join(LIMIT)
    assert answers == [True]
    server.shutdown()
    assert not server.wait_until_serving(0)


# suspend, resume, wait_idle


@inline_or_threads
def test_a_suspended_server_accepts_nobody_until_it_is_resumed(running: Running, server_class: Any) -> None:
    """Who comes meanwhile waits in the backlog."""
    server = running(server_class(LOOPBACK, ECHO))
    server.suspend()
    server.suspend()
    assert server.wait_idle(LIMIT)
    with connect(server) as client:
        client.sendall(b"patient")
        client.shutdown(socket.SHUT_WR)
        assert server.active_requests == ()
        server.resume()
        server.resume()
        assert client.recv(100) == b"patient"


def test_a_server_may_be_suspended_before_it_serves(running: Running) -> None:
    """It begins with the pause."""
    server = sockserve.TCPServer(LOOPBACK, ECHO)
    server.suspend()
    running(server)
    with connect(server) as client:
        assert server.wait_idle(LIMIT)
        assert server.active_requests == ()
        server.resume()
        client.sendall(b"now")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b"now"


@inline_or_threads
def test_wait_idle_waits_for_requests_in_progress(running: Running, gate: type[Gate], server_class: Any) -> None:
    """Not longer than it is told to, nor than they last."""
    server = running(server_class(LOOPBACK, gate))
    assert server.wait_idle(0)
    with connect(server) as client:
        assert gate.begun.acquire(timeout=LIMIT)
        begin = time.monotonic()
        assert not server.wait_idle(0.05)
        assert time.monotonic() - begin >= 0.05
        gate.opened.set()
        assert server.wait_idle(LIMIT)
        assert client.recv(4) == b"open"
        assert server.active_requests == ()


# drain


@inline_or_threads
def test_draining_an_idle_server_takes_no_time(running: Running, server_class: Any) -> None:
    """Nothing finished, nothing was cut, and it accepts no more until it is resumed."""
    server = running(server_class(LOOPBACK, ECHO))
    assert call_within(LIMIT, server.drain) == sockserve.Drained(finished=0, cut=0)
    assert server.draining
    with connect(server) as client:
        assert server.wait_idle(LIMIT)
        assert server.active_requests == ()
        server.resume()
        client.sendall(b"after")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b"after"


def test_draining_a_server_that_does_not_serve_takes_no_time() -> None:
    """Before its loop, after it, and closed."""
    with sockserve.ThreadingTCPServer(LOOPBACK, ECHO) as server:
        assert call_within(LIMIT, server.drain) == (0, 0)
        server.resume()
        serving = Serving(server)
        assert ask(server, b"served") == b"served"
        server.shutdown()
        serving.end()
        assert server.wait_idle(LIMIT)
        assert call_within(LIMIT, server.drain) == (0, 0)
    assert call_within(LIMIT, server.drain) == (0, 0)


def test_a_drain_ends_the_input_of_those_who_wait_for_more(running: Running) -> None:
    """They see end-of-file, can still answer, and count as finished; nobody new is accepted."""

    class Count(sockserve.BaseRequestHandler[Any, socket.socket]):
        def handle(self) -> None:
            count = 0
            while data := self.request.recv(10):
                count += len(data)
            self.request.sendall(b"%d" % count if self.server.draining else b"not draining")

    server = running(sockserve.ThreadingTCPServer(LOOPBACK, Count))
    with Stall(server, b"12345") as one, Stall(server, b"1") as two:
        wait_until(lambda: len(server.active_requests) == 2)
        # Both have read by then what they were sent: nothing else waits.
        wait_until(lambda: all(request.state == "handle" for request in server.active_requests))
        assert call_within(LIMIT, server.drain, LIMIT) == sockserve.Drained(finished=2, cut=0)
        assert (one.read(), two.read()) == (b"5", b"1")


def test_a_drain_cuts_those_who_do_not_end(running: Running, gate: type[Gate], expect_log: ExpectLog) -> None:
    """After its time; it says how many, and the client sees the end of the connection."""
    cut = expect_log(logging.WARNING, r"cut \('127.0.0.1', \d+\), in progress for")
    ended = threading.Event()

    class Stubborn(sockserve.BaseRequestHandler[Any, socket.socket]):
        def handle(self) -> None:
            gate.begun.release()
            if self.request.recv(1):
                gate.opened.wait(LIMIT)
            ended.set()

    class Server(sockserve.ThreadingTCPServer):
        def drain_request(self, request: socket.socket) -> None:
            client = request.getpeername()
            super().drain_request(request)
            if client == reasonable.connection.getsockname():
                # On a busy machine it takes longer than the drain may.
                wait_until(lambda: len(self.active_requests) == 1)

    server = running(Server(LOOPBACK, Stubborn))
    with Stall(server, b"!") as stubborn, Stall(server) as reasonable:
        for _ in range(2):
            assert gate.begun.acquire(timeout=LIMIT)
        opener = threading.Thread(target=lambda: (cut.wait(), gate.opened.set()))
        opener.start()
        assert call_within(LIMIT, server.drain, 0.1) == sockserve.Drained(finished=1, cut=1)
        opener.join(LIMIT)
        assert (stubborn.read(), reasonable.read()) == (b"", b"")
        assert ended.wait(LIMIT)


@inline_or_threads
def test_a_handler_may_drain_its_own_server(running: Running, server_class: Any) -> None:
    """It does not wait for itself, and answers afterwards."""

    class Last(sockserve.BaseRequestHandler[Any, socket.socket]):
        def handle(self) -> None:
            drained = self.server.drain(LIMIT)
            self.request.sendall(b"%d %d" % drained)

    server = running(server_class(LOOPBACK, Last))
    assert ask(server, b"") == b"0 0"
    assert server.draining


def test_a_handler_that_drains_waits_for_the_others(running: Running) -> None:
    """It counts the one who could end only because of the drain, and not itself."""

    class Both(sockserve.BaseRequestHandler[Any, socket.socket]):
        def handle(self) -> None:
            if self.request.recv(1) == b"d":
                self.request.sendall(b"%d %d" % self.server.drain(LIMIT))
            else:
                self.request.sendall(b"here")
                self.request.sendall(self.request.recv(1) or b"ended")

    server = running(sockserve.ThreadingTCPServer(LOOPBACK, Both))
    with Stall(server, b"o") as other:
        assert other.connection.recv(4) == b"here"
        assert ask(server, b"d") == b"1 0"
        assert other.read() == b"ended"


def test_two_threads_may_drain_at_once(running: Running, gate: type[Gate]) -> None:
    """Each counts the same request."""
    server = running(sockserve.ThreadingTCPServer(LOOPBACK, gate))
    drained: list[sockserve.Drained] = []
    with connect(server):
        assert gate.begun.acquire(timeout=LIMIT)
        threads = [threading.Thread(target=lambda: drained.append(server.drain(LIMIT))) for _ in range(2)]
        for thread in threads:
            thread.start()
        # Whoever drains comes to wait for the next change of the table.
        wait_until(lambda: len(table_of(server).watchers) >= 2)
        gate.opened.set()
        for thread in threads:
            thread.join(LIMIT)
    assert drained == [(1, 0), (1, 0)]


def test_a_server_that_serves_anew_is_not_draining(running: Running) -> None:
    """The drain, and its suspension, belong to the loop that they ended."""
    server = sockserve.TCPServer(LOOPBACK, ECHO)
    serving = Serving(server)
    assert server.wait_until_serving(LIMIT)
    server.drain()
    server.shutdown()
    serving.end()
    running(server)
    assert not server.draining
    assert ask(server, b"served anew") == b"served anew"


# objects in unusual states


def test_init_may_run_again(running: Running) -> None:
    """After the close, on the same object: a new socket, and nothing left of the old life."""
    server = sockserve.TCPServer(LOOPBACK, ECHO)
    for _ in range(2):
        serving = Serving(server)
        assert ask(server, b"echo") == b"echo"
        server.drain()
        server.shutdown()
        serving.end()
        server.server_close()
        server.__init__(LOOPBACK, ECHO)  # type: ignore[misc]
        assert not server.draining
    running(server)
    assert ask(server, b"third life") == b"third life"


def test_an_object_whose_init_never_ran_has_every_verb() -> None:
    """As tests of other packages make them: nothing to stop, nothing to wait for."""
    server = sockserve.ThreadingTCPServer.__new__(sockserve.ThreadingTCPServer)
    call_within(LIMIT, server.shutdown)
    server.suspend()
    server.resume()
    assert server.wait_idle(0)
    assert server.drain(0) == (0, 0)
    assert server.active_requests == ()
    assert not server.wait_until_serving(0)
    server.server_close()
    server.server_close()
    assert repr(server) == "<ThreadingTCPServer None>"


def test_a_server_whose_bind_failed_is_closed_without_another_error() -> None:
    """The error of the bind is the one that is seen, and its socket is closed."""
    with sockserve.TCPServer(LOOPBACK, ECHO) as taken, pytest.raises(OSError, match="in use") as caught:
        sockserve.ThreadingTCPServer(taken.server_address, ECHO)
    assert caught.value.__context__ is None


def test_what_was_being_taken_when_a_pause_began_is_waited_for() -> None:
    """The loop enters a request and pauses after it, at any step of ``wait_idle()``."""
    for step in steps():
        with sockserve.TCPServer(LOOPBACK, ECHO) as server:
            lifecycle, stay = serving_of(server).lifecycle, types.SimpleNamespace(is_over=False)
            stay.has_paused = lambda: stay.is_over  # noqa: B023
            lifecycle.suspended, lifecycle.acceptor = True, stay  # type: ignore[assignment]

            def pause() -> None:
                table_of(server).add(object(), "peer").thread = None
                stay.is_over = True  # noqa: B023

            assert not step.run(lambda: server.wait_idle(0), pause), step
            lifecycle.acceptor = None
