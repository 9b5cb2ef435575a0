"""Ending a connection, or half of it, so that the peer still gets every byte of the answer.

close(2) on a TCP socket whose receive buffer still holds input sends RST and discards what was not yet sent of the
answer (RFC 9293, 3.6.1; RFC 2525, 2.17). So: half-close, take what the peer still sends, then close.
"""

from __future__ import annotations

import functools
import select
import socket
import sys
import time
from typing import Any

from sockserve.net.tls import close_notify, is_tls, recv_beneath

if sys.platform != "win32":
    import fcntl
    import termios

__all__ = ["LINGER_BYTES", "LINGER_SECONDS", "cut", "end_input", "half_close"]

_NOTHING = bytearray(4)

_SO_MEMINFO = 55
"""Linux's socket.h, since 4.12: the bytes of memory that received and unread data occupies come first."""


LINGER_SECONDS = 2.0
"""The longest a close waits for a peer that goes on sending: gunicorn's and nginx's lingering close wait 2 to 5 s."""

LINGER_BYTES = 65536
"""The most input that a close throws away: what a well-behaved peer had under way, not an upload."""


def half_close(connection: Any) -> None:
    """Tell the peer that the answer is complete, and let it arrive. Never raises what the peer caused.

    Returns at once unless there is unread input; then when the peer has closed its half too, after ``LINGER_SECONDS``
    or ``LINGER_BYTES``. The caller closes the socket.
    """
    try:
        if type(connection) is socket.socket:
            connection.shutdown(socket.SHUT_WR)
        elif is_tls(connection):
            close_notify(connection, LINGER_SECONDS)
            socket.socket.shutdown(connection, socket.SHUT_WR)
        else:
            connection.shutdown(socket.SHUT_WR)
            if not isinstance(connection, socket.socket):
                return
        if _has_unread_input(connection):
            _take_what_still_comes(connection)
    except OSError:
        # ENOTCONN, ECONNRESET: the peer was faster. EBADF: the handler closed it.
        pass


def end_input(connection: Any) -> None:
    """Make a handler that waits for input see end-of-file, in whichever thread; it can still write.

    No effect on what is not a connected stream socket.
    """
    _shut(connection, socket.SHUT_RD)


def cut(connection: Any) -> None:
    """End both directions now; whoever blocks on the socket in any thread wakes. The descriptor stays valid."""
    _shut(connection, socket.SHUT_RDWR)


def _shut(connection: Any, how: int) -> None:
    if isinstance(connection, socket.socket) and connection.type == socket.SOCK_STREAM:
        try:
            # Not SSLSocket.shutdown(): it drops the TLS layer, and a worker that still writes would write in the clear.
            (socket.socket.shutdown if is_tls(connection) else type(connection).shutdown)(connection, how)
        except OSError:
            pass


if sys.platform == "win32":

    def _has_unread_input(connection: socket.socket) -> bool:
        return bool(select.select([connection], [], [], 0)[0])

else:
    # connection.family would make an enum of it, which takes longer than all the rest.
    _family_of: Any = socket.SocketType.family.__get__
    _INET = {int(socket.AF_INET), int(socket.AF_INET6)}
    _TCP = {0, socket.IPPROTO_TCP}

    def _has_unread_input(connection: socket.socket) -> bool:
        try:
            # Unlike ioctl() it does not let other threads have the interpreter, for which this one would wait then.
            is_tcp = _family_of(connection) in _INET and connection.proto in _TCP
            if is_tcp and not connection.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO):
                return False
        except (OSError, TypeError):
            # A kernel that does not tell, or a socket class put in the place of the original.
            pass
        count = bytearray(4)
        fcntl.ioctl(connection.fileno(), termios.FIONREAD, count)
        return count != _NOTHING


def _take_what_still_comes(connection: socket.socket) -> None:
    # Beneath TLS: its records are of no interest any more, and SSLSocket.recv() would interpret them.
    receive = functools.partial(recv_beneath, connection) if is_tls(connection) else connection.recv
    deadline = time.monotonic() + LINGER_SECONDS
    taken = 0
    while taken < LINGER_BYTES:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return
        connection.settimeout(remaining)
        data = receive(LINGER_BYTES)
        if not data:
            return
        taken += len(data)
