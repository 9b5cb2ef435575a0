"""Clients behind a proxy, in every model: the header is read, believed or refused, and the handler knows who asks."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import socket
from typing import Any, ClassVar

import pytest
from support.log_watch import ExpectLog
from support.models import SERVERS
from support.preparing import (
    DESTINATION,
    HEADER,
    LOOPBACK,
    SOURCE,
    Refusals,
    Tell,
    each_model,
    make,
    say,
)
from support.under_test import LIMIT

import sockserve
from sockserve.net.closing import cut
from sockserve.net.proxy_header import ProxyHeader
from sockserve.pytest_plugin import Running
from sockserve.testing import Stall, connect


@each_model
@pytest.mark.parametrize("version", [1, 2])
def test_x1_a_header_in_pieces_of_one_byte(running: Running, model: str, version: int) -> None:
    """X1: each byte in a segment of its own, and what follows the header belongs to the handler."""
    server = running(make(model, proxy_from=("127.0.0.1",)))
    header = ProxyHeader(1, "PROXY", SOURCE, DESTINATION) if version == 1 else HEADER
    with connect(server, timeout=LIMIT) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in header.to_bytes() + b"hel":
            client.sendall(bytes((byte,)))
        told = say(client, b"lo\n")
    assert told[:2] == [str(SOURCE), "True"]
    assert told[-1] == "hello\n"


@each_model
def test_x3_the_proxys_own_connection_is_its_own(running: Running, model: str) -> None:
    """X3: of LOCAL all is skipped, and the peer is the client."""
    server = running(make(model, proxy_from=("127.0.0.1",)))
    local = bytearray(HEADER.to_bytes())
    local[12] = 0x20
    with connect(server, timeout=LIMIT) as client:
        peer = client.getsockname()
        client.sendall(local)
        told = say(client)
    assert told[:4] == [str(peer), "True", str(server.server_address), "LOCAL"]


@each_model
def test_x6_a_header_of_an_outsider_is_payload(running: Running, model: str) -> None:
    """X6: without ``direct_from`` it is what the client says, and is not believed."""
    server = running(make(model, proxy_from=("192.0.2.0/24",)))
    with connect(server, timeout=LIMIT) as client:
        peer = client.getsockname()
        told = say(client, ProxyHeader(1, "PROXY", SOURCE, DESTINATION).to_bytes())
    assert told[:4] == [str(peer), "True", str(server.server_address), "-"]
    assert told[-1].startswith("PROXY TCP4 192.0.2.1")


@each_model
def test_x6_an_outsider_is_refused(running: Running, expect_log: ExpectLog, model: str) -> None:
    """X6: with ``direct_from`` each peer is in one of the lists."""
    server = make(model, proxy_from=("192.0.2.0/24",), direct_from=("198.51.100.0/24",))
    refusals = Refusals(server, expect_log, "the peer is named neither in proxy_from nor in direct_from")
    with Stall(running(server), HEADER.to_bytes()) as client:
        assert client.read() == b""
    refusals.check()


def test_the_longer_prefix_counts(running: Running) -> None:
    """A health check comes directly out of the proxies' network, and a proxy out of that of direct clients."""
    server = running(make("thread", proxy_from=("127.0.0.0/8", "10.0.0.0/8"), direct_from=("127.0.0.1/32",)))
    with connect(server, timeout=LIMIT) as client:
        assert say(client)[3] == "-"
    server.direct_from = ("126.0.0.0/7",)
    with connect(server, timeout=LIMIT) as client:
        client.sendall(HEADER.to_bytes())
        assert say(client)[3] == "PROXY"


def test_x7_a_proxy_of_ipv4_on_a_listener_for_both(running: Running) -> None:
    """X7: "::ffff:127.0.0.1" is 127.0.0.1."""

    class Both(sockserve.ThreadingTCPServer):
        address_family = socket.AF_INET6
        proxy_from = ("127.0.0.0/8",)

        def server_bind(self) -> None:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            super().server_bind()

    server = running(Both(("::", 0), Tell))
    with socket.create_connection(("127.0.0.1", server.server_address[1]), LIMIT) as client:
        client.sendall(HEADER.to_bytes())
        assert say(client)[:4] == [str(SOURCE), "True", str(DESTINATION), "PROXY"]


def test_x8_a_client_of_ipv6_at_a_listener_of_ipv4(running: Running) -> None:
    """X8: the family in the header is the client's, and not the socket's."""
    server = running(make("thread", proxy_from=("127.0.0.1",)))
    with connect(server, timeout=LIMIT) as client:
        client.sendall(b"PROXY TCP6 2001:db8::7 2001:db8::9 1 2\r\n")
        assert say(client)[0] == "('2001:db8::7', 1, 0, 0)"


