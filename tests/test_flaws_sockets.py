"""Rows S1 to S16 of what is wrong with ``socketserver``'s sockets: each test fails there and passes here."""

# ruff: noqa: N802 - a test has the id of its row

from __future__ import annotations

import errno
import http.client
import http.server
import logging
import os
import pathlib
import re
import select
import selectors
import socket
import ssl
import stat
import uuid
from typing import Any

import pytest
from support.certificates import VERSIONS, client_context, server_context
from support.handlers import handlers
from support.log_watch import ExpectLog
from support.under_test import LIMIT, S

from sockserve.pytest_plugin import Running
from sockserve.testing import Stall, ask, call_within, connect
from sockserve.testing import running as run

LOOPBACK = ("127.0.0.1", 0)

each_version = pytest.mark.parametrize("version", VERSIONS, ids=[version.name for version in VERSIONS])


def tls_server(server_class: Any, handler: Any, certificate: pathlib.Path, version: ssl.TLSVersion) -> Any:
    """A server whose listening socket an SSLContext has wrapped, as everybody does it."""
    server = server_class(LOOPBACK, handler)
    server.socket = server_context(certificate, version).wrap_socket(server.socket, server_side=True)
    return server


def tls_connect(server: Any, certificate: pathlib.Path) -> ssl.SSLSocket:
    """A TLS client that takes a connection without a proper end for an error."""
    context = client_context(certificate)
    return context.wrap_socket(connect(server, timeout=LIMIT), server_hostname="localhost", suppress_ragged_eofs=False)


@each_version
def test_S1_a_silent_client_stops_nobody(running: Running, certificate: pathlib.Path, version: ssl.TLSVersion) -> None:
    """While a client that never begins its handshake is connected, others are served and shutdown() returns."""
    server = running(tls_server(S.ThreadingTCPServer, handlers(S).Echo, certificate, version))
    with Stall(server):
        with tls_connect(server, certificate) as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
        call_within(LIMIT, server.shutdown)


@each_version
def test_S2_a_tls_connection_ends_properly(
    running: Running, certificate: pathlib.Path, version: ssl.TLSVersion
) -> None:
    """A client sees end-of-file, and no error, when the server closes a TLS connection."""

    class Handler(S.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"that was all")

    server = running(tls_server(S.ThreadingTCPServer, Handler, certificate, version))
    with tls_connect(server, certificate) as client:
        assert client.recv(100) == b"that was all"
        assert client.recv(100) == b""


@pytest.mark.parametrize("name", ["TCPServer", "UDPServer"])
def test_S3_an_ipv6_literal_is_enough(running: Running, name: str) -> None:
    """A server on ``::1`` serves IPv6, without a class that says so."""
    handler = handlers(S).Echo if name == "TCPServer" else handlers(S).EchoDatagram
    server = running(getattr(S, name)(("::1", 0), handler))
    assert server.server_address[0] == "::1"
    assert ask(server, b"hello") == b"hello"


def test_S6_a_restart_finds_its_port_free() -> None:
    """A server binds the port of its last run while connections that it closed linger in TIME_WAIT."""

    class Handler(S.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"bye")

    with run(S.TCPServer(LOOPBACK, Handler)) as server:
        address = server.server_address
        with connect(server) as client:
            # The side that closes first keeps the port.
            assert [client.recv(10), client.recv(10)] == [b"bye", b""]
    with run(S.TCPServer(address, Handler)) as server:
        assert ask(server, b"") == b"bye"


def test_S7_sharing_a_port_means_nothing_on_a_unix_socket(running: Running, tmp_path: pathlib.Path) -> None:
    """``allow_reuse_port`` keeps no Unix server from starting; new Linux kernels refuse SO_REUSEPORT there."""

    class Server(S.UnixStreamServer):
        allow_reuse_port = True

    assert ask(running(Server(str(tmp_path / "server"), handlers(S).Echo)), b"hello") == b"hello"


def test_S8_a_burst_of_clients_fits_into_the_backlog(tmp_path: pathlib.Path) -> None:
    """A hundred clients connect while nobody accepts. A Unix socket says at once when a backlog is full."""
    clients = []
    with S.UnixStreamServer(str(tmp_path / "server"), handlers(S).Echo) as server:
        try:
            for _ in range(100):
                clients.append(socket.socket(socket.AF_UNIX))
                clients[-1].setblocking(False)
                clients[-1].connect(server.server_address)
        finally:
            for client in clients:
                client.close()


@pytest.mark.parametrize("name", ["UnixStreamServer", "UnixDatagramServer"])
def test_S9_the_path_goes_with_its_server(tmp_path: pathlib.Path, name: str) -> None:
    """Closing a server removes its path, and does not touch one that is another's by then."""
    path = tmp_path / "server"
    server = getattr(S, name)(str(path), handlers(S).Echo)
    server.server_close()
    assert not path.exists()
    server = getattr(S, name)(str(path), handlers(S).Echo)
    path.unlink()
    with getattr(S, name)(str(path), handlers(S).Echo):
        server.server_close()
        assert path.is_socket()


