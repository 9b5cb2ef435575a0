"""``keep_open()``, whether the worker waits (inline, a thread, a child) or the connection is parked (in a pool)."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from support.certificates import client_context, server_context
from support.handlers import Boom, Signal
from support.log_watch import ExpectLog
from support.models import MODELS, SERVERS
from support.under_test import LIMIT
from support.waiting import wait_until_arrived

import sockserve
from sockserve.net.closing import cut
from sockserve.net.tls import close_notify
from sockserve.pytest_plugin import Running
from sockserve.testing import connect

LOOPBACK = ("127.0.0.1", 0)


class Raw(sockserve.BaseRequestHandler[Any, Any, Any]):
    """Numbers the calls of ``handle()``: each answers what it received, and asks to be called again."""

    calls = 0

    def handle(self) -> None:
        """Answer."""
        self.calls += 1
        self.keep_open()
        self.request.sendall(b"%d %s" % (self.calls, self.request.recv(100)))


class Lines(sockserve.StreamRequestHandler[Any, Any, Any]):
    """The same for lines."""

    calls = 0

    def handle(self) -> None:
        """Answer."""
        self.calls += 1
        self.keep_open()
        self.wfile.write(b"%d %s" % (self.calls, self.rfile.readline()))


class UnbufferedLines(Lines):
    """The same without a buffer for input."""

    rbufsize = 0


class BufferedAnswers(Lines):
    """The same with a buffer for output, which nobody flushes."""

    wbufsize = -1


HANDLERS = {handler.__name__: handler for handler in (Raw, Lines, UnbufferedLines, BufferedAnswers)}

each_model = pytest.mark.parametrize("model", MODELS)
each_handler = pytest.mark.parametrize("handler", HANDLERS)


class Served(NamedTuple):
    """A server, and a client of it."""

    server: Any
    client: socket.socket


class Serve:
    """Starts servers and connects to them."""

    def __init__(self, running: Running, certificate: pathlib.Path, stack: contextlib.ExitStack) -> None:
        self.running = running
        self.certificate = certificate
        self.stack = stack

    def __call__(self, model: str, handler: Any, transport: str = "tcp") -> Served:
        """Serve ``handler`` and connect to it."""
        server = SERVERS[model](LOOPBACK, handler)
        if transport == "tls":
            server.socket = server_context(self.certificate).wrap_socket(server.socket, server_side=True)
        client = connect(self.running(server), timeout=LIMIT)
        if transport == "tls":
            client = client_context(self.certificate).wrap_socket(client, server_hostname="localhost")
        self.stack.enter_context(client)
        # In a child that was forked from this process a copy of it stays open.
        self.stack.callback(cut, client)
        return Served(server, client)


@pytest.fixture
def serve(running: Running, certificate: pathlib.Path) -> Iterator[Serve]:
    """Serve one client, and end its connection before its server."""
    with contextlib.ExitStack() as stack:
        yield Serve(running, certificate, stack)


def read_exactly(client: socket.socket, count: int) -> bytes:
    """Return as many bytes, or all until end-of-file."""
    received = b""
    while len(received) < count and (chunk := client.recv(count - len(received))):
        received += chunk
    return received


def answer(client: socket.socket, data: bytes) -> bytes:
    """Send all input, end it, and return all that comes back."""
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)
    return read_exactly(client, 1000)


@pytest.mark.parametrize("transport", ["tcp", "tls"])
@each_handler
@each_model
def test_handle_is_called_whenever_the_client_has_more_to_say(
    serve: Serve, model: str, handler: str, transport: str
) -> None:
    """Each message is answered when it comes, by the same handler object, on the same connection."""
    _, client = serve(model, HANDLERS[handler], transport)
    for number in (b"1", b"2", b"3"):
        client.sendall(b"hello\n")
        assert read_exactly(client, 8) == number + b" hello\n"


@each_handler
@each_model
def test_the_end_of_input_ends_it_without_another_call(serve: Serve, model: str, handler: str) -> None:
    """A client that half-closes after its answer, when nothing is left to read, gets no more and the end."""
    _, client = serve(model, HANDLERS[handler])
    client.sendall(b"hello\n")
    assert read_exactly(client, 8) == b"1 hello\n"
    client.shutdown(socket.SHUT_WR)
    assert client.recv(100) == b""


@pytest.mark.parametrize("handler", ["Lines", "BufferedAnswers"])
@pytest.mark.parametrize("half_close", [socket.socket.shutdown, None])
@each_model
def test_the_end_of_tls_input_ends_it_without_another_call(
    serve: Serve, model: str, handler: str, half_close: Any
) -> None:
    """The same over TLS, with and without an end of the TCP connection's half beneath it."""
    _, client = serve(model, HANDLERS[handler], "tls")
    client.sendall(b"hello\n")
    assert read_exactly(client, 8) == b"1 hello\n"
    close_notify(client, LIMIT)  # type: ignore[arg-type]
    if half_close:
        half_close(client, socket.SHUT_WR)
    assert_proper_end(client)


