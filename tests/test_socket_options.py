"""What a server's socket has from the start, and accepted connections inherit."""

from __future__ import annotations

import os
import pathlib
import pwd
import socket
import stat
from typing import Any

import pytest
from support.models import MODELS

import sockserve
from sockserve.net.unix_path import Owners
from sockserve.pytest_plugin import Running
from sockserve.ready_made import server_class
from sockserve.testing import ask, connect


class Ask(sockserve.StreamRequestHandler):
    """Answers what its connection inherited."""

    def handle(self) -> None:
        """Serve one connection."""
        tcp = (
            socket.TCP_NODELAY,
            socket.TCP_KEEPIDLE,
            socket.TCP_KEEPINTVL,
            socket.TCP_KEEPCNT,
            socket.TCP_USER_TIMEOUT,
        )
        values = [self.connection.getsockopt(socket.IPPROTO_TCP, option) for option in tcp]
        values.append(self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        self.wfile.write(repr([int(value) for value in values]).encode())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections_inherit_them(model: str, host: str, running: Running) -> None:
    """In each model, with no system call for a connection; the options of the program's own are set before bind()."""

    class Server(server_class(model, "tcp")):  # type: ignore[misc]
        keepalive = (61, 16, 5)
        socket_options = (
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 3000),
            (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1),
        )

    server = running(Server((host, 0), Ask))
    assert server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) > 0
    with connect(server) as client:
        client.sendall(b"x")
        assert client.recv(100) == b"[1, 61, 16, 5, 3000, 1]"


def test_the_defaults(running: Running) -> None:
    """Small writes are sent at once; a silent peer is not asked. The old way is one attribute."""

    class Old(sockserve.TCPServer):
        disable_nagle_algorithm = False

    inherited = ask(running(sockserve.TCPServer(("127.0.0.1", 0), Ask)), b"")
    assert (inherited[:4], inherited[-6:]) == (b"[1, ", b" 0, 0]")
    assert ask(running(Old(("127.0.0.1", 0), Ask)), b"")[:4] == b"[0, "


@pytest.mark.parametrize("scheme", ["udp", "unix", "unix-dgram"])
def test_they_have_no_effect_where_they_have_no_meaning(scheme: str, tmp_path: pathlib.Path) -> None:
    """One class may set them for all kinds of sockets."""

    class Server(server_class("inline", scheme)):  # type: ignore[misc]
        keepalive = (61, 16, 5)

    address: Any = str(tmp_path / "s") if scheme.startswith("unix") else ("127.0.0.1", 0)
    with Server(address, sockserve.BaseRequestHandler) as server:
        assert server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


def test_an_option_that_is_refused_is_named() -> None:
    """The error says which of several it was, and nothing stays open."""

    class Server(sockserve.TCPServer):
        socket_options = ((socket.SOL_SOCKET, socket.SO_PRIORITY, 3), (socket.SOL_SOCKET, 12345, 1))

    with pytest.raises(OSError, match="not available") as caught:
        Server(("127.0.0.1", 0), Ask)
    assert caught.value.__notes__ == [f"socket option ({int(socket.SOL_SOCKET)}, 12345, 1)"]


@pytest.mark.skipif(os.geteuid() != 0, reason="to give a file away needs root")
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_path_belongs_to_whom_the_class_says(
    kind: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Y30: owner, group and mode are there before the socket listens, and the umask of the process is not changed."""
    user = pwd.getpwnam("nobody")
    seen: list[tuple[int, int, int]] = []

    class Server(sockserve.UnixStreamServer):
        socket_type = kind
        socket_owner = "nobody"
        socket_group = user.pw_gid
        socket_mode = 0o660

        def server_activate(self) -> None:
            found = os.stat(self.server_address)
            seen.append((found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)))
            if kind != socket.SOCK_DGRAM:
                super().server_activate()

    def refuse(_mask: int) -> int:
        raise AssertionError("the umask is the whole process's")

    monkeypatch.setattr(os, "umask", refuse)
    with Server(str(tmp_path / "s"), Ask):
        assert seen == [(user.pw_uid, user.pw_gid, 0o660)]
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="to give a file away needs root")
def test_a_missing_directory_is_made(tmp_path: pathlib.Path) -> None:
    """With its permissions and owners; one that is there is left as it is."""
    user = pwd.getpwnam("nobody")

    class Server(sockserve.UnixStreamServer):
        directory_mode = 0o2750
        socket_owner = user.pw_uid
        socket_group = user.pw_gid

    for _ in range(2):
        with Server(str(tmp_path / "run" / "s"), Ask):
            found = (tmp_path / "run").stat()
            assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (user.pw_uid, user.pw_gid, 0o2750)
    (tmp_path / "run").chmod(0o700)
    with Server(str(tmp_path / "run" / "s"), Ask):
        assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


def test_without_directory_mode_it_must_be_there(tmp_path: pathlib.Path) -> None:
    """As bind(2) says."""
    with pytest.raises(FileNotFoundError):
        sockserve.UnixStreamServer(str(tmp_path / "run" / "s"), Ask)


def test_a_user_that_the_system_does_not_know_is_an_error_before_anything_is_made(tmp_path: pathlib.Path) -> None:
    """The path is not there afterwards."""

    class Server(sockserve.UnixStreamServer):
        socket_owner = "no such user"

    with pytest.raises(LookupError, match="the system knows no user 'no such user'"):
        Server(str(tmp_path / "s"), Ask)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LookupError, match="no group 'no such group'"):
        Owners(group="no such group").numbers()
