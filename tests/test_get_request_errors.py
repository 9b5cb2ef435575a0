"""What an override of ``get_request()`` raises once it has a request is that client's, and not the listener's."""

from __future__ import annotations

import _socket
import contextlib
import errno
import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from support.handlers import Boom, handlers
from support.log_watch import ExpectLog
from support.models import MODELS
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.net import accept as net_accept
from sockserve.pytest_plugin import Running
from sockserve.ready_made import server_class
from sockserve.testing import ask, call_within, connect

LOOPBACK = ("127.0.0.1", 0)
ECHO = handlers(sockserve).Echo
CLIENTS = 12
"""A pause for each of them would double up to more than LIMIT."""

ERRORS: list[Exception] = [
    OSError("a text only"),
    OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN)),
    OSError(errno.EINVAL, os.strerror(errno.EINVAL)),
    OSError(errno.EBADF, os.strerror(errno.EBADF)),
    OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)),
    socket.gaierror(socket.EAI_NONAME, "not known"),
    Boom("no OSError"),
]


class Failures:
    """What the override raises, and what was reported."""

    def __init__(self, error: BaseException, number: int) -> None:
        self.error = error
        self.left = number
        self.delays: list[float] = []
        self.reported: list[tuple[Any, Any, BaseException | None]] = []
        self._lock = threading.Lock()

    def fail(self) -> None:
        """Raise so many times."""
        with self._lock:
            if not self.left:
                return
            self.left -= 1
        raise self.error


def failing_class(model: str, scheme: str, failures: Failures, take: Callable[[Any], Any] | None = None) -> Any:
    """A server class whose ``get_request()`` fails with what it has just got."""
    base = server_class(model, scheme)

    class Server(base):  # type: ignore[misc, valid-type]
        def get_request(self) -> Any:
            taken = super().get_request() if take is None else take(self)
            failures.fail()
            return taken

        def handle_error(self, request: Any, client_address: Any) -> None:
            with pytest.raises(type(failures.error)) as caught:
                raise  # noqa: PLE0704 - it is called inside the except
            failures.reported.append((request, client_address, caught.value))

    return Server


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{type(error).__name__}-{error.args[0]}")
def test_what_comes_after_accept_is_that_clients(error: Exception, model: str, running: Running) -> None:
    """Each is reported with its connection and address, and closed; there is no pause, and the next one is served."""
    failures = Failures(error, CLIENTS)
    server = running(failing_class(model, "tcp", failures)(LOOPBACK, ECHO))
    clients = []
    for _ in range(CLIENTS):
        with connect(server) as client:
            clients.append(client.getsockname())
            assert client.recv(1) == b""
    assert ask(server, b"next") == b"next"
    assert server.wait_idle(LIMIT)
    assert sorted(address for _, address, _ in failures.reported) == sorted(clients)
    assert {caught for *_, caught in failures.reported} == {error}
    assert [request.fileno() for request, *_ in failures.reported] == [-1] * CLIENTS


def accept_itself(server: Any) -> Any:
    """As many programs write it."""
    return server.socket.accept()


@pytest.mark.parametrize("model", MODELS)
def test_an_override_may_accept_by_itself(model: str, running: Running) -> None:
    """The connection is known although nothing of the library's accepted it; one thread's is not another's."""
    failures = Failures(OSError(errno.EINVAL, "of the connection"), CLIENTS)
    server = running(failing_class(model, "tcp", failures, accept_itself)(LOOPBACK, ECHO))
    clients = [connect(server) for _ in range(CLIENTS)]
    for client in clients:
        assert client.recv(1) == b""
        client.close()
    assert ask(server, b"next") == b"next"
    assert server.wait_idle(LIMIT)
    assert [request.fileno() for request, *_ in failures.reported] == [-1] * CLIENTS


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("by_itself", [False, True], ids=["super", "by itself"])
def test_what_comes_after_recvfrom_is_that_clients(model: str, by_itself: bool, running: Running) -> None:
    """A datagram that cannot be made a request is reported, and the next one is served."""

    def receive(server: Any) -> Any:
        data, address = server.socket.recvfrom(100, socket.MSG_DONTWAIT)
        return (data, server.socket), address

    failures = Failures(OSError(errno.EBADF, "of a file"), CLIENTS)
    server = running(failing_class(model, "udp", failures, receive if by_itself else None)(LOOPBACK, ECHO_DATAGRAM))
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(LIMIT)
        client.connect(server.server_address)
        for number in range(CLIENTS):
            client.send(b"%d" % number)
        # Between recvfrom() and the failure a pool's other thread may receive: "next" could fail instead.
        wait_until(lambda: len(failures.reported) == CLIENTS)
        client.send(b"next")
        assert client.recv(100) == b"next"
    if not by_itself:
        assert {request[0] for request, *_ in failures.reported} == {b"%d" % number for number in range(CLIENTS)}


