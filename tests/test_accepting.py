"""A server's stay in a loop: when it accepts, when not, and in which state it leaves its listener."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.handlers import Boom, handlers
from support.log_watch import ExpectLog
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.core.accepting import BATCH
from sockserve.core.loop import Loop, Timer
from sockserve.core.serving import table_of
from sockserve.net.accept_errors import BACK_OFF_FIRST, BACK_OFF_LAST
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, call_within, connect

LOOPBACK = ("127.0.0.1", 0)
ECHO = handlers(sockserve).Echo


class Idle(sockserve.BaseRequestHandler):
    """Answers nothing."""


class Turns(sockserve.Observer):
    """Counts the turns of a loop, and the pauses."""

    def __init__(self) -> None:
        self.turns = 0
        self.pauses: list[str | None] = []

    def on_tick(self, server: Any) -> None:
        """Count."""
        self.turns += 1

    def on_wait(self, server: Any, reason: str | None) -> None:
        """Keep the reason."""
        self.pauses.append(reason)


def connect_all(server: Any, number: int) -> list[socket.socket]:
    """Connect so many clients."""
    return [connect(server) for _ in range(number)]


def close_all(clients: list[socket.socket]) -> None:
    """Close each."""
    for client in clients:
        client.close()


# 1 WAIT


def test_an_idle_loop_does_not_turn(running: Running) -> None:
    """No interval makes it: one request later the count has grown by the turns of that request only."""
    turns = Turns()
    server = sockserve.TCPServer(LOOPBACK, ECHO)
    server.add_observer(turns)
    running(server, poll_interval=0.001)
    assert ask(server, b"first") == b"first"
    threading.Event().wait(0.2)
    assert ask(server, b"second") == b"second"
    assert turns.turns <= 4


def test_overridden_service_actions_are_called_at_every_interval(running: Running) -> None:
    """Without a single client."""
    called = threading.Semaphore(0)

    class Server(sockserve.TCPServer):
        def service_actions(self) -> None:
            called.release()

    running(Server(LOOPBACK, ECHO), poll_interval=0.001)
    for _ in range(20):
        assert called.acquire(timeout=LIMIT)


def test_service_actions_set_on_the_instance_are_called_too(running: Running) -> None:
    """Programs do that instead of subclassing."""
    called = threading.Event()
    server = sockserve.TCPServer(LOOPBACK, ECHO)
    server.service_actions = called.set  # type: ignore[method-assign]
    running(server, poll_interval=0.001)
    assert called.wait(LIMIT)


class FullDispatcher:
    """Serves at once, but is full whenever it is told to be."""

    def __init__(self) -> None:
        self.is_full = False
        self.loop: Loop | None = None

    def dispatch(self, serve: Callable[[], object], release: Callable[[], None]) -> None:
        """Serve here."""
        serve()

    def reap(self) -> None:
        """Nothing to forget."""

    def full(self) -> bool:
        """As told."""
        return self.is_full

    def close(self, timeout: float | None) -> bool:
        """Nothing to wait for."""
        return True

    def attach(self, loop: Loop) -> None:
        """Note which loop."""
        self.loop = loop

    def detach(self) -> None:
        """No loop any more."""
        self.loop = None

    def must_poll(self) -> bool:
        """Never."""
        return False


class FullServer(sockserve.DispatchingMixIn, sockserve.TCPServer):
    """A server with such a dispatcher."""

    def make_dispatcher(self) -> Any:
        """Make it."""
        return FullDispatcher()


def test_a_full_dispatcher_pauses_accepting(running: Running) -> None:
    """Its server takes nobody until there is room again, and the observers hear both."""
    turns = Turns()
    server = FullServer(LOOPBACK, ECHO)
    server.add_observer(turns)
    dispatcher = server._serving_dispatcher
    dispatcher.is_full = True
    running(server)
    with connect(server) as client:
        client.sendall(b"patient")
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: turns.pauses == ["full"])
        assert server.active_requests == ()
        dispatcher.is_full = False
        dispatcher.loop.wake()
        assert client.recv(100) == b"patient"
        assert turns.pauses == ["full", None]
    server.shutdown()
    assert dispatcher.loop is None


def test_a_batch_ends_when_the_dispatcher_becomes_full(running: Running) -> None:
    """Of clients who wait together no more are taken than there is room for."""
    taken: list[Any] = []

    class OneAtATime(FullServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            taken.append(client_address)
            self._serving_dispatcher.is_full = True
            super().process_request(request, client_address)

    server = OneAtATime(LOOPBACK, Idle)
    clients = connect_all(server, 3)
    running(server)
    for number in range(1, 4):
        wait_until(lambda number=number: len(taken) == number)  # type: ignore[misc]
        server._serving_dispatcher.is_full = False
        server._serving_dispatcher.loop.wake()
    close_all(clients)


# 2 ACCEPT


def test_a_batch_has_an_end(running: Running) -> None:
    """More clients than a batch need a second turn, so that another server of the loop gets its own in between."""
    turns = Turns()
    seen: list[int] = []

    class Server(sockserve.TCPServer):
        request_queue_size = 2 * BATCH

        def process_request(self, request: Any, client_address: Any) -> None:
            seen.append(turns.turns)
            super().process_request(request, client_address)

    server = Server(LOOPBACK, Idle)
    server.add_observer(turns)
    clients = connect_all(server, BATCH + 1)
    running(server)
    wait_until(lambda: len(seen) == BATCH + 1)
    assert seen == [0] * BATCH + [1]
    close_all(clients)


@pytest.mark.parametrize("hook", ["get_request", "_handle_request_noblock"])
def test_an_override_that_may_block_is_called_once_a_turn(running: Running, hook: str) -> None:
    """It may be one that waits, or that returns what the standard library's does."""
    turns = Turns()
    seen: list[int] = []

    class Server(sockserve.TCPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            seen.append(turns.turns)
            super().process_request(request, client_address)

    def get_request(self: Any) -> Any:
        return super(Server, self).get_request()

    def handle_request_noblock(self: Any) -> None:
        super(Server, self)._handle_request_noblock()

    setattr(Server, hook, get_request if hook == "get_request" else handle_request_noblock)
    server = Server(LOOPBACK, Idle)
    server.add_observer(turns)
    clients = connect_all(server, 3)
    running(server)
    wait_until(lambda: len(seen) == 3)
    assert seen == [0, 1, 2]
    close_all(clients)


@pytest.mark.parametrize(
    "ask_to_stop",
    [
        lambda server: setattr(server, "_BaseServer__shutdown_request", True),
        lambda server: server.shutdown(),
        lambda server: server.suspend(),
        lambda server: server.server_close(),
    ],
    ids=["flag", "shutdown", "suspend", "server_close"],
)
def test_nothing_is_taken_once_the_stop_was_asked_in_the_same_turn(
    ask_to_stop: Callable[[Any], None], expect_log: ExpectLog
) -> None:
    """The listener is ready, but what was ready before it told the server to take no more."""
    expect_log(logging.WARNING, "came before shutdown", at_least=0)
    counters = sockserve.Counters()
    server = sockserve.TCPServer(LOOPBACK, Idle)
    server.add_observer(counters)
    reader, writer = socket.socketpair()
    with reader, writer, Loop() as loop:

        def stop() -> None:
            reader.recv(1)
            ask_to_stop(server)

        loop.watch(reader.fileno(), stop)
        server.attach(loop)
        loop.wake()
        loop._turn()
        writer.send(b"!")
        with connect(server):
            loop._turn()
            loop.wake()
            loop._turn()
            assert counters.accepted == 0
    server.server_close()


class RecordingLoop(Loop):
    """Fires its timers at once, and keeps the delays that they were meant to have."""

    def __init__(self) -> None:
        super().__init__()
        self.delays: list[float] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Keep the delay."""
        self.delays.append(delay)
        return super().call_later(0, callback)


class Failing(sockserve.TCPServer):
    """Its first so many accepts fail."""

    def __init__(self, failures: int, error: BaseException) -> None:
        super().__init__(LOOPBACK, ECHO)
        self.attempts = 0
        self.failures = failures
        self.error = error

    def get_request(self) -> Any:
        """Fail, or accept."""
        self.attempts += 1
        if self.attempts <= self.failures:
            raise self.error
        return super().get_request()


def test_pauses_double_up_to_a_second(expect_log: ExpectLog) -> None:
    """And begin anew after a success, which is logged with the number of failures."""
    begins = expect_log(logging.WARNING, "accepting pauses.*Too many open files")
    ends = expect_log(logging.WARNING, "accepting again after 12 failed attempts")
    server = Failing(12, OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    expected = [min(BACK_OFF_FIRST * 2**n, BACK_OFF_LAST) for n in range(12)]
    with RecordingLoop() as loop:
        server.attach(loop)
        thread = threading.Thread(target=loop.run)
        thread.start()
        assert ask(server, b"patient") == b"patient"
        assert loop.delays == expected
        server.attempts = 0
        assert ask(server, b"again") == b"again"
        assert loop.delays == expected * 2
        server.shutdown()
        thread.join()
    assert len(begins.lines) == len(ends.lines) == 2
    server.server_close()


def test_a_pause_ends_when_a_request_does(expect_log: ExpectLog) -> None:
    """The descriptor that it gives back may be the one that was missing."""
    expect_log(logging.WARNING, "accepting pauses")
    expect_log(logging.WARNING, "accepting again after 1 failed")
    opened = threading.Event()

    class Gate(sockserve.BaseRequestHandler):
        def handle(self) -> None:
            opened.wait(LIMIT)
            self.request.sendall(b"open")

    class Server(sockserve.ThreadingTCPServer):
        failures = 0

        def get_request(self) -> Any:
            if self.active_requests:
                self.failures += 1
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return super().get_request()

    class EndlessLoop(Loop):
        def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
            return super().call_later(3600, callback)

    server = Server(LOOPBACK, Gate)
    with EndlessLoop() as loop:
        server.attach(loop)
        thread = threading.Thread(target=loop.run)
        thread.start()
        with connect(server) as first, connect(server) as second:
            # Not merely the failure: the pause has to have begun.
            wait_until(lambda: server.failures and table_of(server).watchers)
            opened.set()
            assert first.recv(4) == b"open"
            assert second.recv(4) == b"open"
        server.shutdown()
        thread.join()
    server.server_close()


def test_a_server_can_be_stopped_while_it_backs_off(running: Running, expect_log: ExpectLog) -> None:
    """Neither ``shutdown()`` nor ``drain()`` waits for the end of the pause, nor for accepting to work again."""
    expect_log(logging.WARNING, "accepting pauses")
    server = running(Failing(10**9, OSError(errno.ENFILE, os.strerror(errno.ENFILE))))
    with connect(server):
        wait_until(lambda: server.attempts > 2)
        assert call_within(LIMIT, server.drain) == (0, 0)
        call_within(LIMIT, server.shutdown)


def test_a_fatal_error_ends_the_loop() -> None:
    """A listener that cannot accept any more is no reason to try for ever; the error says why."""
    server = Failing(1, OSError(errno.EINVAL, os.strerror(errno.EINVAL)))
    with server, connect(server):
        with pytest.raises(sockserve.ListenerLostError, match="Invalid argument") as caught:
            call_within(LIMIT, server.serve_forever)
        assert caught.value.__cause__ is server.error
        server.attempts = 0
        with pytest.raises(sockserve.ListenerLostError, match="Invalid argument"):
            server.handle_request()


def test_what_handle_error_raises_ends_the_loop_with_the_request_closed() -> None:
    """Programs re-raise there to see errors."""

    class Server(sockserve.TCPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            raise  # noqa: PLE0704 - it is called inside the except

    with Server(LOOPBACK, handlers(sockserve).Crash) as server, connect(server) as client:
        client.sendall(b"!")
        with pytest.raises(Boom):
            call_within(LIMIT, server.serve_forever)
        assert client.recv(1) == b""
        assert server.active_requests == ()


@pytest.mark.parametrize("hook", ["verify_request", "prepare_request"])
def test_an_error_before_the_handler_is_not_taken_for_a_departure(
    running: Running, expect_log: ExpectLog, hook: str
) -> None:
    """A connection to somebody else that was refused is reported, with its traceback; the client is disconnected."""

    class Server(sockserve.TCPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            request.sendall(b"sorry")
            super().handle_error(request, client_address)

    def ask_a_backend(*_: Any) -> Any:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "the backend is down")

    setattr(Server, hook, ask_a_backend)
    reported = expect_log(logging.ERROR, "the backend is down")
    with connect(running(Server(LOOPBACK, ECHO))) as client:
        assert client.recv(100) == b"sorry"
        assert client.recv(100) == b""
    assert "Traceback" in reported.wait()[0].text


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_is_no_exception_ends_the_loop_from_an_inline_handler(error: type[BaseException]) -> None:
    """The connection is closed all the same."""

    class Leaving(sockserve.BaseRequestHandler):
        def handle(self) -> None:
            raise error

    with sockserve.TCPServer(LOOPBACK, Leaving) as server, connect(server) as client:
        with pytest.raises(error):
            call_within(LIMIT, server.serve_forever)
        assert client.recv(1) == b""
        assert server.active_requests == ()