@pytest.mark.parametrize("model", ["thread", "pool"])
@pytest.mark.parametrize("base", [Raw, UnbufferedLines])
def test_without_a_buffer_the_end_of_tls_input_is_one_more_call(serve: Serve, base: Any, model: str) -> None:
    """Where nothing can be looked ahead in, the end of TLS input is a call that reads nothing, and the last one."""
    received = []

    class Handler(base):  # type: ignore[misc]
        def handle(self) -> None:
            self.keep_open()
            received.append(self.request.recv(100) if base is Raw else self.rfile.readline())

    server, client = serve(model, Handler, "tls")
    client.sendall(b"hello\n")
    close_notify(client, LIMIT)  # type: ignore[arg-type]
    socket.socket.shutdown(client, socket.SHUT_WR)
    assert_proper_end(client)
    assert server.wait_idle(LIMIT)
    assert received == [b"hello\n", b""]


def assert_proper_end(client: socket.socket) -> None:
    """See that the server ends a TLS connection whose client has ended its half before."""
    with contextlib.suppress(ssl.SSLZeroReturnError):
        # Raised instead of b"" because this side has ended its half before.
        assert client.recv(100) == b""


@pytest.mark.parametrize("handler", ["Lines", "UnbufferedLines", "BufferedAnswers"])
@each_model
def test_pipelined_input_is_handled_to_the_end(serve: Serve, model: str, handler: str) -> None:
    """Lines that arrive together, followed by end-of-file, are each handled in a call of their own, all of them."""
    _, client = serve(model, HANDLERS[handler])
    assert answer(client, b"a\nb\nc\n") == b"1 a\n2 b\n3 c\n"


