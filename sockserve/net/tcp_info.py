"""What the kernel knows of a TCP connection's progress (TCP_INFO, tcp(7)): no bookkeeping of ours for each request."""

from __future__ import annotations

import socket
import struct
import sys
from typing import NamedTuple

__all__ = ["Progress", "progress_of"]

_TCP_INFO: int | None = getattr(socket, "TCP_INFO", 11) if sys.platform == "linux" else None

# struct tcp_info in <linux/tcp.h>: unacked at 24, last_data_recv at 52, bytes_acked at 120 and bytes_received at 128
# (since Linux 4.1), notsent_bytes at 144 (since 4.6).
_LAYOUT = struct.Struct("=24xI24xI64xQQ8xI")

_INET = (socket.AF_INET, socket.AF_INET6)


class Progress(NamedTuple):
    """What has moved on a connection since it was accepted."""

    received: int
    """Bytes that came from the peer."""
    silence: float
    """Seconds since the last of them; before the first: since the connection was made."""
    acked: int
    """Bytes that the peer has acknowledged."""
    is_sending: bool
    """Whether there is something that it has not acknowledged."""


def progress_of(connection: object) -> Progress | None:
    """Return the progress of a TCP connection; None: it is none, it is closed, or the system does not tell.

    From any thread. Never raises OSError. One system call.
    """
    if _TCP_INFO is None or not isinstance(connection, socket.socket) or connection.family not in _INET:
        return None
    try:
        answer = socket.socket.getsockopt(connection, socket.IPPROTO_TCP, _TCP_INFO, _LAYOUT.size)
        unacked, silence, acked, received, unsent = _LAYOUT.unpack_from(answer)
    except (OSError, struct.error):
        # Closed meanwhile; not TCP; or a kernel that knows less.
        return None
    return Progress(received, silence / 1000, acked, bool(unacked or unsent))
