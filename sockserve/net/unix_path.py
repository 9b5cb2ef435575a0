"""The path of a Unix socket: bound, given its permissions, and removed in the end.

Rule 1. A path that a live process has bound is never replaced, and a file that is no socket is never removed.
Rule 2. The process that serves removes the path, and only if it is still the socket that was bound: while the socket is
open if no other process can be serving, and otherwise after no process has the socket any more.
Rule 3. A path that may belong to another process does.
Rule 4. Permissions are given to the socket that was bound, never to a name: another program may have made that a link.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import mmap
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, NamedTuple

from sockserve.errors import AddressError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    import pathlib

__all__ = ["BoundPath", "Owners", "bind_unix"]

_LOCK_PATIENCE = 2.0
"""Seconds to wait for the lock of a directory. A server that starts holds it for microseconds. Any process that can
read the directory can hold it longer, and must not keep a server from starting."""

_LOCK_PAUSE = 0.005
"""Seconds between two attempts at that lock."""

# Of two threads that change the umask at the same time, each would restore what the other has set.
_UMASK_LOCK = threading.Lock()


_SIOCUNIXFILE = 0x89E0
"""ioctl of linux/un.h, not in unix(7): a descriptor of the path that the socket has bound. Needs CAP_NET_ADMIN."""

_forks = 0
"""How often this process and its ancestors have forked."""


def _count_fork() -> None:
    global _forks  # noqa: PLW0603
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_count_fork)


class _Servers:
    """The processes that serve from one path, in memory that they share: the process that bound it and its children.

    Any thread may call any method.
    """

    def __init__(self) -> None:
        try:
            self._pids: memoryview | None = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("i")
        except OSError:
            # ENOMEM: any process may be serving then.
            self._pids = None

    def add(self) -> None:
        """Add this process. May be called again."""
        pids = self._pids
        if pids is None:
            return
        pids[0] = True
        pid, places = os.getpid(), len(pids) - 1
        # The process id decides where the search begins: two processes that start it together take different places.
        for step in range(places):
            place = 1 + (pid + step) % places
            if pids[place] == pid or not _is_alive(pids[place]):
                pids[place] = pid
                return

    def discard(self) -> None:
        """Remove this process. No effect if it is not there."""
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
    """A path in the file system to which this process or its parent has bound a Unix socket.

    Any thread may call ``serve()``; one thread at a time calls the others.
    """

    def __init__(self, path: pathlib.Path, found: os.stat_result) -> None:
        self.path = path
        """Absolute: it survives chdir()."""
        self.identity = _identity(found)
        self._pid = os.getpid()
        self._forks = _forks
        self._servers = _Servers()
        self._server_pid = 0

    def serve(self) -> None:
        """Record that this process serves from now on, until ``end()``."""
        pid = os.getpid()
        if self._server_pid != pid:
            self._servers.add()
            self._server_pid = pid

    def end(self, close: Callable[[], object]) -> bool:
        """Close the socket by ``close()``, and remove the path if this process has to; True: it was removed.

        It has to if it is the only process that serves, or if it served or bound the path and no process has the socket
        any more. A child that did neither removes it only if no process has served: a server may have become a daemon
        after the bind. Raises what ``close()`` raises. May be called again.
        """
        if self._is_up_to_this_process():
            # Before the close: while the socket is open, no other server takes the path for a dead server's.
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
            # First the probe: if only one descriptor is left, the lock can be missing, the probe cannot.
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
        """Remove the path if it is still what was bound; True: it was removed. Never raises. May be called again."""
        try:
            if _identity(self.path.lstat()) != self.identity:
                return False
            self.path.unlink()
        except OSError:
            # The path is gone, or this process may not write to its directory any more.
            return False
        return True


def _identity(found: os.stat_result) -> tuple[int, ...]:
    # The time, too: ext4 gives the inode of a removed file to the next file. chmod() and chown() do not change it.
    return found.st_dev, found.st_ino, found.st_mtime_ns


class Owners(NamedTuple):
    """To what user and group a path is to belong: numbers, or names; None: as the system gives them."""

    user: int | str | None = None
    group: int | str | None = None

    def numbers(self) -> tuple[int, int]:
        """Return both as numbers, -1 for None. Raises LookupError for a name that the system does not know."""
        return _number_of(self.user, "user", "pwd", "getpwnam", 2), _number_of(
            self.group, "group", "grp", "getgrnam", 2
        )


def _number_of(name: int | str | None, what: str, module: str, function: str, place: int) -> int:
    if name is None or isinstance(name, int):
        return -1 if name is None else name
    try:
        return int(getattr(importlib.import_module(module), function)(name)[place])
    except KeyError:
        raise LookupError(f"the system knows no {what} {name!r}") from None


def bind_unix(
    sock: socket.socket,
    address: str | bytes | os.PathLike[str] | os.PathLike[bytes],
    mode: int | None,
    owners: Owners = Owners(),  # noqa: B008 - it never changes
    directory_mode: int | None = None,
) -> BoundPath | None:
    """Bind a Unix socket. A path that a dead server has left is replaced; anything else there is not touched.

    Of any number of processes that do this for one path at the same time, exactly one succeeds and keeps it. ``mode``:
    the path's permissions, whatever the umask; at no moment has it others. None: what the umask leaves. ``owners``: to
    what the path belongs before the socket listens. ``directory_mode``: the permissions of the path's directory, if
    that is missing and is to be made, with the same owners; None: it must be there. Returns None if no path was made:
    for an abstract name, and for the empty name, which Linux replaces (unix(7)).

    LookupError: there is no such user or group. OSError: EADDRINUSE names the path if there is something that may be
    alive, or if another program has exchanged what was bound; else as bind(2). AddressError: a NUL is inside the path,
    where the kernel would end it.
    """
    name = os.fspath(address)
    raw = os.fsencode(name)
    if not raw or raw.startswith(b"\0"):
        sock.bind(name)
        return None
    if b"\0" in raw:
        raise AddressError(f"a Unix socket's path cannot contain a NUL: {name!r}")
    # Imported here: most servers have no path and do not pay for it.
    import pathlib  # noqa: PLC0415

    path = pathlib.Path(os.fsdecode(raw))
    if not path.is_absolute():
        path = pathlib.Path.cwd() / path
    user, group = owners.numbers()
    if directory_mode is not None:
        _make_directory(path.parent, directory_mode, user, group)
    if not _try_to_bind(sock, name, mode):
        with _one_starter_at_a_time(path.parent):
            _remove_stale(name, path)
            if not _try_to_bind(sock, name, mode):
                raise _in_use(path, "a server that was faster")
    found = path.lstat()
    if not stat.S_ISSOCK(found.st_mode):
        raise _exchanged(path)
    bound = BoundPath(path, found)
    if mode is None:
        mode = stat.S_IMODE(found.st_mode)
    if stat.S_IMODE(found.st_mode) != mode or (user, group) != (-1, -1):
        try:
            _permit(sock, bound, mode, user, group)
        except BaseException:
            bound.unlink()
            raise
    return bound


def _make_directory(path: pathlib.Path, mode: int, user: int, group: int) -> None:
    """Make a directory, unless it is there. At no moment has it more permissions than ``mode``. Raises OSError."""
    try:
        os.mkdir(path, mode & 0o700)
    except FileExistsError:
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(fd, user, group)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _permit(sock: socket.socket, bound: BoundPath, mode: int, user: int, group: int) -> None:
    """Give what was bound to its owners, with the permissions that the umask has removed. Raises OSError."""
    if sys.platform != "linux":
        if not _is_bound(bound, bound.path.lstat(), mode):
            raise _exchanged(bound.path)
        os.chown(bound.path, user, group, follow_symlinks=False)
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
        # open(2), O_PATH: the descriptor means the file itself, whatever its path leads to now.
        os.chown(f"/proc/self/fd/{fd}", user, group)
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def _is_bound(bound: BoundPath, found: os.stat_result, mode: int) -> bool:
    # More than one link: it may be another program's socket. A permission beyond the mode: bind() did not make it.
    is_ours = stat.S_ISSOCK(found.st_mode) and found.st_nlink == 1 and not stat.S_IMODE(found.st_mode) & ~mode
    return is_ours and _identity(found) == bound.identity


def _exchanged(path: pathlib.Path) -> OSError:
    return _in_use(path, "what another program has put in the place of the socket")


def _try_to_bind(sock: socket.socket, name: str | bytes, mode: int | None) -> bool:
    """Bind. False: EADDRINUSE."""
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
    """Make bind() in the block give the new path no permission that is not in ``mode``."""
    try:
        # Linux gives the path the permissions of the socket, without those of the umask.
        os.fchmod(sock.fileno(), mode)
    except OSError:
        # macOS and the BSDs: EINVAL. The umask holds for all threads, so it may only forbid more meanwhile.
        with _UMASK_LOCK:
            umask = os.umask(0o777 & ~mode | 0o077)
            try:
                yield
            finally:
                os.umask(umask)
    else:
        yield


def _remove_stale(name: str | bytes, path: pathlib.Path) -> None:
    """Remove a path that is a socket which no process has bound. OSError: something else is there."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise _in_use(path, "something that is not a socket")
        # A datagram socket as the probe, also for stream sockets: connect() says EPROTOTYPE if a process has the path
        # bound, even before it listens, and ECONNREFUSED only if none has. A stream socket as the probe would be
        # refused before the other listens, would wait while its backlog is full, and would be a client of its server.
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
    """Keep other servers that start from judging a path of this directory while this one replaces it (flock(2)).

    Otherwise two may find the same dead socket, and the slower removes what the faster has just bound.
    """
    try:
        lock = os.open(directory, os.O_RDONLY)
    except OSError:
        # The directory may not be read, or there is no descriptor left.
        yield
        return
    try:
        _wait_for_lock(lock)
        yield
    finally:
        with contextlib.suppress(OSError):
            # close() is not enough: a child that was forked meanwhile has a copy of the descriptor.
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
            # The file system has no such locks (NFS).
            return
        else:
            return
