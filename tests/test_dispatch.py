"""The glue between a server and whatever runs its handlers, shown with a dispatcher of our own."""

from __future__ import annotations

import concurrent.futures
import logging
import socket
import socketserver
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.handlers import Boom, handlers
from support.log_watch import ExpectLog
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, call_within, connect

LOOPBACK = ("127.0.0.1", 0)


class Executor:
    """Runs requests in an executor's threads, so many at once, and notes how it is used."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pool = concurrent.futures.ThreadPoolExecutor(limit)
        self.running: set[concurrent.futures.Future[Any]] = set()
        self.most = 0
        self.closed_with: list[float | None] = []
        self.loop: sockserve.Loop | None = None

    def dispatch(self, serve: Callable[[], object], release: Callable[[], None]) -> concurrent.futures.Future[Any]:
        """Submit it."""
        future = self.pool.submit(serve)
        self.running.add(future)
        self.most = max(self.most, len(self.running))
        future.add_done_callback(self._wake)
        return future

    def _wake(self, _: object) -> None:
        loop = self.loop
        if loop is not None:
            loop.wake()

    def reap(self) -> None:
        """Forget what is done."""
        self.running = {future for future in self.running if not future.done()}

    def full(self) -> bool:
        """Whether all threads are busy."""
        return len(self.running) >= self.limit

    def close(self, timeout: float | None) -> bool:
        """Wait for what runs."""
        self.closed_with.append(timeout)
        return not concurrent.futures.wait(self.running, timeout).not_done

    def attach(self, loop: sockserve.Loop) -> None:
        """Wake this loop when something is done."""
        self.loop = loop

    def detach(self) -> None:
        """Wake nobody."""
        self.loop = None

    def must_poll(self) -> Any:
        """Nobody has to look."""
        return None


class ExecutorMixIn(sockserve.DispatchingMixIn):
    """Serves requests in an executor, one at a time."""

    limit = 1

    def make_dispatcher(self) -> Any:
        """An executor's."""
        return Executor(self.limit)


class Server(ExecutorMixIn, sockserve.TCPServer):
    """A server that uses it."""

    @property
    def executor(self) -> Executor:
        """Its dispatcher."""
        made: Executor = self._serving_dispatcher
        return made

    def server_close(self) -> None:
        """End the executor's threads too."""
        super().server_close()
        self.executor.pool.shutdown(wait=False)


