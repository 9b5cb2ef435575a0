"""Packets over a Unix socket: in every model, with descriptors, within limits."""

from __future__ import annotations

import array
import errno
import logging
import os
import pathlib
import resource
import socket
from typing import Any

import pytest
from support.log_watch import ExpectLog
from support.models import MODELS
from support.serving import Operator, serve_with
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.errors import DatagramTruncatedError, DescriptorsTruncatedError, PeerTimeoutError
from sockserve.net.address import format_address, parse_address
from sockserve.net.passing import receive_packet, send_packet
from sockserve.net.peer_credentials import PeerCredentials, credentials_of, open_peer_pidfd
from sockserve.pytest_plugin import Running
from sockserve.ready_made import server_class
from sockserve.testing import call_within


class Shout(sockserve.PacketRequestHandler):
    """Answers each packet in capitals."""

    def handle(self) -> None:
        """Serve until the client closes its side."""
        while packet := self.receive():
            self.send(packet.upper())


def connected(path: object) -> socket.socket:
    """A client of a server at this path."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.settimeout(LIMIT)
    client.connect(str(path))
    return client


@pytest.mark.parametrize("model", MODELS)
def test_packets_stay_apart_in_each_model(model: str, running: Running, tmp_path: pathlib.Path) -> None:
    """Two packets that wait at once are two; the end of the client is an empty one. Y31: the server stops at once."""
    server = running(server_class(model, "unix-seqpacket")(tmp_path / "s", Shout))
    with connected(server.server_address) as client:
        client.send(b"one")
        client.send(b"two")
        assert [client.recv(100), client.recv(100)] == [b"ONE", b"TWO"]
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b""
    assert server.wait_idle(LIMIT)
    assert call_within(LIMIT, server.shutdown) is None


@pytest.mark.parametrize("model", MODELS)
def test_a_connection_is_kept_between_packets(model: str, running: Running, tmp_path: pathlib.Path) -> None:
    """keep_open() waits for the next packet, in the pool without a thread."""

    class Kept(sockserve.PacketRequestHandler):
        def handle(self) -> None:
            if packet := self.receive():
                self.send(packet[::-1])
                self.keep_open()

    server = running(server_class(model, "unix-seqpacket")(tmp_path / "s", Kept))
    with connected(server.server_address) as client:
        for packet in (b"abc", b"12"):
            client.send(packet)
            assert client.recv(100) == packet[::-1]
        # A forked child has a copy of this end.
        client.shutdown(socket.SHUT_RDWR)
    assert server.wait_idle(LIMIT)


@pytest.mark.parametrize("model", MODELS)
def test_descriptors_go_both_ways(model: str, running: Running, tmp_path: pathlib.Path) -> None:
    """What is received is open, and is not inherited; what is sent stays the sender's as well."""

    class Copies(sockserve.PacketRequestHandler):
        def handle(self) -> None:
            data, fds = self.receive(fds=3)
            assert [os.get_inheritable(fd) for fd in fds] == [False, False]
            self.send(data + b"!", fds[::-1])
            for fd in fds:
                os.close(fd)

    server = running(server_class(model, "unix-seqpacket")(tmp_path / "s", Copies))
    readers, writers = zip(os.pipe(), os.pipe(), strict=True)
    with connected(server.server_address) as client:
        send_packet(client, b"take", writers)
        data, fds = receive_packet(client, 100, 2)
    assert data == b"take!"
    for fd, text in zip(fds, (b"second", b"first"), strict=True):
        os.write(fd, text)
    assert [os.read(reader, 100) for reader in readers] == [b"first", b"second"]
    for fd in (*readers, *writers, *fds):
        os.close(fd)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one connection."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def open_descriptors() -> set[str]:
    """The numbers that are open now."""
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(("sent", "asked"), [(3, 1), (2, 1), (1, 0), (5, 4)])
def test_more_descriptors_than_asked_for_are_all_closed(sent: int, asked: int) -> None:
    """Y29: which of them came and which did not cannot be told, so none is kept. For 1 there is room for 2."""
    ours, theirs = pair()
    with ours, theirs:
        null = [os.open(os.devnull, os.O_RDONLY) for _ in range(sent)]
        send_packet(theirs, b"x", null)
        before = open_descriptors()
        with pytest.raises(DescriptorsTruncatedError, match=f"asked for: {asked}"):
            receive_packet(ours, 100, asked)
        assert open_descriptors() == before
        for fd in null:
            os.close(fd)


def test_no_room_for_descriptors_is_the_same_error() -> None:
    """EMFILE is not told by recvmsg(2): it leaves them out."""
    ours, theirs = pair()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ours, theirs:
        null = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
        send_packet(theirs, b"x", null)
        before = open_descriptors()
        lowest_free = os.dup(null[0])
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            with pytest.raises(DescriptorsTruncatedError):
                receive_packet(ours, 100, 3)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert open_descriptors() == before
        for fd in null:
            os.close(fd)


