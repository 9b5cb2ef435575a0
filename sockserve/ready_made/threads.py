"""The servers that serve each request in a new thread."""

from __future__ import annotations

import socket
from typing import Any

from sockserve.concurrency.threads import ThreadingMixIn
from sockserve.core.server import TCPServer, UDPServer

__all__ = ["CLASSES", "ThreadingTCPServer", "ThreadingUDPServer"]


class ThreadingTCPServer(ThreadingMixIn, TCPServer):
    """A TCPServer that serves each connection in a new thread."""

    __module__ = "sockserve"


class ThreadingUDPServer(ThreadingMixIn, UDPServer):
    """A UDPServer that serves each datagram in a new thread."""

    __module__ = "sockserve"


CLASSES: dict[tuple[str, str], type[TCPServer[Any, Any]]] = {
    ("thread", "tcp"): ThreadingTCPServer,
    ("thread", "udp"): ThreadingUDPServer,
}
"""The classes by model and an address's scheme."""

if hasattr(socket, "AF_UNIX"):
    from sockserve.core.packets import UnixSeqpacketServer
    from sockserve.core.server import UnixDatagramServer, UnixStreamServer

    __all__ += ["ThreadingUnixDatagramServer", "ThreadingUnixSeqpacketServer", "ThreadingUnixStreamServer"]

    class ThreadingUnixStreamServer(ThreadingMixIn, UnixStreamServer):
        """A UnixStreamServer that serves each connection in a new thread."""

        __module__ = "sockserve"

    class ThreadingUnixDatagramServer(ThreadingMixIn, UnixDatagramServer):
        """A UnixDatagramServer that serves each datagram in a new thread."""

        __module__ = "sockserve"

    class ThreadingUnixSeqpacketServer(ThreadingMixIn, UnixSeqpacketServer):
        """A UnixSeqpacketServer that serves each connection in a new thread."""

        __module__ = "sockserve"

    CLASSES["thread", "unix"] = ThreadingUnixStreamServer
    CLASSES["thread", "unix-dgram"] = ThreadingUnixDatagramServer
    CLASSES["thread", "unix-seqpacket"] = ThreadingUnixSeqpacketServer
