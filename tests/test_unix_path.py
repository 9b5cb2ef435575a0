"""Unix paths that others reach too: links in the place of a socket, and processes that share one since a fork."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import pathlib
import signal
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.handlers import handlers
from support.log_watch import ExpectLog
from support.under_test import LIMIT

import sockserve
from sockserve.net import unix_path
from sockserve.net.unix_path import BoundPath, bind_unix
from sockserve.pytest_plugin import Running
from sockserve.testing import ask

Put = Callable[[pathlib.Path, pathlib.Path], object]

PUT: dict[str, Put] = {
    "a symbolic link": lambda path, other: path.symlink_to(other),
    "a file": lambda path, other: path.write_text(other.name),
    "a directory": lambda path, _: path.mkdir(),
}


@pytest.fixture
def path() -> Iterator[pathlib.Path]:
    """A path that is short enough for a socket address, in a directory of its own, with a private file beside it."""
    with tempfile.TemporaryDirectory() as directory:
        pathlib.Path(directory, "private").touch(0o600)
        yield pathlib.Path(directory, "app.sock")


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """One that takes permissions."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def exchange(path: pathlib.Path, put: Put) -> None:
    """Put something in the place of a path."""
    path.unlink()
    put(path, path.with_name("private"))


@pytest.mark.parametrize("put", PUT.values(), ids=PUT)
@pytest.mark.parametrize("mode", [None, 0o666])
def test_what_is_no_socket_is_not_taken_for_the_bound_one(path: pathlib.Path, put: Put, mode: int | None) -> None:
    """Exchanged right after the bind: refused, left where it is, and its permissions as they were."""

    class Robbed(socket.socket):
        def bind(self, address: Any, /) -> None:
            super().bind(address)
            exchange(path, put)

    with Robbed(socket.AF_UNIX) as sock, pytest.raises(OSError, match="another program") as refused:
        bind_unix(sock, path, mode)
    assert refused.value.errno == errno.EADDRINUSE
    assert not stat.S_ISSOCK(path.lstat().st_mode)
    assert stat.S_IMODE(path.with_name("private").stat().st_mode) == 0o600


@pytest.mark.parametrize("is_privileged", [False, True])
@pytest.mark.parametrize("moment", ["ioctl", "open", "fstat", "chmod"])
@pytest.mark.parametrize("put", [*PUT.values(), lambda path, _: socket_at(path)], ids=[*PUT, "a socket"])
def test_permissions_are_given_to_no_other_file(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, put: Put, moment: str, is_privileged: bool
) -> None:
    """Whatever is put there, and whenever, before the permissions that the umask took are added: it keeps its own."""
    modes = list[list[int]]()

    def modes_now() -> list[int]:
        return [stat.S_IMODE(file.lstat().st_mode) for file in (path, path.with_name("private"))]

    def put_then(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        monkeypatch.undo()
        if not is_privileged:
            monkeypatch.setattr(fcntl, "ioctl", refuse)
        exchange(path, put)
        modes.append(modes_now())
        return call(*args, **options)

    def refuse(*_: Any) -> int:
        raise OSError(errno.EPERM, "no CAP_NET_ADMIN")

    module: Any = fcntl if moment == "ioctl" else os
    ioctl = fcntl.ioctl if is_privileged else refuse
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    before = getattr(module, moment)
    monkeypatch.setattr(module, moment, lambda *args, **options: put_then(before, *args, **options))
    with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
        bind_unix(sock, path, 0o666)
    monkeypatch.undo()
    # A privileged server does not open the path at all.
    assert modes == ([] if not modes and moment == "open" else [modes_now()])


def socket_at(path: pathlib.Path) -> None:
    """Leave another socket there."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))


def test_a_hard_link_to_another_socket_keeps_its_permissions(path: pathlib.Path) -> None:
    """It is a socket, but another program has another name for it."""
    elsewhere = path.with_name("elsewhere")

    class Robbed(socket.socket):
        def bind(self, address: Any, /) -> None:
            super().bind(address)
            path.unlink()
            socket_at(elsewhere)
            elsewhere.chmod(0o600)
            os.link(elsewhere, path)

    with Robbed(socket.AF_UNIX) as sock, pytest.raises(OSError, match="another program"):
        bind_unix(sock, path, 0o666)
    assert stat.S_IMODE(elsewhere.lstat().st_mode) == 0o600


def test_without_fchmodat_missing_permissions_are_an_error(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform that can give them by name only: the bind fails, and leaves no path."""

    def chmod(*_: Any, follow_symlinks: bool) -> None:
        assert not follow_symlinks
        raise NotImplementedError

    monkeypatch.setattr(unix_path.sys, "platform", "other")
    monkeypatch.setattr(os, "chmod", chmod)
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError, match="umask") as refused:
        bind_unix(sock, path, 0o666)
    assert refused.value.errno == errno.ENOTSUP
    assert not path.exists()


