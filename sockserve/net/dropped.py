"""How many datagrams the kernel has dropped because a socket's buffer was full: no cost for each packet."""

from __future__ import annotations

import socket
import struct
import sys

__all__ = ["DropCounter"]

_SO_MEMINFO = {"linux": 55}.get(sys.platform)
"""<asm-generic/socket.h>, Linux 4.12; CPython has no name for it."""

_MEMINFO = struct.Struct("=9I")
_DROPS = 8
"""SK_MEMINFO_DROPS, <linux/sock_diag.h>."""


class DropCounter:
    """Counts on where the kernel's number, which has 32 bits, begins anew. ``read()`` may be called from any thread."""

    def __init__(self) -> None:
        self._total_and_last = (0, 0)

    def read(self, sock: socket.socket) -> int | None:
        """All drops so far; None where the system does not tell, or the socket is closed.

        Exact as long as fewer than 2**32 datagrams are dropped between two calls.
        """
        if _SO_MEMINFO is None:
            return None
        try:
            now = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))[_DROPS]
        except (OSError, struct.error):
            return None
        # Both in one step, so no lock: of two threads either may be the last, and the next counts on from what it left.
        total, last = self._total_and_last
        total += int(now - last) % 2**32
        self._total_and_last = total, now
        return total
