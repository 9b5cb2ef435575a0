"""Multicast groups as text, joined by interface; and the counter of dropped datagrams."""

from __future__ import annotations

import ipaddress
import os
import queue
import select
import socket
import subprocess
import sys
import types
from typing import Any, cast

import pytest
from support.programs import START_LIMIT, TESTS
from support.under_test import LIMIT

import sockserve
from sockserve.errors import AddressError
from sockserve.net.dropped import DropCounter
from sockserve.net.multicast import Membership, join, parse_membership
from sockserve.pytest_plugin import Running


@pytest.mark.parametrize(
    ("text", "group", "source", "interface"),
    [
        ("239.1.2.3", "239.1.2.3", None, None),
        ("239.1.2.3%eth0", "239.1.2.3", None, "eth0"),
        ("232.1.1.1@10.0.0.9%eth0", "232.1.1.1", "10.0.0.9", "eth0"),
        ("ff02::114%lo", "ff02::114", None, "lo"),
        ("ff3e::1@2001:db8::1", "ff3e::1", "2001:db8::1", None),
    ],
)
def test_what_a_text_says(text: str, group: str, source: str | None, interface: str | None) -> None:
    """Group, source and interface."""
    expected = Membership(
        ipaddress.ip_address(group), None if source is None else ipaddress.ip_address(source), interface
    )
    assert parse_membership(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("10.0.0.1", "no group"),
        ("239.1.2.3%", "missing"),
        ("239.1.2.3@", "does not appear"),
        ("239.1.2.3@ff02::1", "cannot send"),
        ("232.1.1.1@232.1.1.1", "cannot send"),
        ("example.org", "does not appear"),
        ("", "does not appear"),
    ],
)
def test_a_text_that_is_none_says_why(text: str, says: str) -> None:
    """The error names the text and what is wrong with it."""
    with pytest.raises(AddressError, match=says) as caught:
        parse_membership(text)
    assert repr(text) in str(caught.value)


def listening(group: str, membership: str) -> socket.socket:
    """A socket that is bound to all addresses and has joined a group."""
    family = socket.AF_INET6 if ":" in group else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind(("", 0))
    join(sock, parse_membership(membership))
    return sock


