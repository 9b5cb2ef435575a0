"""Every interface, IPv4 and IPv6 beside each other on one port; one interface, by the zone of an IPv6 address."""

from __future__ import annotations

import errno
import logging
import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

import pytest
from support.log_watch import ExpectLog
from support.programs import START_LIMIT, TESTS
from support.serving import Operator, serve_with

import sockserve
from sockserve.net.address import with_zone
from sockserve.net.listen import twin_of
from sockserve.pytest_plugin import Running
from sockserve.run.echo import Echo

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
CLIENTS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def free_port() -> int:
    """A port that is free for both protocols and both families."""
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as probe:
        port: int = probe.getsockname()[1]
        return port


def echoes(scheme: str, family: int, address: Any) -> bool:
    """Whether a client of this family is answered."""
    with socket.socket(family, KINDS[scheme]) as client:
        client.settimeout(10)
        client.connect(address)
        client.send(b"hello")
        return client.recv(10) == b"hello"


@pytest.mark.parametrize("hosts", [("0.0.0.0", "[::]"), ("[::]", "0.0.0.0"), ("",), ("*",)])  # noqa: S104 - every interface is meant
@pytest.mark.parametrize("scheme", KINDS)
def test_both_families_have_one_port(scheme: str, hosts: tuple[str, ...]) -> None:
    """[::] leaves the port of IPv4 alone, in either order, and an address without a host is both."""
    port = free_port()

    def script(operator: Operator) -> None:
        assert {server.server_address[1] for server in operator.servers} == {port}
        for family, host in CLIENTS.items():
            assert echoes(scheme, family, (host, port))
        operator.signal()

    serve_with(script, Echo, *(f"{scheme}://{host}:{port}" for host in hosts))


@pytest.mark.parametrize("model", ["thread", "pool", "inline"])
def test_a_free_port_is_free_for_both(model: str) -> None:
    """Port 0 without a host gives one number to two servers, IPv4 first, and an IPv4 client its plain address."""
    seen = []

    class Tells(sockserve.BaseRequestHandler):
        def handle(self) -> None:
            seen.append(self.client_address[0])
            self.request.sendall(self.request.recv(10))

    def script(operator: Operator) -> None:
        first, second = operator.servers
        assert (first.socket.family, second.socket.family) == (socket.AF_INET, socket.AF_INET6)
        assert first.server_address[1] == second.server_address[1]
        for family, host in CLIENTS.items():
            assert echoes("tcp", family, (host, first.server_address[1]))
        operator.signal()

    serve_with(script, Tells, "tcp://:0", model=model)
    assert seen == ["127.0.0.1", "::1"]


def test_worker_processes_serve_both_families() -> None:
    """With ``processes`` each worker has the sockets of both."""

    def script(operator: Operator) -> None:
        for family, host in CLIENTS.items():
            assert echoes("tcp", family, (host, operator.servers[0].server_address[1]))
        operator.signal()

    serve_with(script, Echo, "tcp://:0", processes=1)


