"""The servers that serve each request in a child process. Imported only on platforms with fork()."""

from __future__ import annotations

import socket
from typing import Any

from sockserve.concurrency.forks import ForkingMixIn
from sockserve.core.server import TCPServer, UDPServer

__all__ = ["CLASSES", "ForkingTCPServer", "ForkingUDPServer"]


class ForkingTCPServer(ForkingMixIn, TCPServer):
    """A TCPServer that serves each connection in a child process."""

    __module__ = "sockserve"


class ForkingUDPServer(ForkingMixIn, UDPServer):
    """A UDPServer that serves each datagram in a child process."""

    __module__ = "sockserve"


CLASSES: dict[tuple[str, str], type[TCPServer[Any, Any]]] = {
    ("fork", "tcp"): ForkingTCPServer,
    ("fork", "udp"): ForkingUDPServer,
}
"""The classes by model and an address's scheme."""

if hasattr(socket, "AF_UNIX"):
    from sockserve.core.packets import UnixSeqpacketServer
    from sockserve.core.server import UnixDatagramServer, UnixStreamServer

    __all__ += ["ForkingUnixDatagramServer", "ForkingUnixSeqpacketServer", "ForkingUnixStreamServer"]

    class ForkingUnixStreamServer(ForkingMixIn, UnixStreamServer):
        """A UnixStreamServer that serves each connection in a child process."""

        __module__ = "sockserve"

    class ForkingUnixDatagramServer(ForkingMixIn, UnixDatagramServer):
        """A UnixDatagramServer that serves each datagram in a child process."""

        __module__ = "sockserve"

    class ForkingUnixSeqpacketServer(ForkingMixIn, UnixSeqpacketServer):
        """A UnixSeqpacketServer that serves each connection in a child process."""

        __module__ = "sockserve"

    CLASSES["fork", "unix"] = ForkingUnixStreamServer
    CLASSES["fork", "unix-dgram"] = ForkingUnixDatagramServer
    CLASSES["fork", "unix-seqpacket"] = ForkingUnixSeqpacketServer
