"""What programs in the wild do with the loop of ``socketserver``: replace it, feed it, and stop it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pathlib
import select
import threading
from typing import Any

import pytest
from support.certificates import client_context, server_context
from support.handlers import handlers
from support.under_test import LIMIT, S

from sockserve.pytest_plugin import Running
from sockserve.testing import ask, connect

LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture
def echo() -> Any:
    """A handler that echoes."""
    return handlers(S).Echo


def check_echo(server: Any) -> None:
    """The server answers."""
    assert ask(server, b"hello", timeout=LIMIT) == b"hello"


def test_a_loop_of_the_programs_own(echo: Any) -> None:
    """``select`` over the server and other files, one ``handle_request`` for each time the server is ready."""
    reader, writer = os.pipe()
    with S.ThreadingTCPServer(LOOPBACK, echo) as server, concurrent.futures.ThreadPoolExecutor(5) as clients:
        asked = [clients.submit(ask, server, b"hello", timeout=LIMIT) for _ in range(5)]
        clients.submit(lambda: [each.result() for each in asked] and os.write(writer, b"stop"))
        while True:
            readable, _, _ = select.select([server, reader], [], [], LIMIT)
            if reader in readable or not readable:
                break
            server.handle_request()
        assert readable == [reader]
        assert [each.result() for each in asked] == [b"hello"] * 5
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("model", ["TCPServer", "ThreadingTCPServer", "ForkingTCPServer"])
def test_a_loop_over_handle_request_until_it_is_told_to_stop(model: str, echo: Any) -> None:
    """``timeout`` makes ``handle_request`` return, and ``handle_timeout`` says that nobody came."""
    stop, nobody_came = threading.Event(), threading.Event()

    class Server(getattr(S, model)):  # type: ignore[misc]
        timeout = 0.01

        def handle_timeout(self) -> None:
            super().handle_timeout()
            nobody_came.set()

        def serve_until_stopped(self) -> None:
            while not stop.is_set():
                self.handle_request()

    with Server(LOOPBACK, echo) as server:
        loop = threading.Thread(target=server.serve_until_stopped)
        loop.start()
        check_echo(server)
        assert nobody_came.wait(LIMIT)
        check_echo(server)
        stop.set()
        loop.join(LIMIT)
        assert not loop.is_alive()


def test_the_selector_of_the_module(echo: Any) -> None:
    """A loop that takes ``_ServerSelector`` and ``_handle_request_noblock`` from the module does what it did."""
    with S.TCPServer(LOOPBACK, echo) as server, S._ServerSelector() as selector:
        selector.register(server, 1)
        with concurrent.futures.ThreadPoolExecutor(1) as client:
            asked = client.submit(ask, server, b"hello", timeout=LIMIT)
            assert selector.select(LIMIT)
            server._handle_request_noblock()
            assert asked.result() == b"hello"


def test_a_get_request_that_waits_in_a_loop_of_its_own(running: Running, echo: Any) -> None:
    """``get_request`` sets a time-out and tries accept() until it succeeds or the program stops."""

    class Server(S.TCPServer):  # type: ignore[misc]
        stopped = False

        def get_request(self) -> Any:
            self.socket.settimeout(0.01)
            while not self.stopped:
                try:
                    request, client_address = self.socket.accept()
                except TimeoutError:
                    continue
                request.settimeout(None)
                return request, client_address
            raise OSError("stopped")

    server = Server(LOOPBACK, echo)
    with concurrent.futures.ThreadPoolExecutor(1) as client:
        asked = client.submit(ask, server, b"hello", timeout=LIMIT)
        # Without a look at the socket first.
        server._handle_request_noblock()
        assert asked.result() == b"hello"
    running(server, poll_interval=0.01)
    check_echo(server)
    check_echo(server)
    server.stopped = True


def test_tls_that_begins_in_get_request(running: Running, echo: Any, certificate: pathlib.Path) -> None:
    """``get_request`` wraps what it accepted; a client that fails the handshake costs the others nothing."""
    context = server_context(certificate)

    class Server(S.ThreadingMixIn, S.TCPServer):  # type: ignore[misc]
        def get_request(self) -> Any:
            request, client_address = super().get_request()
            try:
                return context.wrap_socket(request, server_side=True), client_address
            except OSError:
                request.close()
                raise

    server = running(Server(LOOPBACK, echo), poll_interval=0.01)
    for _ in range(2):
        with contextlib.suppress(ConnectionResetError):
            assert b"no TLS" not in ask(server, b"this is no TLS at all", timeout=LIMIT)
        with (
            connect(server, timeout=LIMIT) as client,
            client_context(certificate).wrap_socket(client, server_hostname="localhost") as wrapped,
        ):
            wrapped.sendall(b"hello")
            assert wrapped.recv(10) == b"hello"


def test_the_flag_that_is_private_in_name_only() -> None:
    """A handler ends the loop by setting the mangled attribute, and the program waits for the mangled event."""

    class Quit(S.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.server._BaseServer__shutdown_request = True

    with S.TCPServer(LOOPBACK, Quit) as server:
        loop = threading.Thread(target=server.serve_forever, args=(0.01,))
        loop.start()
        assert ask(server, b"", timeout=LIMIT) == b""
        assert server._BaseServer__is_shut_down.wait(LIMIT)
        loop.join(LIMIT)
        assert not loop.is_alive()


def test_a_handler_asks_a_thread_to_shut_down() -> None:
    """``threading.Thread(target=self.server.shutdown)``, the recipe of the answers on the web."""

    class Quit(S.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            threading.Thread(target=self.server.shutdown).start()

    with S.ThreadingTCPServer(LOOPBACK, Quit) as server:
        loop = threading.Thread(target=server.serve_forever, args=(0.01,))
        loop.start()
        assert ask(server, b"", timeout=LIMIT) == b""
        loop.join(LIMIT)
        assert not loop.is_alive()