@pytest.mark.parametrize("taken", [1, 7])
def test_a_port_whose_twin_is_taken_is_not_the_one(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Y22: a free IPv4 port is given up as long as its IPv6 twin belongs to another program."""
    bind = sockserve.TCPServer.server_bind
    refused = []

    def server_bind(self: Any) -> None:
        if self.socket.family == socket.AF_INET6 and len(refused) < taken:
            refused.append(self.server_address[1])
            raise OSError(errno.EADDRINUSE, "taken")
        bind(self)

    monkeypatch.setattr(sockserve.TCPServer, "server_bind", server_bind)

    def script(operator: Operator) -> None:
        assert len(operator.servers) == 2
        operator.signal()

    serve_with(script, Echo, "tcp://*:0")
    assert len(refused) == taken


def test_a_port_that_was_asked_for_is_both_or_none() -> None:
    """If another program has the IPv6 port, neither is kept, and the error names the address."""
    with socket.create_server(("::", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        with pytest.raises(sockserve.BindError, match=f"tcp://:{port}"):
            sockserve.serve(Echo, f"tcp://:{port}")
        with socket.create_server(("127.0.0.1", port)):
            """The IPv4 port is free again."""


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
@pytest.mark.parametrize("call", ["socket", "bind"])
def test_without_ipv6_there_is_ipv4(
    number: int, call: str, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    """Y23: a system that has no IPv6, or has switched it off, serves IPv4 and says so in one line."""
    told = expect_log(logging.INFO, "IPv4 only")
    plain = socket.socket

    class Refuses(plain):
        def __init__(self, family: int = -1, *args: Any, **kwargs: Any) -> None:
            if call == "socket" and family == socket.AF_INET6:
                raise OSError(number, "no IPv6")
            super().__init__(family, *args, **kwargs)

        def bind(self, address: Any, /) -> None:
            if call == "bind" and self.family == socket.AF_INET6:
                raise OSError(number, "no IPv6")
            super().bind(address)

    monkeypatch.setattr("socket.socket", Refuses)

    def script(operator: Operator) -> None:
        assert len(operator.servers) == 1
        operator.signal()

    serve_with(script, Echo, "tcp://:0")
    assert len(told.lines) == 1


def names(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Let every host name have these addresses."""
    ask = socket.getaddrinfo

    def getaddrinfo(_: object, port: int, family: int = 0, kind: int = 0) -> list[Any]:
        return [each for host in hosts for each in ask(host, port, family, kind, 0, socket.AI_NUMERICHOST)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("scheme", KINDS)
def test_a_host_name_binds_all_its_addresses(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one port, IPv4 first, and each once, however often the resolver names it."""
    names(monkeypatch, "::1", "127.0.0.2", "127.0.0.1", "127.0.0.2")

    def script(operator: Operator) -> None:
        port = operator.server.server_address[1]
        assert [server.server_address[:2] for server in operator.servers] == [
            ("127.0.0.2", port),
            ("127.0.0.1", port),
            ("::1", port),
        ]
        monkeypatch.undo()
        for server in operator.servers:
            assert echoes(scheme, server.socket.family, server.server_address)
        operator.signal()

    serve_with(script, Echo, f"{scheme}://name.example:0")


def test_an_address_of_a_name_that_is_another_hosts_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is IPv6, a name's IPv6 address that cannot be bound is refused, not left out: all, or none."""
    names(monkeypatch, "127.0.0.1", "2001:db8::1")
    port = free_port()
    with pytest.raises(sockserve.BindError, match=f"tcp://name.example:{port}: Cannot assign"):
        sockserve.serve(Echo, f"tcp://name.example:{port}")
    with socket.create_server(("127.0.0.1", port)):
        """The IPv4 port is free again."""


def test_the_name_of_a_taken_port_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Y22: for a host name as for every interface, a free port is free for all addresses."""
    names(monkeypatch, "127.0.0.1", "127.0.0.2")
    bind = sockserve.TCPServer.server_bind
    tried = []

    def server_bind(self: Any) -> None:
        tried.append(self.server_address)
        if len(tried) == 2:
            raise OSError(errno.EADDRINUSE, "taken")
        bind(self)

    monkeypatch.setattr(sockserve.TCPServer, "server_bind", server_bind)

    def script(operator: Operator) -> None:
        assert [server.server_address[0] for server in operator.servers] == ["127.0.0.1", "127.0.0.2"]
        operator.signal()

    serve_with(script, Echo, "tcp://name.example:0")
    assert [host for host, _ in tried] == ["127.0.0.1", "127.0.0.2"] * 2


IN_NAMESPACE = """
import pathlib, subprocess, sys
for each in ("all", "lo"):
    pathlib.Path(f"/proc/sys/net/ipv6/conf/{each}/disable_ipv6").write_text("1")
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
sys.path[:0] = sys.argv[1:]
import test_every_interface
test_every_interface.serve_where_ipv6_is_off()
print("served")
"""


def serve_where_ipv6_is_off() -> None:
    """Y23, where no interface has an IPv6 address, and some files say that ::1 is a localhost all the same."""
    lines: list[str] = []
    log = logging.getLogger("sockserve")
    log.setLevel(logging.INFO)
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)

    def script(operator: Operator) -> None:
        assert echoes("tcp", socket.AF_INET, ("127.0.0.1", operator.server.server_address[1]))
        operator.signal()

    serve_with(script, Echo, "tcp://*:0")
    # The kernel lets a socket be bound to :: even then.
    assert not [line for line in lines if "IPv4 only" in line]
    with pytest.MonkeyPatch.context() as patch:
        names(patch, "::1", "127.0.0.1")
        serve_with(script, Echo, "tcp://localhost:0")
    assert len([line for line in lines if "IPv4 only" in line]) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")
def test_where_ipv6_is_switched_off_ipv4_serves() -> None:
    """Y23: in a network namespace with disable_ipv6=1, every interface and a host name are served over IPv4."""
    command = ["unshare", "--net", sys.executable, "-c", IN_NAMESPACE, str(TESTS), str(TESTS.parent)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=START_LIMIT, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "served\n", "")


def link_local() -> tuple[str, str, int] | None:
    """A link-local address of this machine, with the name and the number of its interface: if_inet6 of proc(5)."""
    for line in pathlib.Path("/proc/net/if_inet6").read_text("ascii").splitlines():
        digits, index, _, scope, _, name = line.split()
        if scope == "20":
            return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)), name, int(index, 16)
    return None


@pytest.mark.parametrize("by_number", [False, True])
@pytest.mark.parametrize("base", [sockserve.ThreadingTCPServer, sockserve.ThreadPoolTCPServer, sockserve.UDPServer])
def test_a_zone_in_the_host_counts(base: type, by_number: bool, running: Running) -> None:
    """fe80::1%eth0 is bound on that interface; without such an address, ::1 in the loopback's zone stands for it."""
    host, name, number = link_local() or ("::1", "lo", socket.if_nametoindex("lo"))
    server: Any = running(base((f"{host}%{number if by_number else name}", 0), Echo))
    scheme = "udp" if base is sockserve.UDPServer else "tcp"
    assert echoes(scheme, socket.AF_INET6, (host, server.server_address[1], 0, number))


def test_what_a_zone_becomes() -> None:
    """The number of an interface goes where bind() reads it; all other addresses are left alone."""
    number = socket.if_nametoindex("lo")
    assert with_zone(("fe80::1%lo", 80)) == ("fe80::1", 80, 0, number)
    assert with_zone(("fe80::1%7", 80)) == ("fe80::1", 80, 0, 7)
    for address in (("fe80::1", 80), ("fe80::1%lo", 80, 0, 3), ("host%lo", 80), ("127.0.0.1", 0), "/path", b"\0x"):
        assert with_zone(address) is address
    with pytest.raises(OSError, match="interface"):
        with_zone(("fe80::1%nowhere", 80))


def test_a_twin_has_the_zone_too() -> None:
    """A worker's own socket is bound to the same address on the same interface."""
    found = link_local()
    host, _, number = found or ("::1", "lo", 0)
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, 0, 0, number))
        sock.listen()
        with twin_of(sock) as twin:
            assert twin.getsockname() == sock.getsockname()
