"""``detach_request()``: a handler gives its connection to somebody else, and the server lets go of it."""

from __future__ import annotations

import logging
import pathlib
import queue
import socket
import socketserver
import threading
from typing import Any

import pytest
from support.certificates import client_context, server_context
from support.handlers import Boom
from support.log_watch import ExpectLog
from support.under_test import LIMIT

import sockserve
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, connect

LOOPBACK = ("127.0.0.1", 0)

each_model = pytest.mark.parametrize("server_class", [sockserve.TCPServer, sockserve.ThreadingTCPServer])


class HandsOn(sockserve.StreamRequestHandler[Any, Any, Any]):
    """Reads one line, then hands the connection on, with what it had read ahead."""

    taken: queue.Queue[tuple[socket.socket, bytes]]

    def handle(self) -> None:
        """Hand it on."""
        if self.rfile.readline() == b"stay\n":
            self.wfile.write(b"stayed")
        else:
            # peek() would wait for more if nothing had been read ahead.
            self.connection.setblocking(False)
            try:
                ahead = self.rfile.peek()  # type: ignore[attr-defined]
            finally:
                self.connection.setblocking(True)
            self.taken.put((self.detach_request(), ahead))


@pytest.fixture
def handler() -> Any:
    """Make the handler class, with a queue of its own."""
    return type("Handler", (HandsOn,), {"taken": queue.Queue()})


@each_model
def test_a_detached_connection_outlives_its_request(running: Running, handler: Any, server_class: Any) -> None:
    """Whoever takes it has what was read ahead, can read on and write, and ends it; the server serves others."""
    server = running(server_class(LOOPBACK, handler))
    with connect(server) as client:
        client.sendall(b"hello\nread ahead")
        connection, ahead = handler.taken.get(timeout=LIMIT)
        with connection:
            assert ask(server, b"stay\n") == b"stayed"
            assert server.wait_idle(LIMIT)
            client.sendall(b" and more")
            received = ahead
            while len(received) < len(b"read ahead and more"):
                received += connection.recv(100)
            assert received == b"read ahead and more"
            connection.sendall(b"later")
            assert client.recv(100) == b"later"
        assert client.recv(100) == b""


@each_model
def test_an_error_after_it_was_detached_does_not_close_it(
    running: Running, handler: Any, expect_log: ExpectLog, server_class: Any
) -> None:
    """A handler that fails after it gave its connection away is reported, and the connection lives on."""
    expected = expect_log(logging.ERROR, "Boom")

    class Handler(handler):  # type: ignore[misc]
        def handle(self) -> None:
            super().handle()
            raise Boom

    server = running(server_class(LOOPBACK, Handler))
    with connect(server) as client:
        client.sendall(b"hello\n")
        connection, _ = handler.taken.get(timeout=LIMIT)
        with connection:
            assert server.wait_idle(LIMIT)
            assert len(expected.wait()) == 1
            connection.sendall(b"later")
            assert client.recv(100) == b"later"


def test_what_the_handler_wrote_before_is_sent_first(running: Running, handler: Any) -> None:
    """finish() still runs: the buffered answer is on its way before the request is over."""

    class Handler(handler):  # type: ignore[misc]
        wbufsize = -1

        def handle(self) -> None:
            self.wfile.write(b"first ")
            super().handle()

    server = running(sockserve.ThreadingTCPServer(LOOPBACK, Handler))
    with connect(server) as client:
        client.sendall(b"hello\n")
        connection, _ = handler.taken.get(timeout=LIMIT)
        with connection:
            assert server.wait_idle(LIMIT)
            connection.sendall(b"second")
        received = b""
        while chunk := client.recv(100):
            received += chunk
        assert received == b"first second"


def test_a_tls_connection_is_handed_on_as_it_is(running: Running, handler: Any, certificate: pathlib.Path) -> None:
    """A detached TLS connection is an SSLSocket that goes on encrypting, and is not told to end."""
    server = sockserve.ThreadingTCPServer(LOOPBACK, handler)
    server.socket = server_context(certificate).wrap_socket(server.socket, server_side=True)
    plain = connect(running(server), timeout=LIMIT)
    with client_context(certificate).wrap_socket(plain, server_hostname="localhost") as client:
        client.sendall(b"hello\nread ahead")
        connection, ahead = handler.taken.get(timeout=LIMIT)
        with connection:
            assert server.wait_idle(LIMIT)
            assert ahead == b"read ahead"
            client.sendall(b"more")
            assert connection.recv(100) == b"more"
            connection.sendall(b"later")
            assert client.recv(100) == b"later"


@pytest.mark.usefixtures("short_grace")
def test_neither_a_drain_nor_its_end_touches_it(running: Running, handler: Any, expect_log: ExpectLog) -> None:
    """While the handler that detached its connection still runs, a drain neither ends its input nor cuts it."""
    expect_log(logging.WARNING, "cut ", at_least=0)
    opened = threading.Event()

    class Handler(handler):  # type: ignore[misc]
        def handle(self) -> None:
            super().handle()
            assert opened.wait(LIMIT)

    server = running(sockserve.ThreadingTCPServer(LOOPBACK, Handler))
    with connect(server) as client:
        client.sendall(b"hello\n")
        connection, _ = handler.taken.get(timeout=LIMIT)
        with connection:
            server.drain(0.02)
            client.sendall(b"more")
            assert connection.recv(100) == b"more"
            connection.sendall(b"later")
            assert client.recv(100) == b"later"
        opened.set()


def test_a_server_that_cannot_let_go_is_an_error(running: Running, handler: Any) -> None:
    """On the standard library's server, which would close the connection, it raises instead of promising too much."""
    errors = []

    class Handler(handler):  # type: ignore[misc]
        def handle(self) -> None:
            with pytest.raises(RuntimeError, match="Server does not let go of requests") as caught:
                self.detach_request()
            errors.append(caught.value)

    class Server(socketserver.TCPServer):
        pass

    assert ask(running(Server(LOOPBACK, Handler), poll_interval=0.01), b"") == b""
    assert len(errors) == 1
