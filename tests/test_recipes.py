"""What programs in the wild do with ``socketserver``, each in the fewest lines that still do it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import http.client
import http.server
import io
import pathlib
import socket
import threading
import wsgiref.simple_server
from collections.abc import Iterable
from typing import Any

import pytest
from support.handlers import Boom, handlers
from support.under_test import IS_STDLIB, LIMIT, S
from support.waiting import wait_until

from sockserve.pytest_plugin import Running
from sockserve.testing import ask, call_within, connect

LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture
def echo() -> Any:
    """A handler that echoes."""
    return handlers(S).Echo


def check_echo(server: Any) -> None:
    """The server answers."""
    assert ask(server, b"hello", timeout=LIMIT) == b"hello"


# who runs the handler


def test_requests_submitted_to_an_executor(running: Running, echo: Any) -> None:
    """A bounded pool of the program's own runs ``process_request_thread``; each request is counted once."""
    with concurrent.futures.ThreadPoolExecutor(2) as executor:

        class Server(S.ThreadingMixIn, S.TCPServer):  # type: ignore[misc]
            def process_request(self, request: Any, client_address: Any) -> None:
                executor.submit(self.process_request_thread, request, client_address)

        server = running(Server(LOOPBACK, echo), poll_interval=0.01)
        counters = None if IS_STDLIB else S.Counters()
        if counters is not None:
            server.add_observer(counters)
        with contextlib.ExitStack() as stack:
            # Three at once, for two workers.
            clients = [stack.enter_context(connect(server, timeout=LIMIT)) for _ in range(3)]
            if counters is not None:
                wait_until(lambda: counters.accepted == 3)
                assert len(server.active_requests) == 3
            for client in clients:
                client.sendall(b"hello")
                client.shutdown(socket.SHUT_WR)
                assert client.recv(10) == b"hello"
        if counters is not None:
            assert server.wait_idle(LIMIT)
            assert (counters.accepted, counters.handled, counters.active) == (3, 3, 0)


def test_a_thread_class_of_the_programs_own(running: Running, echo: Any) -> None:
    """``process_request`` starts a thread on ``process_request_thread`` and keeps it."""
    threads = []

    class Server(S.ThreadingMixIn, S.TCPServer):  # type: ignore[misc]
        def process_request(self, request: Any, client_address: Any) -> None:
            thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), name="mine")
            threads.append(thread)
            thread.start()

    server = running(Server(LOOPBACK, echo), poll_interval=0.01)
    check_echo(server)
    check_echo(server)
    for thread in threads:
        thread.join(LIMIT)
    assert len(threads) == 2


def test_requests_that_are_kept_and_served_later(echo: Any) -> None:
    """What ``process_request`` puts aside stays open until the program ends it with ``shutdown_request``."""

    class Server(S.TCPServer):  # type: ignore[misc]
        kept: list[Any]

        def process_request(self, request: Any, client_address: Any) -> None:
            self.kept = [request, client_address]

    with Server(LOOPBACK, echo) as server, connect(server, timeout=LIMIT) as client:
        server.handle_request()
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        server.finish_request(*server.kept)
        server.shutdown_request(server.kept[0])
        assert client.recv(10) == b"hello"
        assert client.recv(10) == b""


