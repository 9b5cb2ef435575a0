"""What a server shares, which family a host asks for, descriptors that were inherited, and names of Unix sockets."""

from __future__ import annotations

import http.server
import os
import pathlib
import pickle
import socket

import pytest

from sockserve.errors import AddressError
from sockserve.net.listen import UnixName, adopt, apply_reuse, family_of, unix_name
from sockserve.net.unix_path import bind_unix

LIMIT = 30.0
TYPES = [socket.SOCK_STREAM, socket.SOCK_DGRAM]
both_types = pytest.mark.parametrize("kind", TYPES, ids=["stream", "dgram"])


# options


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("address", [False, True])
@pytest.mark.parametrize("port", [False, True])
def test_reuse_is_set_as_asked(family: int, kind: int, address: bool, port: bool) -> None:
    """Both options, each by itself, on IPv4 and IPv6, stream and datagram."""
    with socket.socket(family, kind) as sock:
        apply_reuse(sock, address, port)
        assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)) is address
        assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)) is port


@both_types
def test_reuse_means_nothing_to_a_unix_socket(kind: int) -> None:
    """What the kernel would refuse or ignore there is not asked of it."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        apply_reuse(sock, reuse_address=True, reuse_port=True)
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)


class Recorder(socket.socket):
    """A socket that notes its options, for those that this system does not have."""

    def __init__(self, kind: int) -> None:
        super().__init__(socket.AF_INET, kind)
        self.options: list[int] = []

    def setsockopt(self, level: int, option: int, value: int) -> None:  # type: ignore[override]
        """Note it."""
        assert (level, value) == (socket.SOL_SOCKET, 1)
        self.options.append(option)


def test_windows_binds_streams_exclusively(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SO_REUSEADDR lets others take the port, a stream server gets the opposite; datagrams may want to share."""
    exclusive = ~socket.SO_REUSEADDR
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", exclusive, raising=False)
    monkeypatch.delattr(socket, "SO_REUSEPORT")
    with Recorder(socket.SOCK_STREAM) as stream, Recorder(socket.SOCK_DGRAM) as datagram:
        for sock in (stream, datagram):
            apply_reuse(sock, reuse_address=True, reuse_port=True)
        assert stream.options == [exclusive]
        assert datagram.options == [socket.SO_REUSEADDR]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("::1", socket.AF_INET6),
        ("::", socket.AF_INET6),
        ("fe80::1%eth0", socket.AF_INET6),
        ("127.0.0.1", socket.AF_INET),
        ("localhost", socket.AF_INET),
        ("", socket.AF_INET),
        ("::1\0", socket.AF_INET),
        (None, socket.AF_INET),
        (b"::1", socket.AF_INET),
        (4711, socket.AF_INET),
    ],
)
def test_an_ipv6_literal_chooses_its_family(host: object, expected: int) -> None:
    """Only an IPv6 literal changes the family, whatever else a host may be."""
    assert family_of(host, socket.AF_INET) == expected


# inherited descriptors


def test_an_adopted_listener_serves_and_belongs_to_the_socket() -> None:
    """Family, type and connections are those of the descriptor; closing the socket closes it."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as original:
        address, fd = original.getsockname(), original.detach()
    os.set_blocking(fd, False)
    os.set_inheritable(fd, True)
    with adopt(fd) as sock:
        assert (sock.family, sock.type, sock.fileno()) == (socket.AF_INET6, socket.SOCK_STREAM, fd)
        assert os.get_blocking(fd)
        assert sock.gettimeout() is None
        assert not os.get_inheritable(fd)
        with socket.create_connection(address[:2], LIMIT), sock.accept()[0] as connection:
            assert connection.getsockname() == address
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_adopting_what_is_no_socket_is_refused_and_leaves_it_alone(tmp_path: pathlib.Path) -> None:
    """A file stays open and usable for whoever has it; a number that stands for nothing is refused alike."""
    with (tmp_path / "file").open("wb") as file:
        with pytest.raises(AddressError, match=f"descriptor {file.fileno()} is not an open socket"):
            adopt(file.fileno())
        file.write(b"still mine")
        closed = os.dup(file.fileno())
    os.close(closed)
    for fd in (closed, -1, 2**70):
        with pytest.raises(AddressError, match=f"descriptor {fd} is not an open socket"):
            adopt(fd)
    assert (tmp_path / "file").read_bytes() == b"still mine"


# names


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("/run/app.sock", "/run/app.sock"),
        (b"\0name", "\0name"),
        (b"\0\xff", "\0\udcff"),
        (b"", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_a_unix_name_is_text_and_its_own_first_item(told: str | bytes | None, expected: str) -> None:
    """Equal to the str, hashed and sliced as one, but ``name[0]`` is all of it, also of the empty one."""
    name = unix_name(told)
    assert isinstance(name, str)
    assert name == expected
    assert {expected: 1}[name] == 1
    assert name[0] == expected
    assert type(name[0]) is str
    assert name[:1] == expected[:1]
    assert list(name) == list(expected)
    assert unix_name(name) == expected
    assert pickle.loads(pickle.dumps(name)) == name  # noqa: S301 - our own
    with pytest.raises(IndexError):
        name[len(expected) or 1]
    if expected:
        assert name[-1] == expected[-1]


@both_types
@pytest.mark.parametrize("address", ["\0sockserve test of \udcff names", "app.sock"])
def test_a_unix_name_reaches_its_socket(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, kind: int, address: str
) -> None:
    """What a socket told about itself is where sendto() and connect() find it."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, kind) as server, socket.socket(socket.AF_UNIX, kind) as client:
        bind_unix(server, address, None)
        name = unix_name(server.getsockname())
        assert name == address
        if kind == socket.SOCK_DGRAM:
            client.sendto(b"hello", name)
            data, peer = server.recvfrom(10)
            assert data == b"hello"
            assert unix_name(peer)[0] == ""
        else:
            server.listen()
            client.connect(name)
            assert unix_name(client.getpeername()) == name


def test_http_server_logs_a_unix_peer() -> None:
    """``http.server`` logs ``client_address[0]``, also of a peer that bound no name."""
    handler = http.server.BaseHTTPRequestHandler.__new__(http.server.BaseHTTPRequestHandler)
    handler.client_address = UnixName("/run/peer.sock")  # type: ignore[assignment]
    assert handler.address_string() == "/run/peer.sock"
    handler.client_address = unix_name(None)  # type: ignore[assignment]
    assert handler.address_string() == ""
