"""A new connection whose client speaks first holds no thread of a pool until it does."""

from __future__ import annotations

import contextlib
import http.server
import pathlib
import select
import socket
import ssl
from typing import Any

import pytest
from support.certificates import client_context, server_context
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, connect

LOOPBACK = ("127.0.0.1", 0)


class Lines(sockserve.StreamRequestHandler[Any, Any, Any]):
    """Answers a line in upper case, and counts itself."""

    client_speaks_first = True
    made = 0

    def setup(self) -> None:
        """Count."""
        super().setup()
        type(self).made += 1

    def handle(self) -> None:
        """Answer."""
        self.wfile.write(self.rfile.readline(100).upper())


class Page(sockserve.HTTPKeepAliveMixIn, http.server.BaseHTTPRequestHandler):
    """One page."""

    protocol_version = "HTTP/1.1"
    made = 0

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        """Write nothing."""


def pool(handler: Any, **attributes: Any) -> Any:
    """A server with these attributes, and a handler class of its own."""
    handler = type("Handler", (handler,), {})
    return type("Server", (sockserve.ThreadPoolTCPServer,), {"max_workers": 1} | attributes)(LOOPBACK, handler)


def wait_until_parked(server: Any, count: int) -> None:
    """Return as soon as so many requests are in progress, all of them parked."""
    wait_until(lambda: [request.state for request in server.active_requests] == ["parked"] * count)


@pytest.mark.parametrize("poller", ["epoll", "selector"])
@pytest.mark.parametrize(
    ("handler", "exchange"),
    [(Lines, (b"hello\n", b"HELLO\n")), (Page, (b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 OK"))],
    ids=["lines", "HTTP"],
)
def test_eight_silent_clients_and_a_pool_of_eight(
    running: Running, monkeypatch: pytest.MonkeyPatch, handler: Any, exchange: tuple[bytes, bytes], poller: str
) -> None:
    """The ninth is answered at once; so are the eight, when they speak."""
    question, answer = exchange
    if poller == "selector":
        monkeypatch.delattr(select, "epoll")
    server = running(pool(handler, max_workers=8))
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(server, timeout=LIMIT)) for _ in range(8)]
        assert ask(server, question, timeout=LIMIT).startswith(answer)
        wait_until_parked(server, 8)
        assert {request.handler for request in server.active_requests} == {None}
        for client in silent:
            client.sendall(question)
            assert client.recv(100).startswith(answer)


def test_a_handler_that_greets_is_not_kept_from_that(running: Running) -> None:
    """Without the word of its class a handler runs as soon as its client is there."""

    class Greeter(sockserve.StreamRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            self.wfile.write(b"220 hello\r\n")

    server = running(pool(Greeter))
    with connect(server, timeout=LIMIT) as client:
        assert client.recv(100) == b"220 hello\r\n"


def test_a_silence_longer_than_the_handlers_timeout_is_the_end(running: Running) -> None:
    """The handler sees the end of input, and nothing else is different for one that spoke in time."""

    class Hasty(Lines):
        timeout = 0.1

    server = running(pool(Hasty))
    with connect(server, timeout=LIMIT) as silent:
        assert ask(server, b"hello\n", timeout=LIMIT) == b"HELLO\n"
        assert silent.recv(100) == b""
    wait_until(lambda: not server.active_requests)
    assert server.RequestHandlerClass.made == 2


@pytest.mark.parametrize("end", ["half-close", "reset", "drain"])
def test_a_client_that_leaves_without_a_word_is_let_go(running: Running, end: str) -> None:
    """Half-closed, reset or drained: its handler runs for the end of its input, and nothing is left."""
    server = running(pool(Lines))
    with connect(server, timeout=LIMIT) as client:
        wait_until_parked(server, 1)
        if end == "half-close":
            client.shutdown(socket.SHUT_WR)
        elif end == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
        else:
            assert server.drain(LIMIT) == (1, 0)
        if end != "reset":
            assert client.recv(100) == b""
    wait_until(lambda: not server.active_requests)
    assert server.RequestHandlerClass.made == 1


def test_over_tls_the_first_word_comes_after_the_handshake(running: Running, certificate: pathlib.Path) -> None:
    """The only worker serves others while a client that has shaken hands says nothing."""
    server = pool(Lines)
    server.tls = server_context(certificate)
    running(server)
    context = client_context(certificate)
    with contextlib.ExitStack() as stack:

        def secure() -> ssl.SSLSocket:
            plain = stack.enter_context(socket.create_connection(server.server_address, LIMIT))
            return stack.enter_context(context.wrap_socket(plain, server_hostname="localhost"))

        silent, other = secure(), secure()
        for client in (other, silent):
            client.sendall(b"hello\n")
            assert client.recv(100) == b"HELLO\n"