def test_django(running: Running) -> None:
    """A class made at run time, daemon threads asked for after construction, connections closed in the worker."""
    closed_in = []

    class WSGIServer(wsgiref.simple_server.WSGIServer):
        def __init__(self, *args: Any, ipv6: bool = False, **kwargs: Any) -> None:
            if ipv6:
                self.address_family = socket.AF_INET6
            super().__init__(*args, **kwargs)

    class ThreadedWSGIServer(S.ThreadingMixIn, WSGIServer):  # type: ignore[misc]
        daemon_threads = True

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            super().process_request_thread(request, client_address)
            closed_in.append((threading.current_thread(), "after the request"))

        def close_request(self, request: Any) -> None:
            closed_in.append((threading.current_thread(), "with the request"))
            super().close_request(request)

    def application(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [threading.current_thread().name.encode(), b"|", environ["PATH_INFO"].encode()]

    class Quiet(wsgiref.simple_server.WSGIRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server_class = type("Runserver", (ThreadedWSGIServer,), {})
    server = server_class(("127.0.0.1", 0), Quiet)
    server.daemon_threads = False
    server.set_app(application)
    running(server, poll_interval=0.01)
    name, path = ask(server, b"GET /path HTTP/1.0\r\n\r\n", timeout=LIMIT).rpartition(b"\r\n\r\n")[2].split(b"|")
    assert path == b"/path"
    wait_until(lambda: len(closed_in) == 2)
    assert [(thread.name.encode(), thread.daemon, when) for thread, when in closed_in] == [
        (name, False, "with the request"),
        (name, False, "after the request"),
    ]


# construction, and other sockets


def test_attributes_before_the_constructor(running: Running, echo: Any) -> None:
    """Settings and the program's own attributes are set before ``super().__init__()`` runs; a factory is a handler."""

    def handler_made_by(owner: Any, request: Any, client_address: Any, server: Any) -> Any:
        assert owner is server
        return echo(request, client_address, server)

    class Server(S.ThreadingMixIn, S.TCPServer):  # type: ignore[misc]
        def __init__(self, application: str) -> None:
            self.application = application
            self.allow_reuse_address = True
            self.request_queue_size = 7
            self.daemon_threads = True
            self.timeout = 1
            self.address_family = socket.AF_INET6
            super().__init__(("::1", 0), functools.partial(handler_made_by, self))

        def server_bind(self) -> None:
            assert self.application == "mine"
            super().server_bind()

    server = running(Server("mine"), poll_interval=0.01)
    assert server.socket.family == socket.AF_INET6
    check_echo(server)


@pytest.mark.parametrize("model", ["ThreadingTCPServer", "ForkingTCPServer", "TCPServer"])
def test_an_inherited_descriptor_takes_the_sockets_place(running: Running, model: str, echo: Any) -> None:
    """After ``server_close()`` a listening socket from elsewhere is put in and served, by either loop."""
    server = getattr(S, model)(LOOPBACK, echo)
    inherited = socket.create_server(LOOPBACK)
    server.server_close()
    server.socket = socket.socket(fileno=inherited.detach())
    server.server_address = server.socket.getsockname()
    with connect(server, timeout=LIMIT) as client:
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        server.handle_request()
        assert client.recv(10) == b"hello"
    check_echo(running(server, poll_interval=0.01))


def test_a_socket_that_was_never_bound_is_replaced(running: Running, echo: Any) -> None:
    """``bind_and_activate=False``, then a socket that somebody else prepared, listening or about to."""
    server = S.TCPServer(LOOPBACK, echo, bind_and_activate=False)
    server.socket.close()
    server.socket = socket.socket()
    server.socket.bind(LOOPBACK)
    server.server_activate()
    check_echo(running(server, poll_interval=0.01))


def test_a_server_is_constructed_again(running: Running, echo: Any) -> None:
    """``__init__`` runs a second time on the same object, on the same address, after it has served and was closed."""
    server = S.ThreadingTCPServer(LOOPBACK, echo)
    for _ in range(3):
        loop = threading.Thread(target=server.serve_forever, args=(0.01,))
        loop.start()
        check_echo(server)
        call_within(LIMIT, server.shutdown)
        loop.join(LIMIT)
        server.server_close()
        server.allow_reuse_address = True
        server.__init__(server.server_address, echo)
    check_echo(running(server, poll_interval=0.01))


def test_a_server_that_connects(echo: Any) -> None:
    """``server_activate`` connects instead of listening, and ``get_request`` gives the socket itself (idlelib)."""

    class Server(S.TCPServer):  # type: ignore[misc]
        def server_bind(self) -> None:
            pass

        def server_activate(self) -> None:
            self.socket.connect(self.server_address)

        def get_request(self) -> Any:
            return self.socket, self.server_address

        def handle_error(self, request: Any, client_address: Any) -> None:
            raise  # noqa: PLE0704 - the hook is called inside the except

    with socket.create_server(LOOPBACK) as listener, Server(listener.getsockname(), echo) as server:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"hello")
            peer.shutdown(socket.SHUT_WR)
            server.handle_request()
            assert peer.recv(10) == b"hello"
            assert peer.recv(10) == b""
    with socket.create_server(LOOPBACK) as listener, Server(listener.getsockname(), handlers(S).Crash) as server:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"hello")
            with pytest.raises(Boom):
                server.handle_request()


@pytest.mark.parametrize("mix_in", ["ThreadingMixIn", "ForkingMixIn"])
def test_http_server_at_a_unix_path(running: Running, mix_in: str, tmp_path: pathlib.Path) -> None:
    """``address_family`` alone makes a web server listen at a path."""

    class Server(getattr(S, mix_in), http.server.HTTPServer):  # type: ignore[misc]
        address_family = socket.AF_UNIX

        def server_bind(self) -> None:
            self.socket.bind(self.server_address)

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200)
            self.end_headers()
            self.wfile.write(self.path.encode())

    running(Server(f"{tmp_path}/s", Page), poll_interval=0.01)
    answer = ask(f"unix:{tmp_path}/s", b"GET /page HTTP/1.0\r\n\r\n", timeout=LIMIT)
    assert answer.endswith(b"\r\n\r\n/page")


# objects whose constructor never ran


def test_a_handler_over_files_and_a_server_without_a_socket() -> None:
    """``finish_request`` with two files as the request, on a server that only ran ``BaseServer.__init__`` (wsgiref)."""

    class Server(S.TCPServer):  # type: ignore[misc]
        def __init__(self, server_address: Any, handler: Any) -> None:
            S.BaseServer.__init__(self, server_address, handler)
            self.server_bind()

        def server_bind(self) -> None:
            self.name, self.port = self.server_address

    class Handler(S.StreamRequestHandler):  # type: ignore[misc]
        def setup(self) -> None:
            self.connection = self.request
            self.rfile, self.wfile = self.connection

        def handle(self) -> None:
            self.wfile.write(self.rfile.readline().upper())

        def finish(self) -> None:
            pass

    server = Server(("name", 80), Handler)
    files = io.BytesIO(b"hello\n"), io.BytesIO()
    server.finish_request(files, ("127.0.0.1", 8888))
    assert files[1].getvalue() == b"HELLO\n"


def test_a_server_without_any_constructor(echo: Any) -> None:
    """``__new__`` alone, a socket put in, and one request is taken; then all is closed."""
    server = S.ThreadingTCPServer.__new__(S.ThreadingTCPServer)
    server.RequestHandlerClass = echo
    server.socket = socket.create_server(LOOPBACK)
    server.block_on_close = True
    with connect(server, timeout=LIMIT) as client:
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        server.handle_request()
        assert client.recv(10) == b"hello"
    server.server_close()