def send(group: str, port: int, data: bytes, source: str = "127.0.0.1") -> None:
    """Send to a group, on the loopback interface."""
    with socket.socket(socket.AF_INET6 if ":" in group else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        index = socket.if_nametoindex(INTERFACE)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            sock.sendto(data, (group, port, 0, index))
        else:
            sock.bind((source, 0))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            sock.sendto(data, (group, port))


INTERFACE = "lo"

IN_NAMESPACE = """
import subprocess, sys
for command in ("link add v0 type veth peer name v1", "link set v0 up", "link set v1 up",
                "-6 address add fe80::5/64 dev v0 nodad"):
    subprocess.run(["ip", *command.split()], check=True)
sys.path[:0] = sys.argv[1:]
import test_multicast
test_multicast.INTERFACE = "v0"
test_multicast.test_a_member_gets_what_is_sent_to_the_group("ff02::114")
test_multicast.test_groups_that_other_sockets_joined_do_not_come("ff02::114")
print("both")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")
def test_over_ipv6() -> None:
    """In a network namespace, because the loopback interface carries no IPv6 groups."""
    command = ["unshare", "--net", sys.executable, "-c", IN_NAMESPACE, str(TESTS), str(TESTS.parent)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=START_LIMIT, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "both\n", "")


@pytest.mark.parametrize("group", ["239.1.2.3"])
def test_a_member_gets_what_is_sent_to_the_group(group: str) -> None:
    """By interface, for both IP versions."""
    with listening(group, f"{group}%{INTERFACE}") as sock:
        sock.settimeout(LIMIT)
        send(group, sock.getsockname()[1], b"news")
        assert sock.recv(100) == b"news"


@pytest.mark.parametrize("group", ["239.1.2.3"])
def test_groups_that_other_sockets_joined_do_not_come(group: str) -> None:
    """Y26: by default any socket that is bound to all addresses gets what any other socket of the host has joined."""
    other = "239.9.9.9" if "." in group else "ff02::999"
    with listening(group, f"{group}%{INTERFACE}") as sock, listening(other, f"{other}%{INTERFACE}"):
        sock.settimeout(LIMIT)
        port = sock.getsockname()[1]
        send(other, port, b"foreign")
        send(group, port, b"own")
        assert sock.recv(100) == b"own"
        assert not select.select([sock], [], [], 0)[0]


def test_of_one_source_only() -> None:
    """What another host sends to the group does not come."""
    with listening("232.1.1.1", "232.1.1.1@127.0.0.5%lo") as sock:
        sock.settimeout(LIMIT)
        port = sock.getsockname()[1]
        send("232.1.1.1", port, b"another", source="127.0.0.6")
        send("232.1.1.1", port, b"the source", source="127.0.0.5")
        assert sock.recv(100) == b"the source"


def test_what_cannot_be_joined() -> None:
    """An interface that is not there, the other IP version, twice the same."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        with pytest.raises(AddressError, match="no network interface 'nosuch0'"):
            join(sock, parse_membership("239.1.2.3%nosuch0"))
        with pytest.raises(AddressError, match="AF_INET cannot join"):
            join(sock, parse_membership("ff02::114%lo"))
        join(sock, parse_membership("239.1.2.3%lo"))
        with pytest.raises(OSError, match="in use"):
            join(sock, parse_membership("239.1.2.3%lo"))


def test_dropped_datagrams_are_counted() -> None:
    """The kernel's number, read when it is asked for."""
    counter = DropCounter()
    with socket.socket(type=socket.SOCK_DGRAM) as sock, socket.socket(type=socket.SOCK_DGRAM) as client:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.bind(("127.0.0.1", 0))
        assert counter.read(sock) == 0
        for _ in range(50):
            client.sendto(bytes(1000), sock.getsockname())
        taken = 0
        while select.select([sock], [], [], 0)[0]:
            sock.recv(2000)
            taken += 1
        assert 0 < taken < 50
        assert counter.read(sock) == counter.read(sock) == 50 - taken
    assert counter.read(sock) is None


def test_the_counter_goes_on_where_the_kernels_begins_anew() -> None:
    """Y27: it has 32 bits."""
    numbers = iter([5, 2**32 - 1, 3, 3])
    kernel = types.SimpleNamespace(getsockopt=lambda *_: bytes(32) + next(numbers).to_bytes(4, "little"))
    sock = cast("Any", kernel)
    counter = DropCounter()
    assert [counter.read(sock) for _ in range(4)] == [5, 2**32 - 1, 2**32 + 3, 2**32 + 3]


def test_a_server_joins_its_groups(running: Running) -> None:
    """As class attribute; what is no group is an error before anything is bound."""

    class News(sockserve.UDPServer):
        multicast = (f"239.1.2.3%{INTERFACE}",)

    class Heard(sockserve.BaseRequestHandler):
        def handle(self) -> None:
            heard.put(self.request[0])

    heard: queue.Queue[bytes] = queue.Queue()
    server = running(News(("", 0), Heard))
    send("239.1.2.3", server.server_address[1], b"news")
    assert heard.get(timeout=LIMIT) == b"news"

    class Wrong(sockserve.UDPServer):
        multicast = ("10.0.0.1",)

    with pytest.raises(AddressError, match="no group"):
        Wrong(("", 0), Heard)


def test_a_server_says_what_was_dropped() -> None:
    """Without a cost for each datagram."""
    with sockserve.UDPServer(("127.0.0.1", 0), sockserve.BaseRequestHandler) as server:
        assert server.dropped == 0
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            for _ in range(50):
                client.sendto(bytes(1000), server.server_address)
        assert 0 < (server.dropped or 0) < 50
    assert server.dropped is None
