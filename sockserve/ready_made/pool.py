"""The servers that serve their requests in a pool of threads."""

from __future__ import annotations

import socket
from typing import Any

from sockserve.concurrency.pool.mix_in import ThreadPoolMixIn
from sockserve.core.server import TCPServer, UDPServer

__all__ = ["CLASSES", "ThreadPoolTCPServer", "ThreadPoolUDPServer"]


class ThreadPoolTCPServer(ThreadPoolMixIn, TCPServer):
    """A TCPServer that serves its connections in a pool of threads."""

    __module__ = "sockserve"


class ThreadPoolUDPServer(ThreadPoolMixIn, UDPServer):
    """A UDPServer that serves its datagrams in a pool of threads."""

    __module__ = "sockserve"


CLASSES: dict[tuple[str, str], type[TCPServer[Any, Any]]] = {
    ("pool", "tcp"): ThreadPoolTCPServer,
    ("pool", "udp"): ThreadPoolUDPServer,
}
"""The classes by model and an address's scheme."""

if hasattr(socket, "AF_UNIX"):
    from sockserve.core.packets import UnixSeqpacketServer
    from sockserve.core.server import UnixDatagramServer, UnixStreamServer

    __all__ += ["ThreadPoolUnixDatagramServer", "ThreadPoolUnixSeqpacketServer", "ThreadPoolUnixStreamServer"]

    class ThreadPoolUnixStreamServer(ThreadPoolMixIn, UnixStreamServer):
        """A UnixStreamServer that serves its connections in a pool of threads."""

        __module__ = "sockserve"

    class ThreadPoolUnixDatagramServer(ThreadPoolMixIn, UnixDatagramServer):
        """A UnixDatagramServer that serves its datagrams in a pool of threads."""

        __module__ = "sockserve"

    class ThreadPoolUnixSeqpacketServer(ThreadPoolMixIn, UnixSeqpacketServer):
        """A UnixSeqpacketServer that serves each connection in the threads of a pool."""

        __module__ = "sockserve"

    CLASSES["pool", "unix"] = ThreadPoolUnixStreamServer
    CLASSES["pool", "unix-dgram"] = ThreadPoolUnixDatagramServer
    CLASSES["pool", "unix-seqpacket"] = ThreadPoolUnixSeqpacketServer
