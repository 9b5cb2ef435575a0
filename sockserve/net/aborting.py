"""Connections that are ended because their peer is too slow, and how those that still use them tell it from an end.

From any thread.
"""

from __future__ import annotations

import os
import socket
import struct
import weakref
from typing import Any

from sockserve.net.closing import cut

__all__ = ["abort", "reset_on_close", "why_aborted"]

# With a linger time of 0 close(2) sends RST, and nothing stays in FIN-WAIT. Windows has two shorts in the struct.
_NO_LINGER = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)

# A socket has no room for an attribute. Weak references of one object are equal, and have its hash.
_aborted: dict[weakref.ref[socket.socket], str] = {}


def reset_on_close(connection: socket.socket) -> None:
    """Let close(2) reset the connection. What the peer has not got by then is lost."""
    try:
        socket.socket.setsockopt(connection, socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    except OSError:
        # Closed, or not connected any more.
        pass


def abort(connection: Any, reason: str) -> None:
    """End both directions now, for this reason: what waits on the connection wakes. Its close is a reset.

    No effect on anything but a connection.
    """
    if isinstance(connection, socket.socket):
        # First: what wakes asks at once.
        _aborted[weakref.ref(connection, _forget)] = reason
        reset_on_close(connection)
        cut(connection)


def why_aborted(connection: object) -> str | None:
    """The reason why a connection was aborted; None: it was not."""
    if not _aborted or not isinstance(connection, socket.socket):
        return None
    return _aborted.get(weakref.ref(connection))


def _forget(reference: weakref.ref[socket.socket]) -> None:
    _aborted.pop(reference, None)
