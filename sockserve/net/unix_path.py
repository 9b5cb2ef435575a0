"""The path of a Unix socket: bound, given its permissions, and removed in the end.

Rule 1. A path that a process has bound is never taken away from it, and what is no socket is never removed.
Rule 2. A path is removed by the process that serves, and only while it is still what was bound: with the socket still
open if no other process can be serving, and else once no process has the socket.
Rule 3. In doubt it belongs to another process.
Rule 4. Permissions are given to the socket that was bound, never to a name: that may be a link by then.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from sockserve.errors import AddressError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    import pathlib

__all__ = ["BoundPath", "bind_unix"]

_LOCK_PATIENCE = 2.0
"""Seconds to wait for other starters in the directory. Each holds the lock for microseconds. A process that holds it
longer is no starter, and may be any that can read the directory: it must not keep a server from starting."""

_LOCK_PAUSE = 0.005
"""Seconds between two attempts at that lock."""

# Two threads that change it at the same time would each restore what the other had set.
_UMASK_LOCK = threading.Lock()


_SIOCUNIXFILE = 0x89E0
"""unix(7) does not have it, linux/un.h does: a descriptor of what the socket has bound, for CAP_NET_ADMIN."""

_forks = 0
"""How often this process has forked, and those that it comes from."""


def _count_fork() -> None:
    global _forks  # noqa: PLW0603
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_count_fork)


class _Servers:
    """The processes that serve from one path, as all see it that were forked since: memory that they share."""

    def __init__(self) -> None:
        try:
            self._pids: memoryview | None = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("i")
        except OSError:
            # ENOMEM: then any may serve.
            self._pids = None

    def add(self) -> None:
        """Count this process in. Idempotent."""
        pids = self._pids
        if pids is None:
            return
        pids[0] = True
        pid, places = os.getpid(), len(pids) - 1
        # Another place for each process number, or two that begin at the same moment might take the same one.
        for step in range(places):
            place = 1 + (pid + step) % places
            if pids[place] == pid or not _is_alive(pids[place]):
                pids[place] = pid
                return

    def discard(self) -> None:
        """Count this process out."""
        pids, pid = self._pids, os.getpid()
        for place in () if pids is None else range(1, len(pids)):
            if pids[place] == pid:  # type: ignore[index]
                pids[place] = 0  # type: ignore[index]

    def has_any_served(self) -> bool:
        """Whether any process has served since the path was bound."""
        return self._pids is None or bool(self._pids[0])

    def are_others(self) -> bool:
        """Whether another process serves."""
        return self._pids is None or any(pid != os.getpid() and _is_alive(pid) for pid in set(self._pids[1:]))


def _is_alive(pid: int) -> bool:
    if pid == 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        # EPERM: another user's.
        pass
    return True


class BoundPath:
    """A path in the file system that this process, or one that it comes from, has bound a Unix socket to."""

    def __init__(self, path: pathlib.Path, found: os.stat_result) -> None:
        self.path = path
        """Absolute: it survives chdir()."""
        self.identity = _identity(found)
        self._pid = os.getpid()
        self._forks = _forks
        self._servers = _Servers()
        self._server_pid = 0

    def serve(self) -> None:
        """Note that this process serves from now on, until ``end()``. From any thread."""
        pid = os.getpid()
        if self._server_pid != pid:
            self._servers.add()
            self._server_pid = pid

    def end(self, close: Callable[[], object]) -> bool:
        """Call ``close()``, which closes the socket, and remove the path if that is up to this process; say whether so.

        It is if this process serves and no other; or if it served or bound it, and no process has the socket any more.
        A child that did neither removes it only if none has served: a server may have become a daemon after the bind.
        Raises what ``close()`` raises. May be called again.
        """
        if self._is_up_to_this_process():
            # Before the close: an open socket keeps others from taking the path for a dead server's.
            is_removed = self.unlink()
            self._leave()
            close()
            return is_removed
        serves = self._server_pid == os.getpid()
        self._leave()
        close()
        if not (serves or self._pid == os.getpid() or not self._servers.has_any_served()):
            return False
        try:
            # In this order, if there is one descriptor left: without the lock it is as without such locks.
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        except OSError:
            return False
        with probe, _one_starter_at_a_time(self.path.parent):
            return _is_dead(probe, os.fspath(self.path)) and self.unlink()

    def _is_up_to_this_process(self) -> bool:
        if self._pid == os.getpid() and self._forks == _forks:
            return True
        return self._server_pid == os.getpid() and not self._servers.are_others()

    def _leave(self) -> None:
        if self._server_pid == os.getpid():
            self._servers.discard()
            self._server_pid = 0

    def unlink(self) -> bool:
        """Remove the path if it is still what was bound, and say whether it was removed. Never raises, idempotent."""
        try:
            if _identity(self.path.lstat()) != self.identity:
                return False
            self.path.unlink()
        except OSError:
            # Gone already, or in a directory that this process may no longer write to.
            return False
        return True


def _identity(found: os.stat_result) -> tuple[int, ...]:
    # The time as well: ext4 gives the number of a removed file to the next one. chmod() and chown() do not change it.
    return found.st_dev, found.st_ino, found.st_mtime_ns


def bind_unix(
    sock: socket.socket, address: str | bytes | os.PathLike[str] | os.PathLike[bytes], mode: int | None
) -> BoundPath | None:
    """Bind a Unix socket; a path that a dead server left behind is replaced, anything else there is not touched.

    Of any number of processes that do this for one path at the same time, one succeeds and keeps it. ``mode``: the
    path's permissions, whatever the umask; at no moment is it open to anybody else. None: what the umask leaves.
    Returns None if no path was made: for an abstract name, and for the empty one, which Linux replaces (unix(7)).

    Raises OSError: EADDRINUSE, naming the path, if something is there that cannot be known to be dead, or another
    program has exchanged what was bound; else as bind(2).
    AddressError if a NUL is inside the path, where the kernel would end it.
    """
    name = os.fspath(address)
    raw = os.fsencode(name)
    if not raw or raw.startswith(b"\0"):
        sock.bind(name)
        return None
    if b"\0" in raw:
        raise AddressError(f"a Unix socket's path cannot contain a NUL: {name!r}")
    # Most servers have no path, and shall not pay for the import.
    import pathlib  # noqa: PLC0415

    path = pathlib.Path(os.fsdecode(raw))
    if not path.is_absolute():
        path = pathlib.Path.cwd() / path
    if not _try_to_bind(sock, name, mode):
        with _one_starter_at_a_time(path.parent):
            _remove_stale(name, path)
            if not _try_to_bind(sock, name, mode):
                raise _in_use(path, "a server that was quicker")
    found = path.lstat()
    if not stat.S_ISSOCK(found.st_mode):
        raise _exchanged(path)
    bound = BoundPath(path, found)
    if mode is not None and stat.S_IMODE(found.st_mode) != mode:
        try:
            _permit(sock, bound, mode)
        except BaseException:
            bound.unlink()
            raise
    return bound


def _permit(sock: socket.socket, bound: BoundPath, mode: int) -> None:
    """Give what was bound the permissions that the umask took from ``mode``. Raises OSError."""
    if sys.platform != "linux":
        if not _is_bound(bound, bound.path.lstat(), mode):
            raise _exchanged(bound.path)
        try:
            os.chmod(bound.path, mode, follow_symlinks=False)
        except NotImplementedError as error:
            what = "without fchmodat(2) a path has no permission that the umask takes"
            raise OSError(errno.ENOTSUP, what, str(bound.path)) from error
        return
    try:
        fd: int = fcntl.ioctl(sock.fileno(), _SIOCUNIXFILE)
    except OSError:
        fd = os.open(bound.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not _is_bound(bound, os.fstat(fd), mode):
            raise _exchanged(bound.path)
        # open(2), O_PATH: such a descriptor names the file itself, whatever its path leads to by now.
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def _is_bound(bound: BoundPath, found: os.stat_result, mode: int) -> bool:
    # A hard link may lead to another program's socket, and what bind() made has no permission beyond the mode.
    is_ours = stat.S_ISSOCK(found.st_mode) and found.st_nlink == 1 and not stat.S_IMODE(found.st_mode) & ~mode
    return is_ours and _identity(found) == bound.identity


def _exchanged(path: pathlib.Path) -> OSError:
    return _in_use(path, "what another program has put in the place of the socket")


def _try_to_bind(sock: socket.socket, name: str | bytes, mode: int | None) -> bool:
    """Bind; False if something is there already."""
    try:
        with contextlib.nullcontext() if mode is None else _new_path_open_at_most(sock, mode):
            sock.bind(name)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


@contextlib.contextmanager
def _new_path_open_at_most(sock: socket.socket, mode: int) -> Generator[None]:
    """Make bind() give the new path no permission that is not in ``mode``."""
    try:
        # Linux gives the path the socket's own permissions, less the umask.
        os.fchmod(sock.fileno(), mode)
    except OSError:
        # macOS and the BSDs: EINVAL for a socket. The umask is every thread's, so it may only forbid more.
        with _UMASK_LOCK:
            umask = os.umask(0o777 & ~mode | 0o077)
            try:
                yield
            finally:
                os.umask(umask)
    else:
        yield


def _remove_stale(name: str | bytes, path: pathlib.Path) -> None:
    """Remove a path that is a socket which no process has bound. Raises OSError for any other that exists."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise _in_use(path, "something that is not a socket")
        # A datagram socket, whatever is there. To a stream socket it gets EPROTOTYPE, even before that one listens, and
        # ECONNREFUSED only if no process has it bound. One of the same type would be refused before the other listens,
        # would wait for a full backlog, and would be a client of a live server.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            if not _is_dead(probe, name):
                raise _in_use(path, "a live server")
        path.unlink()


def _is_dead(probe: socket.socket, name: str | bytes) -> bool:
    return probe.connect_ex(name) in (errno.ECONNREFUSED, errno.ENOENT)


def _in_use(path: pathlib.Path, what: str) -> OSError:
    return OSError(errno.EADDRINUSE, f"{os.strerror(errno.EADDRINUSE)} by {what}", str(path))


@contextlib.contextmanager
def _one_starter_at_a_time(directory: pathlib.Path) -> Generator[None]:
    """Keep other starters from judging a path of this directory while this one replaces it (flock(2)).

    Without that, two may find the same dead socket, and the slower one removes what the quicker one has just bound.
    """
    try:
        lock = os.open(directory, os.O_RDONLY)
    except OSError:
        # It may be written to but not read, or there is no descriptor left.
        yield
        return
    try:
        _wait_for_lock(lock)
        yield
    finally:
        with contextlib.suppress(OSError):
            # Closing is not enough: a child that was forked meanwhile holds a copy.
            fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


def _wait_for_lock(lock: int) -> None:
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return
            time.sleep(_LOCK_PAUSE)  # noqa: TID251 - flock(2) has no time limit
        except OSError:
            # A file system without such locks, NFS for one.
            return
        else:
            return
