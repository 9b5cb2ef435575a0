"""Ends a connection, or half of it, so that the peer still gets every byte of the answer.

close(2) on a TCP socket with unread input sends RST and discards the unsent rest of the answer (RFC 9293, 3.6.1;
RFC 2525, 2.17). So a server half-closes, reads what the peer still sends (``net.lingering``), and closes then. Any
thread may call these functions.
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
"""Bytes of memory of the unacknowledged output from which on a close may lose a part of it. A smaller answer is sent at
once (10 segments, RFC 6928) and arrives before a reset could."""

_QUEUES = struct.Struct("I16xI").unpack


class EndObserver(Protocol):
    """Is told when a half-close waits for the peer."""

    def peer_stalls(self, stalls: bool) -> None:
        """The peer does not take what was sent before, and so has not been told the end; or it does now."""


def half_close(connection: Any, patience: float = 0.0, observer: EndObserver | None = None) -> bool | None:
    """Tell the peer that the answer is complete. Never raises what the peer caused.

    The caller closes the socket then. True: only after ``Lingering.add()``, since a close may cost the peer the end of
    its answer: there is unread input, or much of the answer is under way and input may still come. None: the socket has
    no descriptor any more. Over TLS it waits up to ``patience`` seconds while the peer does not take what was sent
    before, and tells ``observer`` of that; else it returns at once.
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
        # ENOTCONN, ECONNRESET: the peer has left. EBADF: the handler has closed or detached it.
        return None if error.errno == errno.EBADF else False


def end_input(connection: Any) -> None:
    """Make a handler that waits for input, in any thread, see end-of-file; it can still write.

    No effect on anything but a connected stream or packet socket.
    """
    _shut(connection, socket.SHUT_RD)


def cut(connection: Any) -> None:
    """End both directions now: every thread that blocks on the socket wakes. The descriptor stays valid."""
    _shut(connection, socket.SHUT_RDWR)


def _shut(connection: Any, how: int) -> None:
    if isinstance(connection, socket.socket) and connection.type in _CONNECTED:
        try:
            # Not SSLSocket.shutdown(): it drops the TLS layer, and a handler that still writes would send plain text.
            (socket.socket.shutdown if is_tls(connection) else type(connection).shutdown)(connection, how)
        except OSError:
            pass


if sys.platform == "win32":

    def _must_linger(connection: socket.socket) -> bool:
        return bool(select.select([connection], [], [], 0)[0])

else:
    # connection.family makes an enum of the number, which takes longer than all the rest.
    _family_of: Any = socket.SocketType.family.__get__
    _INET = {int(socket.AF_INET), int(socket.AF_INET6)}
    _TCP = {0, socket.IPPROTO_TCP}

    def _must_linger(connection: socket.socket) -> bool:
        try:
            # getsockopt() keeps the interpreter's lock, unlike ioctl(), after which this thread would wait for it.
            if _family_of(connection) in _INET and connection.proto in _TCP:
                unread: int
                under_way: int
                unread, under_way = _QUEUES(connection.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 24))
                return unread > 0 or under_way >= LARGE_ANSWER
        except (OSError, TypeError, struct.error):
            # The kernel does not tell, or the socket is of a class that replaces Python's.
            pass
        count = bytearray(4)
        fcntl.ioctl(connection.fileno(), termios.FIONREAD, count)
        return count != _NOTHING
