"""Unix paths: taken from the dead, never from the living, with the permissions asked for, removed by the owner."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator

import pytest

from sockserve.errors import AddressError
from sockserve.net import unix_path
from sockserve.net.unix_path import BoundPath, bind_unix

LIMIT = 30.0
TYPES = [socket.SOCK_STREAM, socket.SOCK_DGRAM]
both_types = pytest.mark.parametrize("kind", TYPES, ids=["stream", "dgram"])

Open = Callable[..., socket.socket]


@pytest.fixture
def open_socket() -> Iterator[Open]:
    """Unix sockets that are closed when the test ends."""
    with contextlib.ExitStack() as stack:

        def open_one(kind: int = socket.SOCK_STREAM) -> socket.socket:
            return stack.enter_context(socket.socket(socket.AF_UNIX, kind))

        yield open_one


@pytest.fixture
def path() -> Iterator[pathlib.Path]:
    """A path that is short enough for a socket address, in a directory of its own."""
    with tempfile.TemporaryDirectory() as directory:
        yield pathlib.Path(directory, "app.sock")


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """Set the umask until the test ends."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def inode(path: pathlib.Path) -> tuple[int, int]:
    """What is at a path now."""
    found = path.lstat()
    return found.st_dev, found.st_ino


def leave_stale(path: pathlib.Path, kind: int = socket.SOCK_STREAM) -> None:
    """Leave what a server leaves that was killed."""
    with socket.socket(socket.AF_UNIX, kind) as dead:
        dead.bind(str(path))
        if kind == socket.SOCK_STREAM:
            dead.listen()


def _bind(sock: socket.socket, address: str | pathlib.Path, mode: int | None = None) -> BoundPath:
    bound = bind_unix(sock, address, mode)
    assert bound is not None
    return bound


# binding


@both_types
@pytest.mark.parametrize("form", [str, os.fsencode, pathlib.Path], ids=["str", "bytes", "PathLike"])
def test_a_path_in_any_form_is_bound(
    path: pathlib.Path, open_socket: Open, kind: int, form: Callable[..., str]
) -> None:
    """A str, bytes or PathLike that does not exist yet is what the socket is bound to."""
    sock = open_socket(kind)
    bound = bind_unix(sock, form(path), None)
    assert sock.getsockname() == str(path)
    assert bound is not None
    assert bound.path == path
    assert stat.S_ISSOCK(path.lstat().st_mode)


@both_types
@pytest.mark.parametrize("name", ["", b"", "\0sockserve test of names", b"\0sockserve\0test of names"])
def test_a_name_without_a_file_gives_nothing_to_remove(open_socket: Open, kind: int, name: str | bytes) -> None:
    """An abstract name, or the one that the kernel chooses, is bound and needs no clean-up."""
    sock = open_socket(kind)
    assert bind_unix(sock, name, 0o600) is None
    assert sock.getsockname().startswith(os.fsencode(name) or b"\0")


@both_types
@pytest.mark.parametrize("dead", TYPES, ids=["stream", "dgram"])
def test_a_stale_path_is_replaced(path: pathlib.Path, open_socket: Open, kind: int, dead: int) -> None:
    """A socket file that no process has bound any more gives way, whatever type it was of."""
    leave_stale(path, dead)
    with socket.socket(socket.AF_UNIX, dead) as client:
        assert client.connect_ex(str(path)) == errno.ECONNREFUSED
    server = open_socket(kind)
    bind_unix(server, path, 0o600)
    if kind == socket.SOCK_STREAM:
        server.listen()
    open_socket(kind).connect(str(path))
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600


def _fill_backlog(server: socket.socket, open_socket: Open) -> None:
    server.listen(0)
    result = 0
    while result == 0:
        client = open_socket()
        client.setblocking(False)
        result = client.connect_ex(server.getsockname())
    assert result == errno.EAGAIN


def _talk_to_one_peer_only(server: socket.socket, open_socket: Open) -> None:
    peer = open_socket(socket.SOCK_DGRAM)
    peer.bind(f"{server.getsockname()}.peer")
    server.connect(peer.getsockname())


LIVE: dict[str, tuple[int, Callable[[socket.socket, Open], None]]] = {
    "listening": (socket.SOCK_STREAM, lambda server, _: server.listen()),
    "bound only": (socket.SOCK_STREAM, lambda *_: None),
    "full backlog": (socket.SOCK_STREAM, _fill_backlog),
    "datagrams": (socket.SOCK_DGRAM, lambda *_: None),
    "datagrams of one peer": (socket.SOCK_DGRAM, _talk_to_one_peer_only),
    "packets": (socket.SOCK_SEQPACKET, lambda *_: None),
}


