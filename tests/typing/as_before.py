"""What programs write against typeshed's ``socketserver``: it checks with one import changed, and it runs."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import json
import select
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Generator
from typing import Any

import sockserve as socketserver

Request = socket.socket | tuple[bytes, socket.socket]


class LogHandler(socketserver.StreamRequestHandler):
    """Uses whatever a stream handler has."""

    timeout = 10
    rbufsize = 4096
    wbufsize = 0
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Count."""
        super().setup()
        assert isinstance(self.server, LogServer)
        self.server.clients.append(self.client_address)

    def handle(self) -> None:
        """Read and write in every way."""
        host: str = self.client_address[0]
        first = self.rfile.readline().decode().strip()
        rest = self.rfile.read1(1024)
        self.wfile.write(f"{host} {first}\n".encode() + rest)
        self.wfile.flush()
        if first == "json":
            document: dict[str, str] = json.load(self.rfile)
            self.wfile.write(json.dumps(document).encode())
        if first == "lines":
            for line in self.rfile:
                self.wfile.write(line.upper())
        if first == "copy":
            shutil.copyfileobj(self.rfile, self.wfile)
        if isinstance(self.request, ssl.SSLSocket):
            self.wfile.write(repr(self.request.cipher()).encode())
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def finish(self) -> None:
        """End."""
        if not self.wfile.closed:
            super().finish()


class MemoryHandler(socketserver.StreamRequestHandler):
    """Gives itself other files and another constructor."""

    def __init__(
        self, request: Request, client_address: Any, server: socketserver.BaseServer, greeting: bytes = b""
    ) -> None:
        self.greeting = greeting
        super().__init__(request, client_address, server)

    def setup(self) -> None:
        """Open files."""
        self.rfile = io.BytesIO(b"a line\n")
        self.wfile = io.BytesIO()

    def handle(self) -> None:
        """Answer on the bare socket."""
        self.request.sendall(self.greeting + self.rfile.readline())


class PacketHandler(socketserver.DatagramRequestHandler):
    """Answers a datagram through the files and through the socket."""

    def handle(self) -> None:
        """Answer."""
        self.wfile.write(self.packet + self.rfile.read())
        self.socket.sendto(self.packet, self.client_address)


class BareHandler(socketserver.BaseRequestHandler):
    """Takes the pair that a datagram is."""

    request: tuple[bytes, socket.socket]

    def handle(self) -> None:
        """Answer."""
        assert isinstance(self.server, socketserver.UDPServer)
        data, answering = self.request
        answering.sendto(data[: self.server.max_packet_size], self.client_address)


class LogServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Sets every attribute."""

    allow_reuse_address = True
    allow_reuse_port = False
    address_family = socket.AF_INET
    socket_type = socket.SOCK_STREAM
    request_queue_size = 64
    daemon_threads = True
    block_on_close = False
    timeout = 5.0

    def __init__(self, host: str, port: int, handler: type[socketserver.BaseRequestHandler] = LogHandler) -> None:
        self.clients: list[Any] = []
        super().__init__((host, port), handler)

    @property
    def port(self) -> int:
        """The one that the kernel chose."""
        return int(self.server_address[1])


class HookedServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Overrides every hook, with the types that typeshed gives them."""

    def server_bind(self) -> None:
        """Bind."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        super().server_bind()

    def server_activate(self) -> None:
        """Listen."""
        self.socket.listen(self.request_queue_size)

    def server_close(self) -> None:
        """Close."""
        super().server_close()

    def fileno(self) -> int:
        """Tell the descriptor."""
        return super().fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept."""
        connection, address = super().get_request()
        connection.settimeout(3)
        return connection, address

    def verify_request(self, request: Request, client_address: Any) -> bool:
        """Look."""
        return super().verify_request(request, client_address) and client_address[0] != ""

    def process_request(self, request: Request, client_address: Any) -> None:
        """Give it away."""
        super().process_request(request, client_address)

    def process_request_thread(self, request: Request, client_address: Any) -> None:
        """Serve it."""
        super().process_request_thread(request, client_address)

    def finish_request(self, request: Request, client_address: Any) -> None:
        """Handle it."""
        super().finish_request(request, client_address)

    def shutdown_request(self, request: Request) -> None:
        """End it."""
        if isinstance(request, socket.socket):
            super().shutdown_request(request)

    def close_request(self, request: Request) -> None:
        """Close it."""
        if isinstance(request, socket.socket):
            request.close()

    def handle_error(self, request: Request, client_address: Any) -> None:
        """Report it."""
        super().handle_error(request, client_address)

    def handle_timeout(self) -> None:
        """Do nothing."""

    def service_actions(self) -> None:
        """Do nothing more."""
        super().service_actions()

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve."""
        super().serve_forever(poll_interval)

    def handle_request(self) -> None:
        """Serve one."""
        super().handle_request()

    def shutdown(self) -> None:
        """Stop."""
        super().shutdown()


class PacketServer(socketserver.UDPServer):
    """Datagrams."""

    max_packet_size = 1024
    allow_reuse_address = False

    def verify_request(self, request: Request, client_address: Any) -> bool:
        """Look."""
        return isinstance(request, tuple) and bool(request[0])


class LocalServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """A path."""


class ForkingLogServer(socketserver.ForkingMixIn, socketserver.TCPServer):
    """Children."""

    max_children = 10

    def collect_children(self, *, blocking: bool = False) -> None:
        """Reap."""
        super().collect_children(blocking=blocking)

    def count(self) -> int:
        """The children at work."""
        return len(self.active_children or ())


class Page(http.server.BaseHTTPRequestHandler):
    """A handler of the standard library."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_error(404)


class WebServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Mixes with a server of the standard library."""

    daemon_threads = True


@contextlib.contextmanager
def in_background(server: socketserver.BaseServer) -> Generator[socketserver.BaseServer]:
    """Serve for the length of a block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def serve_until(server: socketserver.TCPServer, stopped: Callable[[], bool]) -> None:
    """Serve in a loop of one's own."""
    while not stopped():
        readable, _, _ = select.select([server], [], [], 0.1)
        if readable:
            server.handle_request()


SERVERS: dict[str, type[socketserver.BaseServer]] = {"log": LogServer, "packets": PacketServer}


def make_handler(request: Any, client_address: Any, server: socketserver.BaseServer) -> LogHandler:
    """Be a factory."""
    return LogHandler(request, client_address, server)


def make_servers(path: str) -> list[socketserver.BaseServer]:
    """Construct in every way."""
    with socketserver.TCPServer(("127.0.0.1", 0), LogHandler, bind_and_activate=False) as unbound:
        unbound.allow_reuse_address = True
        unbound.server_bind()
        unbound.server_activate()
        host, port = unbound.server_address[:2]
        assert (host, port) != ("", 0)
    return [
        LogServer("127.0.0.1", 0),
        HookedServer(("127.0.0.1", 0), functools.partial(MemoryHandler, greeting=b"hello ")),
        PacketServer(("127.0.0.1", 0), BareHandler),
        socketserver.ThreadingUDPServer(("127.0.0.1", 0), PacketHandler),
        LocalServer(path, LogHandler),
        ForkingLogServer(("127.0.0.1", 0), make_handler),
        socketserver.TCPServer(("127.0.0.1", 0), Page),
    ]
