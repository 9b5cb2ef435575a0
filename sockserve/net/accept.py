"""accept() for a loop: what each call would ask the listener for anew is asked once."""

from __future__ import annotations

import select
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from sockserve.net.tls import defer_handshake

__all__ = ["accept_of", "counter_of"]

_UNACKED = struct.Struct("24xI")
"""tcp_info of linux/tcp.h up to tcpi_unacked, which for a listener is the length of its queue (inet_diag(7), ss(8))."""


def accept_of(
    listener: socket.socket, connection_class: Callable[[int, int, int, int], socket.socket] | None = None
) -> Callable[[], tuple[socket.socket, Any]]:
    """Give a function that does what ``listener.accept()`` does, without a TLS handshake; for a listener's whole life.

    ``connection_class`` makes a plain connection from family, type, protocol and descriptor; None: ``socket.socket``.

    ``socket.accept()`` turns the family and the type of the listener into enums and back for every connection, which
    is a fifth of what a short request costs. A listener with an ``accept()`` of its own keeps it.
    """
    defer_handshake(listener)
    bare_accept: Callable[[], tuple[int, Any]] | None = getattr(listener, "_accept", None)
    if bare_accept is None or type(listener).accept.__module__ != "socket":
        return listener.accept
    family, kind, proto = int(listener.family), int(listener.type), listener.proto
    make = socket.socket if connection_class is None else connection_class

    def accept() -> tuple[socket.socket, Any]:
        fd, address = bare_accept()
        return make(family, kind, proto, fd), address

    return accept


def counter_of(listener: socket.socket) -> Callable[[], int]:
    """Give a function that says how many connections wait to be accepted: 1 for "some" where the kernel does not count.

    On Linux a TCP listener counts them, and asking it does not let other threads have the interpreter meanwhile.
    A closed listener, or one that another thread closes now, has none.
    """
    ask = _length_of_queue(listener)
    try:
        # Elsewhere TCP_INFO may exist, and have another layout.
        can_count = sys.platform == "linux" and ask() >= 0
    except (OSError, struct.error):
        # Another protocol, or a sandbox whose kernel tells less.
        can_count = False
    if not can_count:
        try:
            ask = _readiness_of(listener)
        except ValueError:
            # Closed.
            return lambda: 0

    def count() -> int:
        try:
            return ask()
        except (OSError, ValueError):
            return 0

    return count


def _length_of_queue(listener: socket.socket) -> Callable[[], int]:
    # Once for nearly every request: what does not change is looked up here.
    getsockopt, unpack, size = listener.getsockopt, _UNACKED.unpack, _UNACKED.size
    level, option = int(socket.IPPROTO_TCP), getattr(socket, "TCP_INFO", -1)

    def ask() -> int:
        length: int
        (length,) = unpack(getsockopt(level, option, size))
        return length

    return ask


def _readiness_of(listener: socket.socket) -> Callable[[], int]:
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        return lambda: sum(bool(events & select.POLLIN) for _, events in poll.poll(0))
    return lambda: len(select.select([listener], [], [], 0)[0])
