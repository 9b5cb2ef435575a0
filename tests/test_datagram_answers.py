"""Answers to datagrams: they never wait for a client, and a client that cannot be answered is no error."""

from __future__ import annotations

import errno
import logging
import os
import pathlib
import socket
import struct
from typing import Any

import pytest
from support.log_watch import ExpectLog
from support.waiting import wait_until

import sockserve
from sockserve.net.departure import cannot_be_answered, has_left
from sockserve.net.listen import UnixDatagramSocket, adopt
from sockserve.pytest_plugin import Running
from sockserve.testing import ask

MIX_INS: dict[str, tuple[type, ...]] = {
    "inline": (),
    "thread": (sockserve.ThreadingMixIn,),
    "pool": (sockserve.ThreadPoolMixIn,),
    "greenlet": (sockserve.GreenletMixIn,),
    "fork": (sockserve.ForkingMixIn,),
}


class ByFile(sockserve.DatagramRequestHandler):
    """Answers as DatagramRequestHandler does."""

    def handle(self) -> None:
        """Echo."""
        self.wfile.write(self.rfile.read())


class BySocket(sockserve.BaseRequestHandler):
    """Answers as the standard library's documents show."""

    def handle(self) -> None:
        """Echo."""
        data, shared = self.request
        shared.sendto(data, self.client_address)


def fill(sock: socket.socket, path: str) -> None:
    """Send datagrams until one does not fit into the receiver's queue."""
    for _ in range(10_000):
        sock.sendto(b"x", path)


def server_of(model: str, base: type, address: Any, handler: type) -> Any:
    """A server whose pool, if it has one, is smaller than the number of datagrams that are not read."""
    return type("Server", (*MIX_INS[model], base), {"max_workers": 2})(address, handler)


@pytest.mark.parametrize("handler", [ByFile, BySocket])
@pytest.mark.parametrize("model", MIX_INS)
def test_a_unix_client_that_does_not_read_holds_up_no_other(
    model: str, handler: type, running: Running, tmp_path: pathlib.Path
) -> None:
    """Its queue holds few datagrams; further answers are dropped, others are served, and the server stops."""
    path = str(tmp_path / "server")
    counters = sockserve.Counters()
    server = server_of(model, sockserve.UnixDatagramServer, path, handler)
    server.add_observer(counters)
    running(server)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        for _ in range(60):
            deaf.sendto(b"x", path)
        assert ask(server, b"hello") == b"hello"
        wait_until(lambda: counters.handled == 61)
    assert counters.failed == 0


def test_an_inherited_unix_datagram_socket_does_not_wait_either(tmp_path: pathlib.Path) -> None:
    """The socket that a server takes over from its parent is of the class that never waits for a client."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind(str(tmp_path / "server"))
    with adopt(made.detach()) as taken, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        assert type(taken) is UnixDatagramSocket
        deaf.bind(str(tmp_path / "deaf"))
        with pytest.raises(sockserve.PeerTimeoutError, match="does not read"):
            fill(taken, str(tmp_path / "deaf"))
        taken.setblocking(False)
        # A program that asked not to wait hears what the kernel says.
        with pytest.raises(BlockingIOError):
            taken.sendto(b"x", 0, str(tmp_path / "deaf"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may forge a sender")
@pytest.mark.parametrize("handler", [ByFile, BySocket])
@pytest.mark.parametrize("model", MIX_INS)
def test_a_forged_source_port_of_0_is_no_error(
    model: str, handler: type, running: Running, expect_log: ExpectLog
) -> None:
    """Nothing can be sent to port 0: that is one line at DEBUG, and the next client is answered."""
    expect_log(logging.DEBUG, "gets no answer|left", at_least=3)
    server = server_of(model, sockserve.UDPServer, ("127.0.0.1", 0), handler)
    running(server)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
        for _ in range(3):
            raw.sendto(struct.pack("!HHHH", 0, server.server_address[1], 11, 0) + b"abc", ("127.0.0.1", 0))
    assert ask(server, b"hello") == b"hello"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("gone", ["path removed", "path is a stream server's now", "socket closed"])
def test_a_unix_client_that_has_gone_is_no_error(
    gone: str, running: Running, tmp_path: pathlib.Path, expect_log: ExpectLog
) -> None:
    """Whatever is at the path of a client when its answer is sent, it is no failure of the server."""
    quiet = expect_log(logging.DEBUG, "gets no answer")
    path = tmp_path / "client"
    leave = {
        "path removed": path.unlink,
        "path is a stream server's now": lambda: (path.unlink(), other.bind(str(path))),
        "socket closed": lambda: client.close(),  # noqa: PLW0108 - it is made below
    }[gone]

    class LeavesFirst(sockserve.DatagramRequestHandler):
        def handle(self) -> None:
            if self.packet == b"bye":
                leave()
            self.wfile.write(self.packet)

    server = running(sockserve.UnixDatagramServer(str(tmp_path / "server"), LeavesFirst))
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client,
    ):
        client.bind(str(path))
        client.sendto(b"bye", str(tmp_path / "server"))
        quiet.wait()
        assert ask(server, b"hello") == b"hello"


def test_too_long_an_answer_is_its_handlers_error(running: Running, expect_log: ExpectLog) -> None:
    """EMSGSIZE is the handler's doing: it is reported with its traceback."""
    reported = expect_log(logging.ERROR, "(?s)Exception occurred.*Message too long")

    class Long(sockserve.DatagramRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.packet * (70_000 if self.packet == b"x" else 1))

    server = running(sockserve.ThreadingUDPServer(("127.0.0.1", 0), Long))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", server.server_address)
        reported.wait()
    assert ask(server, b"hello") == b"hello"


def test_whose_error_a_failed_answer_is() -> None:
    """Only what depends on the client's address is the client's."""
    for number in (errno.EAGAIN, errno.EPERM, errno.EHOSTUNREACH, errno.ENOENT):
        assert cannot_be_answered(OSError(number, ""), ("127.0.0.1", 9))
    for number in (errno.EINVAL, errno.EMSGSIZE, errno.EBADF):
        assert not cannot_be_answered(OSError(number, ""), ("127.0.0.1", 9))
    assert not cannot_be_answered(ValueError(), ("127.0.0.1", 0))
    no_port = OSError(errno.EINVAL, "")
    assert cannot_be_answered(no_port, ("::1", 0, 0, 0))
    assert has_left((b"", None), no_port, ("127.0.0.1", 0))
    assert not has_left((b"", None), no_port, ("127.0.0.1", 9))
    assert not has_left((b"", None), OSError(errno.EMSGSIZE, ""), ("127.0.0.1", 0))


@pytest.mark.parametrize("model", ["inline", "pool"])
def test_a_flood_of_long_datagrams_is_two_lines_at_most(model: str, running: Running, expect_log: ExpectLog) -> None:
    """The first is told at once; the rest are counted, and told a minute later."""
    told = expect_log(logging.WARNING, "longer than max_packet_size")
    server = server_of(model, sockserve.UDPServer, ("127.0.0.1", 0), ByFile)
    server.max_packet_size = 512
    running(server)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        # Fewer than fill the receive buffer, where the question below would be lost.
        for _ in range(60):
            client.sendto(b"x" * 600, server.server_address)
    assert ask(server, b"hello") == b"hello"
    # A pool's other thread may have taken them, and tells of them later.
    told.wait()
    assert len(told.lines) <= 2
