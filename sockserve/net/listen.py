"""Sockets opened properly, whatever server they are for.

Rule 1. A Unix path that somebody has bound is never taken away from him, and what is no socket is never removed.
Rule 2. A path is removed only by the process that bound it, and only while it is still what that process bound.
Rule 3. In doubt it is somebody else's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import socket
import stat
import sys
import threading
import time
from collections.abc import Generator
from typing import Any, SupportsIndex

from sockserve.errors import AddressError, PeerTimeoutError
from sockserve.net.address import is_ipv6
from sockserve.net.tls import wrapped_like

if sys.platform != "win32":
    import fcntl

__all__ = [
    "BoundPath",
    "UnixDatagramSocket",
    "UnixName",
    "adopt",
    "apply_reuse",
    "bind_unix",
    "family_of",
    "listens",
    "open_socket",
    "shares_port",
    "twin_of",
    "unix_name",
]

_LOCK_PATIENCE = 2.0
"""Seconds to wait for other starters in the directory. Each holds the lock for microseconds; whoever holds it longer is
no starter, and may be anybody who can read the directory: he must not keep a server from starting."""

_LOCK_PAUSE = 0.005
"""Seconds between two attempts at that lock."""

# Not every platform has it.
_SEQPACKET = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_STREAM)

# Two threads that change it at the same time would each restore what the other had set.
_UMASK_LOCK = threading.Lock()


def apply_reuse(sock: socket.socket, reuse_address: bool, reuse_port: bool) -> None:
    """Set what a server may share, where that has a meaning: on IPv4 and IPv6. Called before bind(). Raises OSError.

    ``reuse_address``: bind although connections of an earlier run linger in TIME_WAIT (socket(7), SO_REUSEADDR).
    Windows allows that anyway, and there SO_REUSEADDR would let any program take the port over: a stream socket is
    bound exclusively instead. ``reuse_port``: several sockets that all ask for it share the port, where they can.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        # Newer Linux kernels refuse SO_REUSEPORT on AF_UNIX with EOPNOTSUPP; SO_REUSEADDR does nothing there.
        return
    if reuse_address:
        exclusive: int | None = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
        if exclusive is not None and sock.type == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, exclusive, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port and hasattr(socket, "SO_REUSEPORT"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def listens(sock: object) -> bool:
    """Whether it is a socket that listens, SOCK_STREAM or SOCK_SEQPACKET, or an object that stands for one."""
    if isinstance(sock, socket.socket) and sock.type not in (socket.SOCK_STREAM, _SEQPACKET):
        return False
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))  # type: ignore[attr-defined]
    except (OSError, AttributeError):
        # macOS knows the option for AF_INET only.
        return isinstance(sock, socket.socket)


def shares_port(sock: object) -> bool:
    """Whether other sockets may be bound to the same port beside it (SO_REUSEPORT)."""
    option: int | None = getattr(socket, "SO_REUSEPORT", None)
    if option is None or not isinstance(sock, socket.socket):
        return False
    return sock.family in (socket.AF_INET, socket.AF_INET6) and bool(sock.getsockopt(socket.SOL_SOCKET, option))


def twin_of(sock: socket.socket, backlog: int) -> socket.socket:
    """Make another socket at the address of one that shares its port, with the same options, TLS and mode.

    Raises OSError.
    """
    twin = socket.socket(sock.family, sock.type, sock.proto)
    try:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            twin.setsockopt(socket.SOL_SOCKET, option, sock.getsockopt(socket.SOL_SOCKET, option))
        if sock.family == socket.AF_INET6:
            only = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            twin.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        twin.bind(sock.getsockname())
        if listens(sock):
            twin.listen(backlog)
        twin = wrapped_like(sock, twin)
        twin.settimeout(sock.gettimeout())
    except BaseException:
        twin.close()
        raise
    return twin


def family_of(host: object, default: int) -> int:
    """Give AF_INET6 for an IPv6 literal, with or without a zone, and ``default`` for anything else. Never raises."""
    return socket.AF_INET6 if isinstance(host, str) and is_ipv6(host) else default


class UnixDatagramSocket(socket.socket):
    """A server's Unix datagram socket: it never waits for a client that does not read.

    sendto(2) to a Unix datagram socket blocks while the receiver's queue is full, ten datagrams by default
    (net.unix.max_dgram_qlen): a handler that answers on ``request[1]`` would hold its thread, or the loop.
    """

    def sendto(self, data: Any, *args: Any) -> int:
        """As ``socket.sendto()``; raises PeerTimeoutError, a TimeoutError, instead of waiting for the receiver."""
        *flags, address = args
        try:
            return super().sendto(data, (flags[0] if flags else 0) | socket.MSG_DONTWAIT, address)
        except BlockingIOError as error:
            if self.gettimeout() == 0.0:
                raise
            raise PeerTimeoutError(f"{unix_name(address)!r} does not read its answers") from error