# who removes it


class Forked:
    """A child process that does one step each time that it is told to."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self._ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._ours.close()
                for step in steps:
                    if theirs.recv(1) != b"?":
                        break
                    theirs.sendall(b"\1" if step() else b"\0")
                theirs.recv(1)
            finally:
                os._exit(0)
        theirs.close()
        self._ours.settimeout(LIMIT)

    def step(self) -> bool:
        """Do the next step; return what came of it."""
        self._ours.sendall(b"?")
        return self._ours.recv(1) == b"\1"

    def end(self, signum: int = 0) -> None:
        """End without a word."""
        if signum:
            os.kill(self.pid, signum)
        else:
            self._ours.sendall(b".")
        self._ours.close()
        os.waitpid(self.pid, 0)


@pytest.fixture(params=[socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["stream", "datagram"])
def server(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """A Unix socket, not yet bound."""
    with socket.socket(socket.AF_UNIX, request.param) as sock:
        yield sock


@pytest.fixture
def bound(server: socket.socket, path: pathlib.Path) -> BoundPath:
    """Its path, with the server ready for clients."""
    bound = bind_unix(server, path, None)
    assert bound is not None
    if server.type == socket.SOCK_STREAM:
        server.listen()
    return bound


def end(server: socket.socket, bound: BoundPath) -> Callable[[], bool]:
    """End this process's copy."""
    return lambda: bound.end(server.close)


def serve(bound: BoundPath) -> Callable[[], object]:
    """Begin to serve."""
    return bound.serve


def test_a_child_that_does_not_serve_leaves_the_path(
    server: socket.socket, bound: BoundPath, path: pathlib.Path
) -> None:
    """Its parent has the socket, and removes the path at its own end."""
    child = Forked(end(server, bound))
    assert not child.step()
    child.end()
    assert path.exists()
    assert bound.end(server.close)
    assert not path.exists()


def test_a_parent_leaves_the_path_to_the_child_that_serves(
    server: socket.socket, bound: BoundPath, path: pathlib.Path
) -> None:
    """The parent closes first: the path stays for the clients of the child, and goes with that."""
    child = Forked(serve(bound), end(server, bound))
    child.step()
    assert not bound.end(server.close)
    assert path.exists()
    assert child.step()
    child.end()
    assert not path.exists()


def test_a_parent_that_closes_before_its_child_serves_leaves_the_path(
    server: socket.socket, bound: BoundPath, path: pathlib.Path
) -> None:
    """A daemon: the parent ends before anything is served; the child removes the path, whether it served or not."""
    child = Forked(end(server, bound))
    assert not bound.end(server.close)
    assert path.exists()
    assert child.step()
    child.end()


