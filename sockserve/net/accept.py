"""accept() for a loop: what each call would ask the listener for anew is asked once."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from sockserve.net.tls import defer_handshake

__all__ = ["accept_of"]


def accept_of(listener: socket.socket) -> Callable[[], tuple[socket.socket, Any]]:
    """Give a function that does what ``listener.accept()`` does, without a TLS handshake; for a listener's whole life.

    ``socket.accept()`` turns the family and the type of the listener into enums and back for every connection, which
    is a fifth of what a short request costs. A listener with an ``accept()`` of its own keeps it.
    """
    defer_handshake(listener)
    bare_accept: Callable[[], tuple[int, Any]] | None = getattr(listener, "_accept", None)
    if bare_accept is None or type(listener).accept.__module__ != "socket":
        return listener.accept
    family, kind, proto = int(listener.family), int(listener.type), listener.proto
    connection_class = socket.socket

    def accept() -> tuple[socket.socket, Any]:
        fd, address = bare_accept()
        return connection_class(family, kind, proto, fd), address

    return accept
