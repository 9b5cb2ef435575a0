"""Sends the byte that ends another thread's wait."""

from __future__ import annotations

import errno
import socket

__all__ = ["send_wake_up"]

DONT_WAIT: int = getattr(socket, "MSG_DONTWAIT", 0)
"""For a socket that is blocking otherwise."""

TRIES = 10
"""How often it is sent while the kernel has no memory for it."""


def send_wake_up(writer: socket.socket, message: bytes = b"\0") -> None:
    """Make the other end readable. Safe in any thread and in a signal handler; never blocks, never raises."""
    for _ in range(TRIES):
        try:
            writer.send(message, DONT_WAIT)
        except OSError as error:
            # A full buffer is readable as well; a closed one has no wait behind it.
            if error.errno in (errno.ENOBUFS, errno.ENOMEM):
                continue
        return