@pytest.mark.parametrize("model", ["thread", "pool"])
def test_pipelined_tls_records_are_handled_to_the_end(serve: Serve, model: str) -> None:
    """What OpenSSL has read already, and a selector would not see, counts as more to say."""

    class Handler(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            self.keep_open()
            self.request.sendall(self.request.recv(2))

    _, client = serve(model, Handler, "tls")
    client.sendall(b"aabbcc")
    assert read_exactly(client, 6) == b"aabbcc"


@each_model
def test_without_another_request_the_connection_is_closed(serve: Serve, model: str) -> None:
    """keep_open() is for one more call; handle() has to ask each time."""

    class Handler(sockserve.StreamRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            line = self.rfile.readline()
            if line == b"a\n":
                self.keep_open()
            self.wfile.write(line)

    _, client = serve(model, Handler)
    assert answer(client, b"a\nb\nc\n") == b"a\nb\n"


@pytest.mark.parametrize("handler", ["Raw", "Lines"])
@each_model
def test_a_client_that_says_nothing_for_too_long_is_let_go(serve: Serve, model: str, handler: str) -> None:
    """After the connection's time-out without input the wait is over, without another call and without an error."""

    class Handler(HANDLERS[handler]):  # type: ignore[misc]
        def handle(self) -> None:
            super().handle()
            # Not before: the client may be late on a busy machine.
            self.request.settimeout(0.05)

    _, client = serve(model, Handler)
    client.sendall(b"hello\n")
    assert read_exactly(client, 100) == b"1 hello\n"


@pytest.mark.parametrize("handler", ["Raw", "Lines"])
@pytest.mark.parametrize("model", ["inline", "thread", "pool"])
def test_a_client_that_resets_is_let_go(serve: Serve, expect_log: ExpectLog, model: str, handler: str) -> None:
    """A connection that breaks while it waits is one DEBUG line, and its finish() runs."""
    said_no_more = expect_log(logging.DEBUG, "said no more: .*reset by peer$")
    finished = threading.Event()

    class Handler(HANDLERS[handler]):  # type: ignore[misc]
        def finish(self) -> None:
            super().finish()
            finished.set()

    _, client = serve(model, Handler)
    client.sendall(b"hello\n")
    assert read_exactly(client, 8) == b"1 hello\n"
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    assert finished.wait(LIMIT)
    assert len(said_no_more.wait()) == 1


@pytest.mark.parametrize("transport", ["tcp", "tls"])
@pytest.mark.parametrize("handler", ["Raw", "Lines"])
@each_model
def test_a_drain_ends_the_wait(serve: Serve, model: str, handler: str, transport: str) -> None:
    """A drain lets go of connections that wait, at once, without another call; their clients see the end."""
    server, client = serve(model, HANDLERS[handler], transport)
    client.sendall(b"hello\n")
    assert read_exactly(client, 8) == b"1 hello\n"
    assert server.drain(LIMIT) == (1, 0)
    assert client.recv(100) == b""


@each_model
def test_an_error_in_a_later_call_is_reported(serve: Serve, expect_log: ExpectLog, model: str) -> None:
    """What a later call of handle() raises is reported as that of the first, finish() runs once, and it is the end."""
    expected = expect_log(logging.ERROR, "(?s)Exception occurred.*Boom: in call 2")

    class Handler(Lines):
        def handle(self) -> None:
            super().handle()
            if self.calls == 2:
                raise Boom("in call 2")

    _, client = serve(model, Handler)
    assert answer(client, b"a\nb\nc\n") == b"1 a\n2 b\n"
    assert len(expected.wait()) == 1


@pytest.mark.parametrize("model", ["thread", "pool"])
def test_a_handler_can_see_that_the_server_drains(serve: Serve, model: str) -> None:
    """A call of handle() that is under way when a drain begins ends normally, and its answer arrives."""
    begun, opened = Signal(), Signal()

    class Handler(Lines):
        def handle(self) -> None:
            begun.set()
            assert opened.wait()
            assert self.server.draining
            super().handle()

    server, client = serve(model, Handler)
    client.sendall(b"hello\n")
    assert begun.wait()
    # A drain ends the input where it is.
    wait_until_arrived(client)
    outcome: list[Any] = []
    drain = threading.Thread(target=lambda: outcome.append(server.drain(LIMIT)))
    drain.start()
    while not server.draining:
        threading.Event().wait(0.001)
    opened.set()
    assert read_exactly(client, 100) == b"1 hello\n"
    drain.join(LIMIT)
    assert outcome == [(1, 0)]


def test_only_connections_can_be_kept_open(running: Running, expect_log: ExpectLog) -> None:
    """A datagram is over when it is answered: to keep it open is a TypeError."""
    expected = expect_log(logging.ERROR, r"TypeError: Handler.keep_open\(\)")

    class Handler(sockserve.DatagramRequestHandler[Any, Any]):
        def handle(self) -> None:
            self.keep_open()

    with connect(running(sockserve.UDPServer(LOOPBACK, Handler))) as client:
        client.send(b"hello")
        assert len(expected.wait()) == 1
