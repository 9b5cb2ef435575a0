"""Ending a connection, or half of it, so that the peer still gets every byte of the answer.

close(2) on a TCP socket whose receive buffer still holds input sends RST and discards what was not yet sent of the
answer (RFC 9293, 3.6.1; RFC 2525, 2.17). So: half-close, take what the peer still sends (``net.lingering``), then
close.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import sys
from typing import Any, Protocol

from sockserve.net.tls import close_notify, is_tls

if sys.platform != "win32":
    import fcntl
    import termios

__all__ = ["cut", "end_input", "half_close"]

_NOTHING = bytearray(4)

_SO_MEMINFO = 55
"""Linux's socket.h, since 4.12: numbers of bytes of memory, of received and unread data first, sixth of output that the
peer has not acknowledged."""

_CONNECTED = (socket.SOCK_STREAM, getattr(socket, "SOCK_SEQPACKET", socket.SOCK_STREAM))

LARGE_ANSWER = 16384
"""Bytes of memory that an answer under way occupies, from which on a close may lose a part of it: a smaller one leaves
at once (10 segments, RFC 6928), and is with its peer before a reset can be."""

_QUEUES = struct.Struct("6I").unpack


class EndObserver(Protocol):
    """What wants to know when a half-close waits."""

    def peer_stalls(self, stalls: bool) -> None:
        """The peer does not take what was sent before, and so has not been told the end; or it does now."""


def half_close(connection: Any, patience: float = 0.0, observer: EndObserver | None = None) -> bool | None:
    """Tell the peer that the answer is complete. Never raises what the peer caused.

    True: to close it now may cost the peer the end of its answer, since it has sent more than was read, or may, while
    much of the answer is under way; keep it open by ``Lingering.add()``. Returns at once, but for ``patience`` seconds
    at most while over TLS the peer does not take what was sent before; ``observer`` is told of that. The caller closes
    the socket. None: it has no descriptor any more.
    """
    try:
        if type(connection) is socket.socket:
            connection.shutdown(socket.SHUT_WR)
        elif is_tls(connection):
            close_notify(connection, patience, None if observer is None else observer.peer_stalls)
            socket.socket.shutdown(connection, socket.SHUT_WR)
        else:
            connection.shutdown(socket.SHUT_WR)
            if not isinstance(connection, socket.socket):
                return False
        return _must_linger(connection)
    except OSError as error:
        # ENOTCONN, ECONNRESET: the peer was faster. EBADF: the handler closed it, or detached it.
        return None if error.errno == errno.EBADF else False


def end_input(connection: Any) -> None:
    """Make a handler that waits for input see end-of-file, in whichever thread; it can still write.

    No effect on what is not a connected socket, of a stream or of packets.
    """
    _shut(connection, socket.SHUT_RD)


def cut(connection: Any) -> None:
    """End both directions now; whoever blocks on the socket in any thread wakes. The descriptor stays valid."""
    _shut(connection, socket.SHUT_RDWR)


def _shut(connection: Any, how: int) -> None:
    if isinstance(connection, socket.socket) and connection.type in _CONNECTED:
        try:
            # Not SSLSocket.shutdown(): it drops the TLS layer, and a worker that still writes would write in the clear.
            (socket.socket.shutdown if is_tls(connection) else type(connection).shutdown)(connection, how)
        except OSError:
            pass


if sys.platform == "win32":

    def _must_linger(connection: socket.socket) -> bool:
        return bool(select.select([connection], [], [], 0)[0])

else:
    # connection.family would make an enum of it, which takes longer than all the rest.
    _family_of: Any = socket.SocketType.family.__get__
    _INET = {int(socket.AF_INET), int(socket.AF_INET6)}
    _TCP = {0, socket.IPPROTO_TCP}

    def _must_linger(connection: socket.socket) -> bool:
        try:
            # Unlike ioctl() it does not let other threads have the interpreter, for which this one would wait then.
            if _family_of(connection) in _INET and connection.proto in _TCP:
                unread, _, _, _, _, under_way = _QUEUES(connection.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 24))
                return bool(unread or under_way >= LARGE_ANSWER)
        except (OSError, TypeError, struct.error):
            # A kernel that does not tell, or a socket class put in the place of the original.
            pass
        count = bytearray(4)
        fcntl.ioctl(connection.fileno(), termios.FIONREAD, count)
        return count != _NOTHING