def open_socket(family: int, kind: int) -> socket.socket:
    """Open the socket of a server; for Unix datagrams one that never waits for a client. Raises OSError."""
    # A class that gevent or eventlet put there has its own way to wait.
    is_plain = socket.socket.__module__ == "socket"
    if is_plain and family == getattr(socket, "AF_UNIX", None) and kind == socket.SOCK_DGRAM:
        return UnixDatagramSocket(family, kind)
    return socket.socket(family, kind)


def adopt(fd: int, *, keeps_mode: bool = False) -> socket.socket:
    """Make a blocking socket object of an inherited descriptor, which it owns from then on: closing it closes ``fd``.

    Not a duplicate: a copy left open would keep the port after the server has closed. Child processes do not inherit it
    further. ``keeps_mode``: the open file description, which the program that lent it may still use, is left as it is,
    blocking or not; the object is without a time-out all the same.
    Raises AddressError, and leaves the descriptor alone, if it is not an open socket.
    """
    try:
        is_blocking = os.get_blocking(fd) if keeps_mode and sys.platform != "win32" else True
        sock = socket.socket(fileno=fd)
    except (OSError, OverflowError, ValueError) as error:
        raise AddressError(f"descriptor {fd} is not an open socket: {error}") from error
    if (
        type(sock) is socket.socket
        and sock.family == getattr(socket, "AF_UNIX", None)
        and sock.type == socket.SOCK_DGRAM
    ):
        sock = UnixDatagramSocket(fileno=sock.detach())
    if not keeps_mode or sock.gettimeout() is not None:
        sock.setblocking(True)
        if not is_blocking:
            os.set_blocking(fd, False)
    sock.set_inheritable(False)
    return sock


class UnixName(str):
    """The name of a Unix socket, equal to that ``str``; ``name[0]`` is all of it.

    For programs that take ``client_address[0]`` for the peer of whatever family, as ``http.server`` does when it logs.
    Any other index works as on ``str``. An abstract name begins with NUL; the name of a peer that bound none is empty.
    """

    __slots__ = ()

    def __getitem__(self, index: SupportsIndex | slice) -> str:
        return str(self) if index == 0 else super().__getitem__(index)


def unix_name(name: str | bytes | None) -> UnixName:
    """Give the name that getsockname(), accept() or recvfrom() told, as text that sendto() and connect() take back."""
    return UnixName(os.fsdecode(name or ""))


class BoundPath:
    """A path in the file system that this process has bound a Unix socket to."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        """Absolute: it survives chdir()."""
        self._identity = _identity(path)
        self._pid = os.getpid()

    def unlink(self) -> bool:
        """Remove the path if it is still what was bound, and say whether it was removed. Never raises, idempotent.

        A forked child removes nothing. Call it before the socket is closed: after that another starter may take the
        path for a stale one, between our look at it and its removal.
        """
        if self._pid != os.getpid():
            return False
        try:
            if _identity(self.path) != self._identity:
                return False
            self.path.unlink()
        except OSError:
            # Gone already, or in a directory that this process may no longer write to.
            return False
        return True


def _identity(path: pathlib.Path) -> tuple[int, ...]:
    found = path.lstat()
    # The time as well: ext4 gives the number of a removed file to the next one. chmod() and chown() do not change it.
    return found.st_dev, found.st_ino, found.st_mtime_ns


def bind_unix(
    sock: socket.socket, address: str | bytes | os.PathLike[str] | os.PathLike[bytes], mode: int | None
) -> BoundPath | None:
    """Bind a Unix socket; a path that a dead server left behind is replaced, anything else there is not touched.

    Of any number of processes that do this for one path at the same time, one succeeds and keeps it. ``mode``: the
    path's permissions, whatever the umask; at no moment is it open to anybody else. None: what the umask leaves.
    Returns None if no path was made: for an abstract name, and for the empty one, which Linux replaces (unix(7)).

    Raises OSError: EADDRINUSE, naming the path, if something is there that cannot be known to be dead; else as bind(2).
    AddressError if a NUL is inside the path, where the kernel would end it.
    """
    name = os.fspath(address)
    raw = os.fsencode(name)
    if not raw or raw.startswith(b"\0"):
        sock.bind(name)
        return None
    if b"\0" in raw:
        raise AddressError(f"a Unix socket's path cannot contain a NUL: {name!r}")
    path = pathlib.Path(os.fsdecode(raw))
    if not path.is_absolute():
        path = pathlib.Path.cwd() / path
    if not _try_to_bind(sock, name, mode):
        with _one_starter_at_a_time(path.parent):
            _remove_stale(name, path)
            if not _try_to_bind(sock, name, mode):
                raise _in_use(path, "a server that was quicker")
    bound = BoundPath(path)
    if mode is not None and stat.S_IMODE(path.lstat().st_mode) != mode:
        path.chmod(mode)
    return bound


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
        # ECONNREFUSED only if nobody has it bound. One of the same type would be refused before the other listens,
        # would wait for a full backlog, and would be a client of a live server.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            if probe.connect_ex(name) not in (errno.ECONNREFUSED, errno.ENOENT):
                raise _in_use(path, "a live server")
        path.unlink()


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