@pytest.mark.parametrize("name", ["UnixStreamServer", "UnixDatagramServer"])
def test_S9_only_a_dead_servers_path_is_taken_over(tmp_path: pathlib.Path, name: str) -> None:
    """A path that a crashed server left behind does not hinder a restart; one that a server serves is refused."""
    path = str(tmp_path / "server")
    with socket.socket(socket.AF_UNIX, getattr(S, name).socket_type) as crashed:
        crashed.bind(path)
    with getattr(S, name)(path, handlers(S).Echo):
        with pytest.raises(OSError, match=r".") as refused:
            getattr(S, name)(path, handlers(S).Echo)
        assert refused.value.errno == errno.EADDRINUSE
        assert os.path.exists(path)


def test_S9_a_path_object_is_an_address(running: Running, tmp_path: pathlib.Path) -> None:
    """A pathlib.Path will do, and ``server_address`` is the text that every other socket function takes."""
    server = running(S.UnixStreamServer(tmp_path / "server", handlers(S).Echo))
    assert server.server_address == str(tmp_path / "server")
    assert ask(server, b"hello") == b"hello"


def test_S9_a_path_has_the_permissions_that_the_class_says(tmp_path: pathlib.Path) -> None:
    """``socket_mode`` decides who may connect, whatever the umask."""

    class Server(S.UnixStreamServer):
        socket_mode = 0o620

    with Server(str(tmp_path / "server"), handlers(S).Echo) as server:
        assert stat.S_IMODE(os.stat(server.server_address).st_mode) == 0o620


def test_S10_an_abstract_address_stays_text(running: Running) -> None:
    """An abstract Unix address is the same ``str`` after binding as before."""
    name = f"\0sockserve-{uuid.uuid4()}"
    server = running(S.UnixStreamServer(name, handlers(S).Echo))
    assert server.server_address == name
    assert ask(server, b"hello") == b"hello"


def test_S10_http_server_works_over_a_unix_socket(running: Running, tmp_path: pathlib.Path) -> None:
    """``client_address[0]``, which http.server logs, exists for a client without a name."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

    server = running(S.UnixStreamServer(str(tmp_path / "server"), Handler))
    client = http.client.HTTPConnection("localhost")
    client.sock = connect(server)
    client.request("GET", "/")
    assert client.getresponse().status == 204
    client.close()


class Length(S.DatagramRequestHandler):
    """Answers how many bytes came."""

    def handle(self) -> None:
        """Count."""
        self.wfile.write(str(len(self.packet)).encode())


def test_S11_a_large_datagram_arrives_whole(running: Running) -> None:
    """Whatever fits into UDP's length field is not cut: 65507 bytes over IPv4."""
    assert ask(running(S.UDPServer(LOOPBACK, Length)), bytes(65507)) == b"65507"


def test_S11_a_datagram_that_is_too_long_is_reported_and_not_served(running: Running, expect_log: ExpectLog) -> None:
    """One byte more than ``max_packet_size`` is a line in the log; as many are served, and so is who comes next."""
    expect_log(logging.WARNING, "longer than max_packet_size, 100 bytes")

    class Server(S.UDPServer):
        max_packet_size = 100

    with connect(running(Server(LOOPBACK, Length))) as client:
        client.send(bytes(101))
        client.send(bytes(100))
        assert client.recv(100) == b"100"
        client.send(bytes(99))
        assert client.recv(100) == b"99"


def test_S15_the_selector_is_chosen_when_the_loop_starts(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A selector that is put into the modules after the import, as gevent does it, is the one that waits."""
    waits = []

    class Cooperative(selectors.SelectSelector):
        def select(self, timeout: float | None = None) -> Any:
            waits.append(timeout)
            return super().select(timeout)

    for name in ("epoll", "kqueue", "devpoll"):
        monkeypatch.delattr(select, name, raising=False)
        monkeypatch.delattr(selectors, f"{name.capitalize()}Selector", raising=False)
    for name in ("PollSelector", "SelectSelector", "DefaultSelector"):
        monkeypatch.setattr(selectors, name, Cooperative)
    with connect(running(S.TCPServer(LOOPBACK, handlers(S).Echo))) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
    assert waits


def test_S16_the_base_class_has_what_it_says_it_has() -> None:
    """Every attribute of a TCPServer that the docstring of BaseServer mentions is one of BaseServer."""
    words = set(re.findall(r"\w+", S.BaseServer.__doc__))
    mentioned = {word for word in words if hasattr(S.TCPServer, word)}
    assert "timeout" in mentioned
    assert {name for name in mentioned if not hasattr(S.BaseServer, name)} == set()
