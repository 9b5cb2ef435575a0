"""The process at the other end of a Unix socket, as the kernel knows it (SO_PEERCRED, unix(7))."""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
import sys
import weakref
from typing import NamedTuple

__all__ = ["PeerCredentials", "credentials_of", "open_peer_pidfd"]

_UCRED = struct.Struct("=iII")
"""struct ucred: process, user, group."""

# <asm-generic/socket.h>; CPython has no names for the last two: since Linux 4.13 and 6.5.
_SO_PEERCRED: int | None = getattr(socket, "SO_PEERCRED", None)
_SO_PEERGROUPS: int | None = 59 if sys.platform == "linux" else None
_SO_PEERPIDFD: int | None = 77 if sys.platform == "linux" else None

_FEW_GROUPS = 32
"""Room for so many groups in the first question; CPython's getsockopt() gives at most 1024 bytes, 256 groups."""

_MOST_BYTES = 1024


class _Fields(NamedTuple):
    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]


class PeerCredentials(_Fields):
    """What a Unix socket's peer was when it connected, or when it listened: ``pid``, ``uid``, ``gid``, ``groups``.

    ``pid`` is 0 if the process is in another PID namespace, and may be another process's by now. ``groups`` are its
    supplementary groups, 256 at most; empty before Linux 4.13.
    """

    __module__ = "sockserve"

    _connection: weakref.ref[socket.socket] | None = None

    def open_pidfd(self) -> int:
        """Open a descriptor of the peer's process (pidfd_open(2)), which the caller closes. From any thread.

        From Linux 6.5 on the socket itself gives it, so that it never means another process; before, it is opened by
        the process id, which may have been given away since the peer connected: compare what matters again after the
        call. Raises ProcessLookupError if that process has ended; OSError if the connection is closed here (EBADF), or
        the system cannot tell.
        """
        connection = None if self._connection is None else self._connection()
        if connection is None or connection.fileno() < 0:
            raise OSError(errno.EBADF, "the connection is closed")
        return open_peer_pidfd(connection)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return PeerCredentials, tuple(self)


def credentials_of(connection: object) -> PeerCredentials | None:
    """Return the peer of a Unix connection; None: it is no such connection, or the system cannot tell.

    From any thread. Never raises.
    """
    family = getattr(connection, "family", None)
    if _SO_PEERCRED is None or not isinstance(connection, socket.socket) or family != socket.AF_UNIX:
        return None
    try:
        pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERCRED, _UCRED.size))
    except (OSError, struct.error):
        # Closed, or a socket that never had a peer.
        return None
    # The kernel gives -1 for user and group where there is no peer.
    if uid == 2**32 - 1:
        return None
    found = PeerCredentials(pid, uid, gid, _groups_of(connection))
    # Not the socket: what a program keeps of a client must not keep its connection open.
    vars(found)["_connection"] = weakref.ref(connection)
    return found


def _groups_of(connection: socket.socket) -> tuple[int, ...]:
    if _SO_PEERGROUPS is None:
        return ()
    for size in (_FEW_GROUPS * 4, _MOST_BYTES):
        try:
            groups = array.array("I")
            groups.frombytes(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, size))
            return tuple(groups)
        except OSError as error:
            if error.errno != errno.ERANGE:
                break
    return ()


def open_peer_pidfd(connection: socket.socket) -> int:
    """As ``PeerCredentials.open_pidfd()``, of any Unix connection."""
    if _SO_PEERPIDFD is not None:
        try:
            return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        except OSError as error:
            if error.errno in (errno.ESRCH, errno.EINVAL):
                raise ProcessLookupError(errno.ESRCH, "the peer's process has ended") from error
            if error.errno != errno.ENOPROTOOPT:
                raise
    credentials = credentials_of(connection)
    if credentials is None or not credentials.pid or sys.platform != "linux":
        raise OSError(errno.ENOTSUP, "the system does not tell the peer's process")
    return os.pidfd_open(credentials.pid)