class ECHO_DATAGRAM(sockserve.DatagramRequestHandler):  # noqa: N801 - beside ECHO
    """Sends back what it got."""

    def handle(self) -> None:
        """Serve one datagram."""
        self.wfile.write(self.rfile.read())


def test_an_accept_that_finds_nobody_is_no_error_of_the_one_before(running: Running) -> None:
    """An override that turns some away and accepts again meets an empty queue, with nobody to report."""

    class Server(sockserve.TCPServer):
        turned_away = 0

        def get_request(self) -> Any:
            while True:
                request, address = super().get_request()
                if self.turned_away == 1:
                    return request, address
                self.turned_away += 1
                request.close()

        def handle_error(self, request: Any, client_address: Any) -> None:
            raise AssertionError("nothing was to be reported")

    server = running(Server(LOOPBACK, ECHO))
    with connect(server) as client:
        assert client.recv(1) == b""
    assert ask(server, b"next") == b"next"


def test_without_a_loop_it_is_the_same() -> None:
    """``handle_request()`` reports and returns; what EINVAL of a connection says is nothing about the listener."""
    failures = Failures(OSError(errno.EINVAL, "of the connection"), 1)
    with failing_class("inline", "tcp", failures)(LOOPBACK, ECHO) as server:
        with connect(server) as client:
            server.handle_request()
            assert client.recv(1) == b""
        assert len(failures.reported) == 1


def test_a_signal_handlers_exception_closes_the_connection_too() -> None:
    """KeyboardInterrupt in an override ends the loop, and the client sees it at once."""
    failures = Failures(KeyboardInterrupt(), 1)
    with failing_class("inline", "tcp", failures)(LOOPBACK, ECHO) as server, connect(server) as client:
        with pytest.raises(KeyboardInterrupt):
            call_within(LIMIT, server.serve_forever)
        assert client.recv(1) == b""
        assert failures.reported == []


def test_an_error_before_accept_is_judged_by_the_table(running: Running, expect_log: ExpectLog) -> None:
    """Nobody was taken, so it may come again at once: a pause; and nothing of an earlier request is closed."""
    expect_log(logging.WARNING, "accepting pauses, because accept failed: a text only")
    expect_log(logging.WARNING, "accepting again")

    class Server(sockserve.TCPServer):
        calls = 0

        def get_request(self) -> Any:
            self.calls += 1
            if self.calls == 2:
                raise OSError("a text only")
            return super().get_request()

        def process_request(self, request: Any, client_address: Any) -> None:
            if self.calls == 1:
                kept.append(request)
            else:
                super().process_request(request, client_address)

    kept: list[socket.socket] = []
    server = running(Server(LOOPBACK, ECHO))
    with connect(server) as client:
        client.sendall(b"kept")
        assert ask(server, b"next") == b"next"
        assert kept[0].recv(4) == b"kept"
    kept[0].close()


# between accept() and the socket object


class Interrupted(socket.socket):
    """Its construction is interrupted, before or after it has the descriptor."""

    when = "before"

    def __init__(self, *args: Any) -> None:
        if self.when == "after":
            super().__init__(*args)
        elif self.when == "half way":
            # As far as socket.socket.__init__() has come when the call in it returns.
            _socket.socket.__init__(self, *args)
        raise KeyboardInterrupt


@pytest.mark.parametrize("when", ["before", "half way", "after"])
def test_no_descriptor_is_left_by_a_constructor_that_raises(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is closed, once, whether the object had it or not."""
    closed: list[int] = []
    close = socket.close
    monkeypatch.setattr(net_accept.socket, "close", lambda fd: (closed.append(fd), close(fd)))
    monkeypatch.setattr(Interrupted, "when", when)
    with socket.create_server(LOOPBACK) as listener, socket.create_connection(listener.getsockname(), LIMIT) as client:
        accept = net_accept.accept_of(listener, Interrupted)
        with pytest.raises(KeyboardInterrupt):
            accept()
        assert client.recv(1) == b""
    assert len(closed) == (when == "before")


def test_a_signal_in_the_middle_of_accept_leaves_no_descriptor() -> None:
    """Wherever its handler raises: it comes a little later each time."""
    armed: list[int] = []

    def interrupt(*_: object) -> None:
        if armed:
            armed.clear()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with socket.create_server(LOOPBACK, backlog=1000) as listener, warnings.catch_warnings():
            # Of an object that nothing has got yet, which closes itself.
            warnings.simplefilter("ignore", ResourceWarning)
            accept = net_accept.accept_of(listener)
            descriptors = set(os.listdir("/proc/self/fd"))
            for number in range(300):
                with socket.create_connection(listener.getsockname(), LIMIT):
                    connection = None
                    with contextlib.suppress(KeyboardInterrupt):
                        armed.append(number)
                        signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + number % 30))
                        connection, _ = accept()
                        armed.clear()
                    armed.clear()
                    if connection is not None:
                        connection.close()
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert set(os.listdir("/proc/self/fd")) == descriptors
    finally:
        signal.signal(signal.SIGALRM, before)
