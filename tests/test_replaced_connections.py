"""Handlers that replace their connection: what ends it reaches the socket that they use."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.certificates import client_context, server_context
from support.log_watch import ExpectLog
from support.models import SERVERS
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.core.replaced import reach
from sockserve.core.serving import table_of
from sockserve.net.closing import cut
from sockserve.pytest_plugin import Running
from sockserve.testing import connect

LOOPBACK = ("127.0.0.1", 0)
CONTEXTS: list[ssl.SSLContext] = []


@pytest.fixture(scope="module", autouse=True)
def context_of_the_handlers(certificate: pathlib.Path) -> None:
    """The handlers know it."""
    CONTEXTS[:] = [server_context(certificate)]


class WrapsInSetup(sockserve.StreamRequestHandler):
    """Begins TLS by itself, and answers line by line."""

    def setup(self) -> None:
        """Begin TLS."""
        self.request = CONTEXTS[0].wrap_socket(self.request, server_side=True)
        super().setup()

    def handle(self) -> None:
        """Answer."""
        for line in self.rfile:
            self.wfile.write(line.upper())


class StartTLS(sockserve.StreamRequestHandler):
    """Begins TLS when it was asked for it."""

    def handle(self) -> None:
        """Answer."""
        self.rfile.readline()
        self.wfile.write(b"GO\n")
        self.rfile.close()
        self.connection = CONTEXTS[0].wrap_socket(self.connection, server_side=True)
        while data := self.connection.recv(100):
            self.connection.sendall(data.upper())


class Detaches(sockserve.BaseRequestHandler):
    """Goes on with another object, which only its own frame knows."""

    def handle(self) -> None:
        """Answer."""
        with socket.socket(fileno=self.request.detach()) as connection:
            while data := connection.recv(100):
                connection.sendall(data.upper())


HANDLERS = [WrapsInSetup, StartTLS, Detaches]


@contextlib.contextmanager
def conversation(server: Any, handler: Any, certificate: pathlib.Path) -> Iterator[socket.socket]:
    """Talk to a server until the connection is the one that its handler goes on with."""
    with connect(server, timeout=LIMIT) as plain:
        client: socket.socket = plain
        if handler is StartTLS:
            plain.sendall(b"begin\n")
            assert plain.recv(10) == b"GO\n"
        if handler is not Detaches:
            client = client_context(certificate).wrap_socket(plain, server_hostname="localhost")
        with client:
            client.sendall(b"hello\n")
            assert client.recv(10) == b"HELLO\n"
            yield client
            # A forked child has a copy of it.
            cut(client)


def read_end(client: socket.socket) -> bytes:
    """Read until the end, in whichever way it comes."""
    try:
        return client.recv(10)
    except OSError:
        return b""


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("model", ["thread", "pool"])
def test_a_drain_reaches_it(running: Running, certificate: pathlib.Path, model: str, handler: Any) -> None:
    """The handler sees the end of its input, and ends."""
    server: Any = running(SERVERS[model](LOOPBACK, handler))
    with conversation(server, handler, certificate) as client:
        assert server.drain(LIMIT) == (1, 0)
        assert read_end(client) == b""


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("model", ["thread", "pool"])
def test_a_cut_reaches_it(
    running: Running, certificate: pathlib.Path, expect_log: ExpectLog, model: str, handler: Any
) -> None:
    """A handler that a drain did not end loses its connection."""
    expect_log(logging.WARNING, "cut .* in progress")
    server: Any = type("Server", (SERVERS[model],), {"drain_request": lambda *_: None})(LOOPBACK, handler)
    running(server)
    with conversation(server, handler, certificate) as client:
        assert server.drain(0.05) == (0, 1)
        assert read_end(client) == b""
    assert server.wait_idle(LIMIT)


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_drain_reaches_it_in_a_child(running: Running, certificate: pathlib.Path, handler: Any) -> None:
    """SIGTERM ends the input of what the child's handler uses."""
    server: Any = running(sockserve.ForkingTCPServer(LOOPBACK, handler))
    with conversation(server, handler, certificate) as client:
        (pid,) = server.active_children
        os.kill(pid, signal.SIGTERM)
        assert server.wait_idle(LIMIT)
        assert read_end(client) == b""


def test_no_other_connection_is_taken_for_it(running: Running) -> None:
    """What a handler closed by itself may have given its descriptor's number to another connection."""
    closed, goes_on = threading.Event(), threading.Event()

    class Handler(sockserve.BaseRequestHandler):
        def handle(self) -> None:
            """Close, or answer."""
            if self.request.recv(1) == b"x":
                self.request.close()
                closed.set()
                assert goes_on.wait(LIMIT)
            else:
                self.request.sendall(b"answer")

    server = running(sockserve.ThreadingTCPServer(LOOPBACK, Handler))
    with connect(server, timeout=LIMIT) as first, connect(server, timeout=LIMIT) as second:
        first.sendall(b"x")
        assert closed.wait(LIMIT)
        drained: list[Any] = []
        draining = threading.Thread(target=lambda: drained.append(server.drain(LIMIT)))
        wait_until(lambda: len(table_of(server).all()) == 2)
        table = table_of(server).all()
        for live in table:
            reach(live, lambda connection: drained.append(connection.fileno() >= 0))
        assert drained == [True]
        drained.clear()
        second.sendall(b"y")
        assert second.recv(10) == b"answer"
        draining.start()
        goes_on.set()
        draining.join()
    assert drained[0].cut == 0


@pytest.mark.parametrize("handler", [WrapsInSetup, StartTLS])
@pytest.mark.parametrize("model", ["inline", "thread", "pool"])
def test_it_is_closed_with_its_request(running: Running, certificate: pathlib.Path, model: str, handler: Any) -> None:
    """With a proper end of TLS, though an observer still holds the handler."""
    handlers: list[Any] = []

    class Handler(handler):  # type: ignore[misc]
        def finish(self) -> None:
            handlers.append(self)
            super().finish()

    server: Any = running(SERVERS[model](LOOPBACK, Handler))
    with connect(server, timeout=LIMIT) as plain:
        if handler is StartTLS:
            plain.sendall(b"begin\n")
            assert plain.recv(10) == b"GO\n"
        wrapped = client_context(certificate).wrap_socket(
            plain, server_hostname="localhost", suppress_ragged_eofs=False
        )
        with wrapped:
            wrapped.sendall(b"hello\n")
            assert wrapped.recv(10) == b"HELLO\n"
            # Waits for the server's close_notify.
            with wrapped.unwrap() as bare:
                assert bare.recv(10) == b""
    assert server.wait_idle(LIMIT)
    assert handlers[0].connection.fileno() == -1