def test_a_proxy_may_come_by_a_unix_socket(running: Running, tmp_path: pathlib.Path) -> None:
    """Every peer there is "unix", and its header may have addresses of any kind."""
    server_class = type("Server", (sockserve.ThreadingUnixStreamServer,), {"proxy_from": ("unix",)})
    server = running(server_class(str(tmp_path / "socket"), Tell))
    for header, told in (
        (HEADER, str(SOURCE)),
        (ProxyHeader(2, "PROXY", "/run/client", "/run/server"), "/run/client"),
        (ProxyHeader(1, "PROXY"), ""),
    ):
        with connect(server, timeout=LIMIT) as client:
            client.sendall(header.to_bytes())
            assert say(client)[:2] == [told, "True"]


@each_model
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "PROXY header: there is none, but b'GET / HTTP/1'"),
        (b"PROXY TCP4 192.0.2.1\r\n", "PROXY header: .* is not TCP4 or TCP6, two addresses and two ports"),
    ],
)
def test_a_wrong_header_is_one_line(
    running: Running, expect_log: ExpectLog, model: str, data: bytes, reason: str
) -> None:
    """A peer of which a header is required and that sends something else is refused, and closed without an answer."""
    server = make(model, proxy_from=("127.0.0.1",))
    refusals = Refusals(server, expect_log, reason)
    with Stall(running(server), data) as client:
        with contextlib.suppress(ConnectionResetError):
            assert client.read() == b""
        cut(client.connection)
    refusals.check()


@each_model
def test_verify_client_sees_who_really_asks(running: Running, model: str) -> None:
    """It is asked after the header, with the client's address, and what it refuses has no handler."""

    class Allows:
        proxy_from: ClassVar = ("127.0.0.1",)

        def verify_client(self, request: Any, client_address: Any) -> bool:
            assert self.connection_info(request).proxy_header is not None  # type: ignore[attr-defined]
            return bool(client_address[0] == SOURCE[0])

    server = running(type("Server", (Allows, SERVERS[model]), {})(LOOPBACK, Tell))
    other = ProxyHeader(2, "PROXY", ("192.0.2.2", 1), DESTINATION)
    with Stall(server, other.to_bytes()) as client:
        assert client.read() == b""
        cut(client.connection)
    with connect(server, timeout=LIMIT) as allowed:
        allowed.sendall(HEADER.to_bytes())
        assert say(allowed)[0] == str(SOURCE)


def test_a_server_tells_a_foreign_handler_and_its_operator(running: Running) -> None:
    """``connection_info(request)`` and ``active_requests`` have the same as a handler of ours."""
    told: list[sockserve.ConnectionInfo] = []

    class Foreign:
        def __init__(self, request: socket.socket, client_address: Any, server: Any) -> None:
            assert client_address == SOURCE
            told.append(server.connection_info(request))
            told.extend(each.connection_info for each in server.active_requests)
            request.sendall(b"done")

    server = running(make("thread", Foreign, proxy_from=("127.0.0.1",)))
    with connect(server, timeout=LIMIT) as client:
        client.sendall(HEADER.to_bytes())
        assert client.recv(10) == b"done"
        assert told[0] == told[1]
        assert told[0].peer_address == client.getsockname()
    assert told[0].proxy_header == HEADER


def test_a_plain_connection_has_its_addresses(running: Running) -> None:
    """Without TLS and proxies both ends are those of the socket."""
    server = running(make("thread"))
    with connect(server, timeout=LIMIT) as client:
        assert say(client) == [
            str(client.getsockname()), "True", str(client.getpeername()), "-", "-", "False", "None", "hello\n",
        ]  # fmt: skip


class AnswerDatagram(sockserve.DatagramRequestHandler[Any, Any]):
    """Answers with the client's address and what it sent."""

    def handle(self) -> None:
        """Answer."""
        self.wfile.write(f"{self.client_address} ".encode() + self.packet)


@pytest.mark.parametrize(
    "server_class",
    [
        sockserve.UDPServer,
        sockserve.ThreadingUDPServer,
        sockserve.ForkingUDPServer,
        sockserve.ThreadPoolUDPServer,
        sockserve.GreenletUDPServer,
    ],
)
def test_x10_a_datagram_is_answered_to_the_proxy(running: Running, expect_log: ExpectLog, server_class: Any) -> None:
    """X10: the header is taken off each datagram, the handler has the client's address, and the proxy the answer."""
    refused = expect_log(logging.INFO, "refused .*PROXY header: ")
    left = expect_log(logging.DEBUG, "left: .*longer than max_packet_size")
    # As any datagram that is too long; of a child's the parent hears nothing.
    expect_log(logging.WARNING, "longer than max_packet_size", at_least=0)
    attributes = {"proxy_from": ("127.0.0.1",), "max_packet_size": 10}
    server = running(type("Server", (server_class,), attributes)(LOOPBACK, AnswerDatagram))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as proxy:
        proxy.settimeout(LIMIT)
        for data in (b"no header", HEADER.to_bytes(datagram=True) + b"x" * 11):
            proxy.sendto(data, server.server_address)
        proxy.sendto(HEADER.to_bytes(datagram=True) + b"x" * 10, server.server_address)
        answer, sender = proxy.recvfrom(100)
        assert answer == f"{SOURCE} ".encode() + b"x" * 10
        assert sender == server.server_address
    refused.wait()
    left.wait()