@both_types
@pytest.mark.parametrize("life", LIVE)
def test_a_live_server_keeps_its_path(path: pathlib.Path, open_socket: Open, kind: int, life: str) -> None:
    """Whoever has the path bound keeps it, listening or not, busy or not, of the same type or another."""
    owner_kind, begin = LIVE[life]
    owner = open_socket(owner_kind)
    owner.bind(str(path))
    begin(owner, open_socket)
    before = inode(path)
    second = open_socket(kind)
    with pytest.raises(OSError, match="in use by a live server") as refusal:
        bind_unix(second, path, None)
    assert refusal.value.errno == errno.EADDRINUSE
    assert str(path) in str(refusal.value)
    assert inode(path) == before
    assert owner.getsockname() == str(path)
    # The refused socket can still be bound elsewhere.
    bind_unix(second, f"{path}.second", None)


def test_a_live_server_is_not_bothered(path: pathlib.Path, open_socket: Open) -> None:
    """Looking whether somebody is there makes no connection and sends nothing."""
    stream, datagram = open_socket(), open_socket(socket.SOCK_DGRAM)
    stream.bind(str(path))
    stream.listen()
    datagram.bind(f"{path}.dgram")
    for server in (stream, datagram):
        with pytest.raises(OSError, match="in use"):
            bind_unix(open_socket(), server.getsockname(), None)
        server.setblocking(False)
    with pytest.raises(BlockingIOError):
        stream.accept()
    with pytest.raises(BlockingIOError):
        datagram.recv(1)


def _link_to_stale_socket(path: pathlib.Path) -> None:
    leave_stale(path.with_suffix(".target"))
    path.symlink_to(path.with_suffix(".target"))


NO_SOCKETS: dict[str, Callable[[pathlib.Path], object]] = {
    "file": pathlib.Path.touch,
    "directory": pathlib.Path.mkdir,
    "FIFO": os.mkfifo,
    "link to a stale socket": _link_to_stale_socket,
    "dangling link": lambda path: path.symlink_to("nowhere"),
}


@both_types
@pytest.mark.parametrize("what", NO_SOCKETS)
def test_what_is_no_socket_is_never_removed(path: pathlib.Path, open_socket: Open, kind: int, what: str) -> None:
    """Files, directories, links and FIFOs stay, although connect() answers ECONNREFUSED there too."""
    NO_SOCKETS[what](path)
    before = inode(path)
    with pytest.raises(OSError, match="not a socket") as refusal:
        bind_unix(open_socket(kind), path, None)
    assert (refusal.value.errno, refusal.value.filename) == (errno.EADDRINUSE, str(path))
    assert inode(path) == before


@pytest.mark.parametrize(
    ("name", "message"), [("x" * 120, "AF_UNIX path too long"), ("no/app.sock", "No such file or directory")]
)
def test_other_errors_of_bind_come_through(path: pathlib.Path, open_socket: Open, name: str, message: str) -> None:
    """A path that is too long, or in no directory, raises what ``socket.bind()`` raises."""
    with pytest.raises(OSError, match=message) as plain:
        open_socket().bind(str(path.parent / name))
    with pytest.raises(OSError, match=message) as ours:
        bind_unix(open_socket(), path.parent / name, 0o600)
    assert (type(ours.value), ours.value.args) == (type(plain.value), plain.value.args)


def test_a_nul_inside_a_path_is_refused(path: pathlib.Path, open_socket: Open) -> None:
    """The kernel would end the path there and bind another one."""
    with pytest.raises(AddressError, match="NUL"):
        bind_unix(open_socket(), f"{path}\0.sock", None)
    assert not path.exists()


# permissions


class Watched(socket.socket):
    """A socket that notes the permissions of its path in the moment that bind() made it."""

    born_with: int

    def bind(self, address: str, /) -> None:  # type: ignore[override]
        """Bind and look."""
        super().bind(address)
        self.born_with = stat.S_IMODE(os.lstat(address).st_mode)


@pytest.fixture(params=["Linux", "BSD"])
def _platform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to make a path with permissions: the BSDs and macOS have no fchmod() for sockets."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    if request.param == "BSD":
        monkeypatch.setattr(os, "fchmod", refuse)


@pytest.mark.usefixtures("_platform")
@both_types
@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o777, 0])
def test_a_path_is_never_more_open_than_its_mode(
    path: pathlib.Path, umask: Callable[[int], int], kind: int, mask: int, mode: int
) -> None:
    """Whatever the umask, the path is made with no permission beyond ``mode``, and ends up with exactly that."""
    leave_stale(path)
    umask(mask)
    with Watched(socket.AF_UNIX, kind) as sock:
        bind_unix(sock, str(path), mode)
        assert sock.born_with & ~mode == 0
    assert stat.S_IMODE(path.lstat().st_mode) == mode
    assert umask(mask) == mask


def test_without_a_mode_the_umask_decides(path: pathlib.Path, open_socket: Open, umask: Callable[[int], int]) -> None:
    """No mode, no change: as ``socket.bind()`` has it."""
    umask(0o027)
    bind_unix(open_socket(), path, None)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o750


# several starters at once


@contextlib.contextmanager
def locked(directory: pathlib.Path) -> Iterator[None]:
    """Hold the lock that starters take; BlockingIOError if somebody holds it."""
    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


