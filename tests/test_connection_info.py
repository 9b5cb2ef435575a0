"""The other end of a connection, and this end, as a handler sees them."""

from __future__ import annotations

import os
import pathlib
import pickle
import queue
import socket
from collections.abc import Callable
from typing import Any

import pytest
from support.under_test import LIMIT

import sockserve
from sockserve.net.proxy_header import ProxyHeader
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, connect

Infos = queue.Queue[sockserve.ConnectionInfo]


def telling(infos: Infos, base: type = sockserve.StreamRequestHandler) -> Any:
    """A handler that tells its connection_info, and echoes once."""

    class Tells(base):  # type: ignore[misc]
        def handle(self) -> None:
            infos.put(self.connection_info)
            if isinstance(self.request, tuple):
                data, sock = self.request
                sock.sendto(data, self.client_address)
            else:
                self.request.sendall(self.request.recv(100))

    return Tells


MODELS = [
    sockserve.UnixStreamServer,
    sockserve.ThreadingUnixStreamServer,
    sockserve.ThreadPoolUnixStreamServer,
    sockserve.UnixSeqpacketServer,
]


@pytest.mark.parametrize("kind", MODELS)
def test_the_process_at_the_other_end_of_a_unix_socket(
    kind: Callable[..., Any], tmp_path: pathlib.Path, running: Running
) -> None:
    """Its numbers are the kernel's, and this end has the path as its name."""
    infos: Infos = queue.Queue()
    packets = kind is sockserve.UnixSeqpacketServer
    base = sockserve.BaseRequestHandler if packets else sockserve.StreamRequestHandler
    running(kind(f"{tmp_path}/s", telling(infos, base)))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET if packets else socket.SOCK_STREAM) as client:
        client.settimeout(LIMIT)
        client.connect(f"{tmp_path}/s")
        client.send(b"x")
        assert client.recv(1) == b"x"
        info = infos.get(timeout=LIMIT)
        assert info.peer_credentials is not None
        assert info.peer_credentials[:3] == (os.getpid(), os.getuid(), os.getgid())
        assert info.local_address == f"{tmp_path}/s"


def test_the_process_is_opened_as_long_as_the_connection_is_there(tmp_path: pathlib.Path, running: Running) -> None:
    """A descriptor of the peer's process, from the handler; after the end EBADF, and the numbers stay."""
    found: queue.Queue[tuple[str, Any]] = queue.Queue()

    class Opens(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            peer = self.connection_info.peer_credentials
            assert peer is not None
            pidfd = peer.open_pidfd()
            with open(f"/proc/self/fdinfo/{pidfd}") as info:
                found.put((info.read(), peer))
            os.close(pidfd)

    server = running(sockserve.UnixStreamServer(f"{tmp_path}/s", Opens))
    assert ask(server, b"") == b""
    text, peer = found.get(timeout=LIMIT)
    # Until the connection is closed; the client sees its end before that.
    assert server.wait_idle(LIMIT)
    assert f"Pid:\t{os.getpid()}\n" in text
    with pytest.raises(OSError, match="connection is closed"):
        peer.open_pidfd()
    again = pickle.loads(pickle.dumps(peer))  # noqa: S301 - our own
    assert (again, type(again)) == (peer, sockserve.PeerCredentials)


def test_behind_a_proxy_they_are_the_proxys(tmp_path: pathlib.Path, running: Running) -> None:
    """The client is what the header says, the process the one that sent it."""
    infos: Infos = queue.Queue()
    server = sockserve.ThreadingUnixStreamServer(f"{tmp_path}/s", telling(infos))
    server.proxy_from = ("unix",)
    with connect(running(server)) as client:
        client.sendall(ProxyHeader(2, "PROXY", ("192.0.2.1", 1), ("192.0.2.2", 2)).to_bytes() + b"x")
        info = infos.get(timeout=LIMIT)
        assert client.recv(1) == b"x"
    assert info.client_address == ("192.0.2.1", 1)
    assert info.peer_credentials is not None
    assert info.peer_credentials.pid == os.getpid()


@pytest.mark.parametrize("kind", [sockserve.TCPServer, sockserve.UDPServer])
def test_over_tcp_and_udp_there_is_no_process(kind: Callable[..., Any], running: Running) -> None:
    """None, and this end is the server's address."""
    infos: Infos = queue.Queue()
    base = sockserve.BaseRequestHandler
    server = running(kind(("127.0.0.1", 0), telling(infos, base)))
    assert ask(server, b"x") == b"x"
    info = infos.get(timeout=LIMIT)
    assert info.peer_credentials is None
    assert info.local_address == server.server_address


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104 - every interface is meant
def test_this_end_of_a_datagram_is_the_asked_address(host: str, running: Running) -> None:
    """With answer_from_asked it is the one that the client wrote to, and not the wildcard."""
    infos: Infos = queue.Queue()
    server = sockserve.UDPServer((host, 0), telling(infos, sockserve.BaseRequestHandler), bind_and_activate=False)
    server.answer_from_asked = True
    server.server_bind()
    running(server)
    asked = "127.0.0.7" if host == "0.0.0.0" else "::1"  # noqa: S104
    with socket.socket(server.address_family, socket.SOCK_DGRAM) as client:
        client.settimeout(LIMIT)
        client.connect((asked, server.server_address[1]))
        client.send(b"x")
        assert client.recv(1) == b"x"
    info = infos.get(timeout=LIMIT)
    assert info.local_address[:2] == info.destination_address[:2] == (asked, server.server_address[1])