@pytest.fixture
def gate() -> Any:
    """A handler that says when it begins and waits until it may go on, by events of this process alone."""
    begun, opened = threading.Semaphore(0), threading.Event()

    class Gate(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            begun.release()
            assert opened.wait(LIMIT)
            self.request.sendall(b"open")

    Gate.begun, Gate.opened = begun, opened  # type: ignore[attr-defined]
    return Gate


def test_a_server_with_threads_may_have_another_dispatcher(running: Running) -> None:
    """What ``make_dispatcher()`` returns is used, also if the mix-in had its own."""

    class Mixed(Server, sockserve.ThreadingTCPServer):
        pass

    server = running(Mixed(LOOPBACK, handlers(sockserve).Echo))
    assert ask(server, b"hello") == b"hello"
    # It may have been served before submit() returned.
    wait_until(lambda: server.executor.most == 1)


@pytest.mark.parametrize("limit", [1, 2])
def test_a_full_dispatcher_is_given_nothing(running: Running, gate: Any, limit: int) -> None:
    """The loop does not accept while the dispatcher is full; as soon as it wakes the loop the next is served."""
    server = running(type("Limited", (Server,), {"limit": limit})(LOOPBACK, gate))
    clients = [connect(server) for _ in range(limit + 2)]
    for _ in range(limit):
        assert gate.begun.acquire(timeout=LIMIT)
    assert not gate.begun.acquire(timeout=0.05)
    assert len(server.active_requests) == limit
    gate.opened.set()
    for client in clients:
        assert client.recv(10) == b"open"
        client.close()
    assert server.executor.most == limit


def test_a_dispatcher_is_told_of_the_loop(running: Running) -> None:
    """It is attached for as long as a loop runs, and not before or after."""
    server = Server(LOOPBACK, handlers(sockserve).Echo)
    assert server.executor.loop is None
    running(server)
    wait_until(lambda: server.executor.loop is not None)
    server.shutdown()
    assert server.executor.loop is None


def test_close_passes_on_how_long_to_wait(running: Running) -> None:
    """server_close() waits ``drain_timeout`` seconds; without a limit if that is None."""
    for timeout in (7.5, None):
        server = Server(LOOPBACK, handlers(sockserve).Echo)
        server.drain_timeout = timeout
        assert ask(running(server), b"hello") == b"hello"
        server.shutdown()
        server.server_close()
        assert server.executor.closed_with == [timeout]


def test_close_cuts_what_does_not_end_in_time(running: Running, expect_log: ExpectLog) -> None:
    """A handler that waits for input when the time is up sees the end of its connection, and is waited for again."""
    expect_log(logging.WARNING, "cut .*, in progress for")
    begun = threading.Event()

    class Handler(sockserve.StreamRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            begun.set()
            assert self.rfile.read() == b""

    server = Server(LOOPBACK, Handler)
    server.drain_timeout = 0.02
    running(server)
    with connect(server) as client:
        assert begun.wait(LIMIT)
        server.shutdown()
        call_within(LIMIT, server.server_close)
        assert client.recv(10) == b""
    assert server.active_requests == ()


def test_an_interrupt_ends_the_wait_and_cuts(running: Running, expect_log: ExpectLog) -> None:
    """Ctrl-C during the wait goes through at once, and the connections of those that still run are cut first."""
    expect_log(logging.WARNING, "cut .*, in progress for")
    begun = threading.Event()

    class Handler(sockserve.StreamRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            begun.set()
            assert self.rfile.read() == b""

    server = running(Server(LOOPBACK, Handler))
    with connect(server) as client:
        assert begun.wait(LIMIT)
        server.shutdown()

        def interrupted(_: float | None) -> bool:
            del vars(server.executor)["close"]
            raise KeyboardInterrupt

        vars(server.executor)["close"] = interrupted
        with pytest.raises(KeyboardInterrupt):
            server.server_close()
        assert client.recv(10) == b""
        assert not server.draining


def test_a_dispatcher_that_raises_fails_the_request(running: Running, expect_log: ExpectLog) -> None:
    """A request for which there is no worker is reported and closed, and others are served."""
    expected = expect_log(logging.ERROR, "(?s)Exception occurred.*Boom: no worker")
    server = Server(LOOPBACK, handlers(sockserve).Echo)
    counters = sockserve.Counters()
    server.add_observer(counters)

    def no_worker(*_: object) -> Any:
        del vars(server.executor)["dispatch"]
        raise Boom("no worker")

    vars(server.executor)["dispatch"] = no_worker
    running(server)
    assert ask(server, b"") == b""
    assert ask(server, b"hello") == b"hello"
    assert len(expected.wait()) == 1
    assert server.wait_idle(LIMIT)
    assert (counters.failed, counters.handled) == (1, 1)


def test_release_closes_this_processs_copy(running: Running) -> None:
    """A dispatcher whose worker has a copy of the request gives up the original, as a forking one does."""
    released = []

    class Elsewhere(Server):
        def close_request(self, request: Any) -> None:
            released.append(request)
            super().close_request(request)

    server = Elsewhere(LOOPBACK, handlers(sockserve).Echo)

    def dispatch(_: Callable[[], object], release: Callable[[], None]) -> None:
        release()

    vars(server.executor)["dispatch"] = dispatch
    with connect(running(server)) as client:
        assert client.recv(10) == b""
        assert len(released) == 1


@pytest.mark.parametrize("module", [sockserve, socketserver], ids=lambda each: each.__name__)
def test_a_request_that_was_never_accepted_can_be_served(module: Any) -> None:
    """process_request_thread() needs nothing but a request: it serves it, reports its errors and closes it."""

    class Mixed(ExecutorMixIn, module.TCPServer):  # type: ignore[misc]
        reported = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            self.reported = True

    with Mixed(LOOPBACK, handlers(sockserve).Crash) as server:
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.sendall(b"hello")
            server.process_request_thread(ours, "nobody")
            assert theirs.recv(10) == b""
        assert ours.fileno() == -1
        assert server.reported


def test_datagram_workers_are_waited_for_before_their_socket_closes(running: Running) -> None:
    """A worker that answers while the server is being closed still has the socket to do so."""
    begun, opened = threading.Event(), threading.Event()

    class Handler(sockserve.DatagramRequestHandler[Any, Any]):
        def handle(self) -> None:
            begun.set()
            assert opened.wait(LIMIT)
            self.wfile.write(b"answer")

    class Datagrams(ExecutorMixIn, sockserve.UDPServer):
        def server_close(self) -> None:
            closing.set()
            super().server_close()
            self._serving_dispatcher.pool.shutdown(wait=False)

    closing = threading.Event()
    server = running(Datagrams(LOOPBACK, Handler))
    with connect(server) as client:
        client.send(b"hello")
        assert begun.wait(LIMIT)
        server.shutdown()
        closer = threading.Thread(target=server.server_close, daemon=True)
        closer.start()
        wait_until(lambda: server._serving_dispatcher.closed_with)
        assert server.fileno() >= 0
        opened.set()
        assert client.recv(10) == b"answer"
        closer.join(LIMIT)
    assert server.fileno() == -1


def test_a_mix_in_without_a_dispatcher_says_so() -> None:
    """The bare mix-in is no way to run a handler: it does not begin to serve, and the error names the class."""

    class Nothing(sockserve.DispatchingMixIn, sockserve.TCPServer):
        pass

    with (
        pytest.raises(NotImplementedError, match="Nothing mixes in no way to run a handler"),
        Nothing(LOOPBACK, handlers(sockserve).Echo) as server,
    ):
        server.serve_forever()
