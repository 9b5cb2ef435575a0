"""The servers without a mix-in: handlers run in the loop's thread."""

from __future__ import annotations

import socket
from typing import Any

from sockserve.core.server import TCPServer, UDPServer

__all__ = ["CLASSES"]

CLASSES: dict[tuple[str, str], type[TCPServer[Any, Any]]] = {
    ("inline", "tcp"): TCPServer,
    ("inline", "udp"): UDPServer,
}
"""The classes by model and an address's scheme."""

if hasattr(socket, "AF_UNIX"):
    from sockserve.core.packets import UnixSeqpacketServer
    from sockserve.core.server import UnixDatagramServer, UnixStreamServer

    CLASSES["inline", "unix"] = UnixStreamServer
    CLASSES["inline", "unix-dgram"] = UnixDatagramServer
    CLASSES["inline", "unix-seqpacket"] = UnixSeqpacketServer