def test_a_packet_that_is_too_long_is_an_error_and_its_descriptors_are_closed() -> None:
    """Half a packet is not handed over as a whole one; the next one comes as it is."""
    ours, theirs = pair()
    with ours, theirs, open(os.devnull, "rb") as null:
        send_packet(theirs, bytes(101), [null.fileno()])
        send_packet(theirs, bytes(100))
        before = open_descriptors()
        with pytest.raises(DatagramTruncatedError):
            receive_packet(ours, 100, 1)
        assert open_descriptors() == before
        assert receive_packet(ours, 100, 1) == (bytes(100), [])


def test_what_cannot_be_sent() -> None:
    """Descriptors without a byte, a packet above the buffer, a client that has left."""
    ours, theirs = pair()
    with ours:
        with pytest.raises(ValueError, match="at least one byte"):
            send_packet(ours, b"", [0])
        with pytest.raises(OSError, match="long") as caught:
            send_packet(ours, bytes(10_000_000))
        assert caught.value.errno == errno.EMSGSIZE
        theirs.close()
        with pytest.raises(BrokenPipeError):
            send_packet(ours, b"x")


def test_a_client_that_sends_too_much_is_cut_off(
    running: Running, tmp_path: pathlib.Path, expect_log: ExpectLog
) -> None:
    """The error is the peer's: its connection ends, with one line and no traceback, and the next client is served."""
    expect_log(logging.WARNING, "longer than max_packet_size, 10 bytes")

    class Small(Shout):
        max_packet_size = 10

    server = running(sockserve.UnixSeqpacketServer(str(tmp_path / "s"), Small))
    with connected(server.server_address) as client:
        client.send(bytes(11))
        assert client.recv(100) == b""
    with connected(server.server_address) as client:
        client.send(b"ten bytes!")
        assert client.recv(100) == b"TEN BYTES!"


def test_a_silent_client_is_a_time_out(running: Running, tmp_path: pathlib.Path) -> None:
    """``timeout`` is of each packet."""
    raised: list[type[BaseException]] = []

    class Impatient(sockserve.PacketRequestHandler):
        timeout = 0.01

        def handle(self) -> None:
            try:
                self.receive()
            except PeerTimeoutError as error:
                raised.append(type(error))
            try:
                while True:
                    self.send(bytes(50_000))
            except PeerTimeoutError as error:
                raised.append(type(error))

    server = running(sockserve.UnixSeqpacketServer(str(tmp_path / "s"), Impatient))
    with connected(server.server_address):
        wait_until(lambda: len(raised) == 2)
    assert server.wait_idle(LIMIT)


def test_serve_takes_the_address(tmp_path: pathlib.Path) -> None:
    """With the handler that fits, and no other."""
    text = f"unix-seqpacket:{tmp_path}/s"
    assert str(parse_address(text)) == text

    def script(operator: Operator) -> None:
        assert format_address(operator.server.socket) == text
        with connected(operator.server.server_address) as client:
            client.send(b"hello")
            assert client.recv(100) == b"HELLO"
        operator.signal()

    assert serve_with(script, Shout, text, model="thread").handled == 1
    with pytest.raises(sockserve.AddressError, match="takes connections with packets"):
        sockserve.serve(sockserve.StreamRequestHandler, text)
    with pytest.raises(sockserve.AddressError, match="for connections with packets"):
        sockserve.serve(Shout, "tcp://127.0.0.1:0")


def test_who_is_at_the_other_end() -> None:
    """The kernel's word: process, user, group, groups; and a descriptor of the process."""
    ours, theirs = pair()
    with ours, theirs:
        expected = PeerCredentials(os.getpid(), os.getuid(), os.getgid(), tuple(os.getgroups()))
        found = credentials_of(ours)
        assert found is not None
        assert found[:3] == expected[:3]
        assert sorted(found.groups) == sorted(expected.groups)
        pidfd = open_peer_pidfd(ours)
        with open(f"/proc/self/fdinfo/{pidfd}") as info:
            assert f"Pid:\t{os.getpid()}\n" in info.read()
        assert not os.get_inheritable(pidfd)
        os.close(pidfd)
    assert credentials_of(ours) is None


def test_other_sockets_have_no_credentials() -> None:
    """Neither TCP, nor a Unix socket without a peer, nor what is no socket."""
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as lonely:
        assert credentials_of(tcp) is None
        assert credentials_of(lonely) is None
        with pytest.raises(OSError, match=r"does not tell|No data"):
            open_peer_pidfd(tcp)
    assert credentials_of((b"data", None)) is None


def test_a_peer_in_many_groups() -> None:
    """The first question has room for 32; the kernel says ERANGE, and the second has room for 256."""

    class Kernel(socket.socket):
        def getsockopt(self, _level: int, option: int, size: int = 0) -> Any:
            if option == 59:
                if size < 100 * 4:
                    raise OSError(errno.ERANGE, "more")
                return array.array("I", range(100)).tobytes()
            return super().getsockopt(_level, option, size)

    ours, theirs = pair()
    with theirs, Kernel(fileno=ours.detach()) as ours_too:
        found = credentials_of(ours_too)
    assert found is not None
    assert found.groups == tuple(range(100))