@pytest.mark.parametrize("mode", [None, 0o600])
def test_of_many_starters_one_gets_the_path_and_keeps_it(path: pathlib.Path, mode: int | None) -> None:
    """However many find the same stale path at once, the one that succeeds is the one that clients reach."""
    starters, rounds = 8, 60
    barrier = threading.Barrier(starters)

    def start() -> tuple[socket.socket, BoundPath] | None:
        sock = socket.socket(socket.AF_UNIX)
        barrier.wait(LIMIT)
        try:
            return sock, _bind(sock, path, mode)
        except OSError as error:
            sock.close()
            if error.errno != errno.EADDRINUSE:
                raise
            return None

    with concurrent.futures.ThreadPoolExecutor(starters) as threads:
        for _ in range(rounds):
            leave_stale(path)
            outcomes = [future.result(LIMIT) for future in [threads.submit(start) for _ in range(starters)]]
            ((sock, bound),) = filter(None, outcomes)
            with sock, socket.socket(socket.AF_UNIX) as client:
                sock.listen()
                client.connect(str(path))
                assert bound.unlink()


def test_a_starter_waits_for_another_one_in_the_directory(path: pathlib.Path, open_socket: Open) -> None:
    """Nobody judges a path while another starter is replacing one."""
    leave_stale(path)
    before = inode(path)
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        with locked(path.parent):
            future = threads.submit(bind_unix, open_socket(), path, None)
            with pytest.raises(TimeoutError):
                future.result(0.1)
            assert inode(path) == before
        assert future.result(LIMIT) is not None


def test_a_lock_that_is_never_released_keeps_no_server_from_starting(
    path: pathlib.Path, open_socket: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody who may read the directory can hold that lock; after a while it is not waited for."""
    leave_stale(path)
    monkeypatch.setattr(unix_path, "_LOCK_PATIENCE", 0.05)
    with locked(path.parent):
        assert bind_unix(open_socket(), path, None) is not None


def test_no_lock_is_held_afterwards(path: pathlib.Path, open_socket: Open) -> None:
    """The directory is free again after a replacement and after a refusal."""
    leave_stale(path)
    bind_unix(open_socket(), path, None)
    with pytest.raises(OSError, match="in use"):
        bind_unix(open_socket(), path, None)
    with locked(path.parent):
        pass


def test_a_child_forked_meanwhile_holds_no_lock(path: pathlib.Path) -> None:
    """A child inherits the lock's descriptor and may live long."""
    told, tell = os.pipe()
    with unix_path._one_starter_at_a_time(path.parent):
        pid = os.fork()
        if pid == 0:
            os.close(tell)
            os.read(told, 1)
            os._exit(0)
    try:
        with locked(path.parent):
            pass
    finally:
        os.close(tell)
        os.close(told)
        os.waitpid(pid, 0)


def test_a_directory_that_cannot_be_locked_is_no_error(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that may not be read, or a file system without locks, is done without."""
    with unix_path._one_starter_at_a_time(path / "no such directory"):
        entered = ["unreadable"]

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with unix_path._one_starter_at_a_time(path.parent):
        entered.append("no locks")
    assert entered == ["unreadable", "no locks"]


# removing


def test_a_path_is_removed_once(path: pathlib.Path, open_socket: Open) -> None:
    """The one who bound it removes it; the second time there is nothing of his to remove."""
    bound = _bind(open_socket(), path, 0o600)
    path.chmod(0o660)
    assert bound.unlink()
    assert not path.exists()
    leave_stale(path)
    assert not bound.unlink()
    assert path.exists()


@pytest.mark.parametrize("closed", [False, True])
def test_a_path_that_is_somebody_elses_now_stays(path: pathlib.Path, open_socket: Open, closed: bool) -> None:
    """What was put in the place of the path since is not removed, even if the file system gave it the same number."""
    server = open_socket()
    bound = _bind(server, path)
    made = path.lstat().st_mtime_ns
    if closed:
        server.close()
    # A file system's clock ticks every few milliseconds.
    while path.lstat().st_mtime_ns == made:
        path.unlink()
        leave_stale(path)
    assert not bound.unlink()
    assert path.exists()


def test_a_path_that_is_gone_is_no_error(path: pathlib.Path, open_socket: Open) -> None:
    """Somebody removed it, or its whole directory: nothing to do."""
    bound = _bind(open_socket(), path)
    path.unlink()
    assert not bound.unlink()
    path.mkdir()
    bound = _bind(open_socket(), path / "app.sock")
    shutil.rmtree(path)
    assert not bound.unlink()


@pytest.mark.parametrize("name", ["app.sock", "./app.sock", "link/../app.sock"])
def test_a_relative_path_survives_chdir(
    path: pathlib.Path, open_socket: Open, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The path that was bound is removed, not one of that name elsewhere."""
    elsewhere = path.parent / "a" / "b"
    elsewhere.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.chdir(path.parent)
        pathlib.Path("link").symlink_to("a/b")
        bound = _bind(open_socket(), name)
        made = pathlib.Path(name).resolve()
        patch.chdir(elsewhere)
        leave_stale(pathlib.Path("app.sock"))
        assert made.exists()
        assert bound.unlink()
        assert not made.exists()
        assert pathlib.Path("app.sock").exists()
