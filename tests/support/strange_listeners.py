"""Objects that stand for a listening socket and are none, as pyOpenSSL's Connection is."""

from __future__ import annotations

import socket
from typing import Any

__all__ = ["Bare", "Wrapper"]


class Wrapper:
    """Has all attributes of the socket, and can tell nothing of its end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class Bare:
    """Has what a listener must have and no more; its accept() waits."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def accept(self) -> Any:
        """Accept one connection, and wait for it."""
        return self._sock.accept()

    def fileno(self) -> int:
        """The socket's."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()
