"""Sockets that wait in a way of their own, and are asked to where others are waited for with poll(2)."""

from __future__ import annotations

import socket

__all__ = ["WaitingSocket"]


class WaitingSocket(socket.socket):
    """The base of such sockets, those of greenlets for one. All methods are called by the user of the connection."""

    __slots__ = ()

    def wait_for_input(self) -> bool:
        """Wait until ``recv()`` would not wait; return whether it would give any bytes. Raises what it would raise."""
        raise NotImplementedError

    def wait_readable(self, timeout: float) -> bool:
        """Wait until more input has come, at most ``timeout`` seconds; return whether it may have. Raises OSError.

        Of what had come before, and was left unread, nothing is told again.
        """
        raise NotImplementedError

    def wait_writable(self, timeout: float) -> bool:
        """Wait until it takes more output, at most ``timeout`` seconds (inf: without limit); return whether it may."""
        raise NotImplementedError

    def recv_beneath(self, size: int, flags: int = 0) -> bytes:
        """Read as ``recv()`` of the socket beneath TLS: bytes that are not decrypted."""
        raise NotImplementedError
