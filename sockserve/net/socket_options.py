"""Options that a server's socket has from the start, and that accepted connections inherit (tcp(7); Linux, BSD).

So they cost no system call for each connection.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import TypeAlias

__all__ = ["SocketOption", "keep_alive", "send_at_once", "set_options"]

SocketOption: TypeAlias = tuple[int, int, int | bytes]
"""Level, option and value, as for ``socket.setsockopt()``."""

_IDLE: int | None = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
"""macOS calls it TCP_KEEPALIVE."""


def set_options(sock: socket.socket, options: Iterable[SocketOption]) -> None:
    """Set each option. Raises OSError as setsockopt(2), with the option that was refused as a note."""
    for level, option, value in options:
        try:
            sock.setsockopt(level, option, value)
        except OSError as error:
            error.add_note(f"socket option ({level}, {option}, {value!r})")
            raise


def keep_alive(sock: socket.socket, idle: int, interval: int, count: int) -> None:
    """Ask a silent peer after ``idle`` seconds, then each ``interval``, and end the connection after ``count`` in vain.

    No effect on sockets that are no TCP ones. Raises OSError.
    """
    if is_tcp(sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (_IDLE, idle),
            (getattr(socket, "TCP_KEEPINTVL", None), interval),
            (getattr(socket, "TCP_KEEPCNT", None), count),
        ):
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


def send_at_once(sock: socket.socket) -> None:
    """Send small writes without waiting for the acknowledgement of earlier ones (TCP_NODELAY). Raises OSError."""
    if is_tcp(sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def is_tcp(sock: socket.socket) -> bool:
    """Whether it is a stream socket of IPv4 or IPv6, MPTCP included."""
    return sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM
