"""Servers whose listening socket is wrapped by an SSLContext, and all that clients do to them."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.certificates import VERSIONS, client_context, server_context
from support.handlers import Signal
from support.log_watch import ExpectLog
from support.models import BESIDE_THE_LOOP, MODELS, SERVERS
from support.preparing import Refusals
from support.under_test import LIMIT
from support.waiting import wait_until_arrived

import sockserve
from sockserve.net.closing import cut
from sockserve.net.tls import close_notify
from sockserve.pytest_plugin import Running
from sockserve.testing import HalfHandshake, Reset, Stall, Trickle, call_within, connect
from sockserve.testing.clients import CLIENT_HELLO_START

LOOPBACK = ("127.0.0.1", 0)
each_version = pytest.mark.parametrize("version", VERSIONS, ids=[version.name for version in VERSIONS])
each_model = pytest.mark.parametrize("model", MODELS)
each_concurrent_model = pytest.mark.parametrize("model", BESIDE_THE_LOOP)


class Make:
    """Makes servers and their clients."""

    def __init__(self, certificate: pathlib.Path, stack: contextlib.ExitStack) -> None:
        self.certificate = certificate
        self.stack = stack

    def server(self, model: str, handler: Any, version: ssl.TLSVersion | None = None, **attributes: Any) -> Any:
        """Make a server with a wrapped socket and class attributes of its own."""
        server = type("Server", (SERVERS[model],), attributes)(LOOPBACK, handler)
        server.socket = server_context(self.certificate, version).wrap_socket(server.socket, server_side=True)
        return server

    def client(self, server: Any) -> ssl.SSLSocket:
        """Connect and shake hands; closed at the end of the test."""
        return self.wrap(connect(server, timeout=LIMIT))

    def wrap(self, plain: socket.socket) -> ssl.SSLSocket:
        """Shake hands; a connection that then ends without a proper end is an error."""
        context = client_context(self.certificate)
        wrapped = context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)
        self.stack.enter_context(wrapped)
        # In a child that was forked from this process a copy of it stays open.
        self.stack.callback(cut, wrapped)
        return wrapped


@pytest.fixture
def make(certificate: pathlib.Path) -> Iterator[Make]:
    """Give tests what they need on both sides."""
    with contextlib.ExitStack() as stack:
        yield Make(certificate, stack)


def leave(client: Stall | HalfHandshake) -> None:
    """End a connection even if a child that was forked from this process holds a copy of our end."""
    cut(client.connection)


def read_all(client: socket.socket) -> bytes:
    """Return what comes until a proper end."""
    received = b""
    with contextlib.suppress(ssl.SSLZeroReturnError):
        # Raised at the end if this side has ended its half before.
        while chunk := client.recv(65536):
            received += chunk
    return received


class Upper(sockserve.StreamRequestHandler[Any, Any, Any]):
    """Answers one line in capitals."""

    def handle(self) -> None:
        """Answer."""
        self.wfile.write(self.rfile.readline().upper())


class Length(sockserve.StreamRequestHandler[Any, Any, Any]):
    """Reads until end-of-file and answers how many bytes that were."""

    def handle(self) -> None:
        """Answer."""
        self.wfile.write(str(len(self.rfile.read())).encode())


@each_version
@each_model
def test_a_tls_client_is_served_and_the_connection_ends_properly(
    running: Running, make: Make, model: str, version: ssl.TLSVersion
) -> None:
    """In every model a client is answered over TLS, sees a proper end, and the next one is served."""
    server = running(make.server(model, Upper, version))
    for _ in range(2):
        client = make.client(server)
        assert client.version() == version.name.replace("_", ".")
        client.sendall(b"hello\n")
        assert read_all(client) == b"HELLO\n"


def test_the_handshake_comes_after_verify_request_and_in_prepare_request(running: Running, make: Make) -> None:
    """What a program wants to know of it, it asks in ``prepare_request()``; until then there is nothing to be known."""
    seen = []

    def verify_request(_self: Any, request: ssl.SSLSocket, _client_address: Any) -> bool:
        seen.append(request.version())
        return True

    def prepare_request(self: Any, request: ssl.SSLSocket, client_address: Any) -> Any:
        prepared = sockserve.ThreadingTCPServer.prepare_request(self, request, client_address)
        seen.append(request.version())
        return prepared

    hooks = {"verify_request": verify_request, "prepare_request": prepare_request}
    server = running(make.server("thread", Upper, ssl.TLSVersion.TLSv1_3, **hooks))
    client = make.client(server)
    client.sendall(b"hello\n")
    assert read_all(client) == b"HELLO\n"
    assert seen == [None, "TLSv1.3"]


@each_model
def test_handle_request_takes_tls_connections_too(make: Make, model: str) -> None:
    """Without serve_forever(), too, the handshake comes after the accept, and the client is served."""
    with make.server(model, Upper) as server:
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        client = make.client(server)
        client.sendall(b"hello\n")
        assert read_all(client) == b"HELLO\n"
        thread.join(LIMIT)
        assert not thread.is_alive()


@each_concurrent_model
def test_a_client_in_the_middle_of_its_handshake_stops_nobody(running: Running, make: Make, model: str) -> None:
    """While some clients never come to an end of their handshakes, others are served and shutdown() returns."""
    server = running(make.server(model, Upper))
    with Stall(server) as silent, HalfHandshake(server) as halfway:
        client = make.client(server)
        client.sendall(b"hello\n")
        assert read_all(client) == b"HELLO\n"
        call_within(LIMIT, server.shutdown)
        for unfinished in (silent, halfway):
            leave(unfinished)


@each_model
def test_a_silent_client_is_refused_in_time(running: Running, make: Make, expect_log: ExpectLog, model: str) -> None:
    """A client that sends nothing has ``handshake_timeout`` seconds; then its connection is closed."""
    server = make.server(model, Upper, handshake_timeout=0.05)
    refusals = Refusals(server, expect_log, "TLS handshake failed: not done within 0.05 s")
    with Stall(running(server)) as client:
        assert client.read() == b""
    refusals.check()


def test_a_trickling_client_is_refused_in_time(running: Running, make: Make, expect_log: ExpectLog) -> None:
    """The limit is one for the whole handshake: a client that always sends one byte more does not get around it."""
    server = make.server("thread", Upper, handshake_timeout=0.2)
    refusals = Refusals(server, expect_log, "TLS handshake failed: not done within 0.2 s")
    # The hello announces 512 bytes: it is not complete before some of these intervals have passed without end.
    with Trickle(running(server), CLIENT_HELLO_START + bytes(480), interval=0.02) as client:
        refusals.check()
        assert client.sent < 491


def test_a_client_that_resets_in_its_handshake_is_one_line(running: Running, make: Make, expect_log: ExpectLog) -> None:
    """A connection that breaks in the handshake is refused."""
    server = make.server("thread", Upper)
    refusals = Refusals(server, expect_log, "TLS handshake failed: .*reset by peer")
    accepted = threading.Event()

    class Accepted(sockserve.Observer):
        def on_accept(self, server: Any, request: Any) -> None:
            accepted.set()

    server.add_observer(Accepted())
    with Reset(running(server), CLIENT_HELLO_START):
        assert accepted.wait(LIMIT)
    refusals.check()


@each_model
def test_plain_http_to_a_tls_port_is_one_line(running: Running, make: Make, expect_log: ExpectLog, model: str) -> None:
    """A client that speaks something else is refused, and its connection is closed, not reset."""
    server = make.server(model, Upper)
    refusals = Refusals(server, expect_log, "TLS handshake failed: http request")
    with Stall(running(server), b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + bytes(10_000)) as client:
        # A TLS alert at most.
        assert len(client.read()) < 20
        leave(client)
    refusals.check()


# Whatever ssl.SSLSocket.accept() raises, it leaves the connection to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
def test_a_client_that_left_before_it_was_accepted_is_survived(running: Running, make: Make) -> None:
    """A connection that was reset while it waited in the backlog, with a part of its hello or without, is no error."""
    gate = threading.Event()
    begun = threading.Event()

    class Handler(Upper):
        def handle(self) -> None:
            begun.set()
            assert gate.wait(LIMIT)
            super().handle()

    server = running(make.server("inline", Handler))
    first = make.client(server)
    assert begun.wait(LIMIT)
    with Reset(server), Reset(server, CLIENT_HELLO_START):
        pass
    gate.set()
    first.sendall(b"hello\n")
    assert read_all(first) == b"HELLO\n"
    second = make.client(server)
    second.sendall(b"hello\n")
    assert read_all(second) == b"HELLO\n"


@each_version
@each_model
def test_a_client_that_half_closes_gets_its_answer(
    running: Running, make: Make, model: str, version: ssl.TLSVersion
) -> None:
    """A client that properly ends its half of the TLS and of the TCP connection is answered all the same."""
    has_ended = Signal()

    class Patient(Length):
        def finish(self) -> None:
            has_ended.wait()
            super().finish()

        wbufsize = -1

    client = make.client(running(make.server(model, Patient, version)))
    client.sendall(bytes(100_000))
    # Python's unwrap() also looks for the answer to the close_notify, and loses data that it finds instead.
    close_notify(client, LIMIT)
    socket.socket.shutdown(client, socket.SHUT_WR)
    has_ended.set()
    assert read_all(client) == b"100000"


@each_version
def test_a_client_that_ends_only_its_tcp_half_gets_its_answer(
    running: Running, make: Make, version: ssl.TLSVersion
) -> None:
    """End-of-file without close_notify is the end of input, as ``suppress_ragged_eofs`` says, and of nothing else."""
    client = make.client(running(make.server("thread", Length, version)))
    client.sendall(bytes(100_000))
    socket.socket.shutdown(client, socket.SHUT_WR)
    assert read_all(client) == b"100000"


@each_version
@each_model
def test_a_drain_lets_a_handler_that_waits_say_goodbye(
    running: Running, make: Make, model: str, version: ssl.TLSVersion
) -> None:
    """A handler that waits for input sees end-of-file when a drain begins, and what it then writes arrives."""
    waiting = Signal()

    class Handler(sockserve.StreamRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            waiting.set()
            self.wfile.write(self.rfile.readline() + b"goodbye")

    server = running(make.server(model, Handler, version))
    client = make.client(server)
    assert waiting.wait()
    assert server.drain(LIMIT) == (1, 0)
    assert read_all(client) == b"goodbye"


@each_version
@each_model
def test_unread_input_does_not_cost_the_answer(
    running: Running, make: Make, model: str, version: ssl.TLSVersion
) -> None:
    """A client whose input was not read gets all of a large answer, and a proper end after it."""
    answer, sent = os.urandom(500_000), Signal()

    class Handler(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            assert sent.wait()
            self.request.sendall(answer)

    client = make.client(running(make.server(model, Handler, version)))
    client.sendall(bytes(50_000))
    wait_until_arrived(client)
    sent.set()
    assert read_all(client) == answer


@each_concurrent_model
def test_a_drain_ends_a_handshake_in_progress(running: Running, make: Make, expect_log: ExpectLog, model: str) -> None:
    """A client that has not begun its handshake when a drain begins does not hold it up."""
    server = make.server(model, Upper)
    refusals = Refusals(server, expect_log, "TLS handshake failed: .*")
    running(server)
    preparing = threading.Event()

    class Preparing(sockserve.Observer):
        def on_accept(self, server: Any, request: Any) -> None:
            preparing.set()

    server.add_observer(Preparing())
    with Stall(server):
        assert preparing.wait(LIMIT)
        assert server.drain(LIMIT) == (1, 0)
        refusals.check()


def test_shutdown_of_an_inline_server_waits_no_longer_than_a_handshake(running: Running, make: Make) -> None:
    """Inline a silent client holds the loop for ``handshake_timeout`` seconds and no longer."""
    server = running(make.server("inline", Upper, handshake_timeout=0.1))
    with Stall(server):
        call_within(LIMIT, server.shutdown)


@each_model
def test_connections_may_be_wrapped_by_get_request(running: Running, make: Make, model: str) -> None:
    """A server that wraps each accepted connection, and leaves the handshake for later, gets it in the worker."""
    context = server_context(make.certificate)

    def get_request(server: Any) -> Any:
        request, client_address = SERVERS[model].get_request(server)
        wrapped = context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        return wrapped, client_address

    server = running(type("Server", (SERVERS[model],), {"get_request": get_request})(LOOPBACK, Upper))
    client = make.client(server)
    client.sendall(b"hello\n")
    assert read_all(client) == b"HELLO\n"


@each_model
def test_connections_may_be_wrapped_by_prepare_request(
    running: Running, make: Make, expect_log: ExpectLog, model: str
) -> None:
    """What ``prepare_request()`` returns is what is served, closed, and known as the request in progress."""
    context = server_context(make.certificate)

    def prepare_request(server: Any, request: Any, client_address: Any) -> Any:
        wrapped = context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        return SERVERS[model].prepare_request(server, wrapped, client_address)

    class Handler(Upper):
        def handle(self) -> None:
            (live,) = self.server.active_requests
            assert live.handler is self
            super().handle()

    server = running(type("Server", (SERVERS[model],), {"prepare_request": prepare_request})(LOOPBACK, Handler))
    client = make.client(server)
    client.sendall(b"hello\n")
    assert read_all(client) == b"HELLO\n"
    refused = expect_log(logging.INFO, "^refused .*: TLS handshake failed: http request$")
    with Stall(server, b"GET / HTTP/1.1\r\n\r\n") as plain:
        assert len(plain.read()) < 20
        leave(plain)
    assert len(refused.wait()) == 1


def test_many_records_both_ways(running: Running, make: Make) -> None:
    """A connection that is kept carries many records of every size both ways."""

    class Handler(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            while data := self.request.recv(65536):
                self.request.sendall(data)

    client = make.client(running(make.server("thread", Handler)))
    for size in (1, 10, 11, 16_384, 16_385, 100_000):
        data = os.urandom(size)
        client.sendall(data)
        received = b""
        while len(received) < size:
            received += client.recv(65536)
        assert received == data