def test_the_last_of_several_that_serve_removes_the_path(
    server: socket.socket, bound: BoundPath, path: pathlib.Path
) -> None:
    """Two children serve one socket, and each ends in its time; the parent has only bound it."""
    first, second = [Forked(serve(bound), end(server, bound)) for _ in range(2)]
    assert [child.step() for child in (first, second)] == [False, False]
    assert not first.step()
    first.end()
    assert path.exists()
    assert second.step()
    second.end()
    assert not bound.end(server.close)


def test_one_that_was_killed_serves_no_more(server: socket.socket, bound: BoundPath, path: pathlib.Path) -> None:
    """A child that ends by SIGKILL says nothing: the path goes with the other one that serves."""
    killed = Forked(serve(bound))
    killed.step()
    bound.serve()
    killed.end(signal.SIGKILL)
    helper = Forked()
    assert bound.end(server.close)
    assert not path.exists()
    helper.end()


def test_a_path_whose_server_was_killed_goes_with_the_one_that_bound_it(
    server: socket.socket, bound: BoundPath, path: pathlib.Path
) -> None:
    """The parent has not served, but no process has the socket after its own close."""
    child = Forked(serve(bound))
    child.step()
    child.end(signal.SIGKILL)
    assert bound.end(server.close)
    assert not path.exists()


def test_a_helper_that_has_the_socket_does_not_keep_the_path(
    server: socket.socket, bound: BoundPath, path: pathlib.Path
) -> None:
    """A child forked for something else keeps the socket open; it does not serve, and the path goes."""
    helper = Forked()
    bound.serve()
    assert bound.end(server.close)
    assert not path.exists()
    helper.end()


def test_a_child_of_a_server_never_removes_the_path(
    server: socket.socket, bound: BoundPath, path: pathlib.Path
) -> None:
    """It was made for one request, and ends after its parent was killed."""

    def server_with_child() -> None:
        bound.serve()
        child = Forked(end(server, bound))
        server.close()
        assert not child.step()
        child.end()

    parent = Forked(lambda: server_with_child() is None)
    server.close()
    assert parent.step()
    parent.end()
    assert path.exists()


def test_a_path_that_another_server_has_by_now_stays(
    server: socket.socket, bound: BoundPath, path: pathlib.Path
) -> None:
    """The one that looks last finds another socket at the path."""
    helper = Forked()

    def close() -> None:
        server.close()
        helper.end()
        path.unlink()
        socket_at(path)

    assert not bound.end(close)
    assert path.exists()


@pytest.mark.parametrize("verb", ["serve_forever", "handle_request"])
def test_servers_know_which_process_serves(running: Running, path: pathlib.Path, verb: str) -> None:
    """``server_close()`` in the parent leaves the path to the child that serves, in a loop or without one."""
    server = sockserve.UnixStreamServer(str(path), handlers(sockserve).Echo)

    def serve_one() -> bool:
        if verb == "serve_forever":
            running(server)
        else:
            server.handle_request()
        return True

    def close() -> bool:
        server.shutdown(LIMIT)
        server.server_close()
        return path.exists()

    child = Forked(serve_one, close)
    if verb == "serve_forever":
        assert child.step()
        server.server_close()
        assert ask(str(path), b"hello") == b"hello"
    else:
        server.server_close()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.shutdown(socket.SHUT_WR)
            assert child.step()
    assert path.exists()
    assert not child.step()
    child.end()
    assert not path.exists()


def test_a_worker_process_leaves_the_path(running: Running, path: pathlib.Path, expect_log: ExpectLog) -> None:
    """Workers come and go; the path stays until the supervisor closes."""
    expect_log(logging.WARNING, "early end number", at_least=0)
    bases = (sockserve.PreForkMixIn, sockserve.UnixStreamServer)
    server = running(type("Server", bases, {"processes": 1, "max_requests": 1})(str(path), handlers(sockserve).Echo))
    assert [ask(server, b"hello") for _ in range(3)] == [b"hello"] * 3
    assert path.exists()
    server.shutdown(LIMIT)
    server.server_close()
    assert not path.exists()
