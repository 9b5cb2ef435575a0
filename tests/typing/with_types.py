"""What sockserve adds for type checkers: a handler knows its server, its request and its client without a cast."""

from __future__ import annotations

import io
import socket
from typing import Any, assert_type

import sockserve
from sockserve.testing import ask, running

InetAddress = tuple[str, int]


class App(sockserve.ThreadingTCPServer):
    """A server with something of its own."""

    name = "app"


class Plain(sockserve.BaseRequestHandler):
    """Says nothing, and is as free as before."""

    def handle(self) -> None:
        """Look."""
        assert_type(self.server, sockserve.BaseServer[Any, Any])
        assert_type(self.request, Any)
        assert_type(self.client_address, Any)


class Knowing(sockserve.BaseRequestHandler[App, socket.socket, InetAddress]):
    """Says all."""

    def handle(self) -> None:
        """Look."""
        assert_type(self.server, App)
        assert_type(self.server.name, str)
        assert_type(self.request, socket.socket)
        assert_type(self.client_address, tuple[str, int])
        assert_type(self.detach_request(), socket.socket)
        self.keep_open()


class Lines(sockserve.StreamRequestHandler["LineServer", socket.socket, InetAddress]):
    """Names a server that is defined after it."""

    def handle(self) -> None:
        """Look."""
        assert_type(self.server, LineServer)
        assert_type(self.server.lines, list[bytes])
        assert_type(self.request, socket.socket)
        assert_type(self.client_address, tuple[str, int])
        assert_type(self.rfile, io.BufferedIOBase)
        assert_type(self.wfile, io.BufferedIOBase)
        self.server.lines.append(self.rfile.readline())
        self.wfile.write(b"%d" % len(self.server.lines))

    def mistake(self) -> None:
        """Be told."""
        self.server.no_such_thing()  # type: ignore[attr-defined]


class LinesOnly(sockserve.StreamRequestHandler["LineServer"]):
    """Names nothing but its server."""

    def handle(self) -> None:
        """Look."""
        assert_type(self.server, LineServer)
        assert_type(self.request, Any)


class Packets(sockserve.DatagramRequestHandler["PacketServer", InetAddress]):
    """A datagram's request has one type only."""

    def handle(self) -> None:
        """Look."""
        assert_type(self.server, PacketServer)
        assert_type(self.request, tuple[bytes, socket.socket])
        assert_type(self.client_address, tuple[str, int])
        assert_type(self.packet, bytes)
        assert_type(self.socket, socket.socket)


class LineServer(sockserve.ThreadingMixIn, sockserve.TCPServer[socket.socket, InetAddress]):
    """Says what its requests are, and every hook knows."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Lines)
        self.lines: list[bytes] = []

    def verify_request(self, request: socket.socket, client_address: InetAddress) -> bool:
        """Look."""
        return assert_type(super().verify_request(request, client_address), bool)

    def get_request(self) -> tuple[socket.socket, InetAddress]:
        """Look."""
        return assert_type(super().get_request(), tuple[socket.socket, tuple[str, int]])

    def mistake(self, request: bytes, client_address: InetAddress) -> bool:
        """Be told."""
        return self.verify_request(request, client_address)  # type: ignore[arg-type]


class PacketServer(sockserve.UDPServer[InetAddress]):
    """Datagrams."""

    def get_request(self) -> tuple[tuple[bytes, socket.socket], InetAddress]:
        """Look."""
        return assert_type(super().get_request(), tuple[tuple[bytes, socket.socket], tuple[str, int]])


class Count(sockserve.Observer):
    """Hears one event."""

    handled = 0

    def on_handle(self, server: Any, request: sockserve.LiveRequest) -> None:
        """Count."""
        self.handled += 1


def use(server: LineServer) -> None:
    """Every verb tells what it returns."""
    assert_type(server.active_requests, tuple[sockserve.ActiveRequest, ...])
    assert_type(server.draining, bool)
    assert_type(server.wait_idle(1.0), bool)
    assert_type(server.drain(1.0), sockserve.Drained)
    assert_type(server.drain(1.0).cut, int)
    assert_type(server.socket, socket.socket)
    server.add_observer(Count())
    with sockserve.Loop() as loop:
        server.attach(loop)
    with server as the_same:
        assert_type(the_same, LineServer)


def try_it() -> None:
    """In tests of handlers, too."""
    with running(LineServer()) as server:
        assert_type(server, LineServer)
        assert_type(ask(server, b"a line\n"), bytes)
        assert server.lines == [b"a line\n"]
