"""The ready-made servers: each way to run a handler, on each kind of socket."""

from __future__ import annotations

import importlib
import os
import socket
from typing import Any, cast

from sockserve.concurrency.pool import ThreadPoolMixIn
from sockserve.concurrency.threads import ThreadingMixIn
from sockserve.core.server import TCPServer, UDPServer

__all__ = [
    "MODELS",
    "ThreadPoolTCPServer",
    "ThreadPoolUDPServer",
    "ThreadingTCPServer",
    "ThreadingUDPServer",
    "server_class",
]


class ThreadingTCPServer(ThreadingMixIn, TCPServer):
    """A TCPServer that serves each connection in a new thread."""


class ThreadingUDPServer(ThreadingMixIn, UDPServer):
    """A UDPServer that serves each datagram in a new thread."""


class ThreadPoolTCPServer(ThreadPoolMixIn, TCPServer):
    """A TCPServer that serves its connections in a pool of threads."""


class ThreadPoolUDPServer(ThreadPoolMixIn, UDPServer):
    """A UDPServer that serves its datagrams in a pool of threads."""


_CLASSES: dict[tuple[str, str], type[TCPServer[Any, Any]]] = {
    ("inline", "tcp"): TCPServer,
    ("inline", "udp"): UDPServer,
    ("thread", "tcp"): ThreadingTCPServer,
    ("thread", "udp"): ThreadingUDPServer,
    ("pool", "tcp"): ThreadPoolTCPServer,
    ("pool", "udp"): ThreadPoolUDPServer,
}

if hasattr(os, "fork"):
    from sockserve.concurrency.forks import ForkingMixIn

    __all__ += ["ForkingTCPServer", "ForkingUDPServer"]

    class ForkingTCPServer(ForkingMixIn, TCPServer):
        """A TCPServer that serves each connection in a child process."""

    class ForkingUDPServer(ForkingMixIn, UDPServer):
        """A UDPServer that serves each datagram in a child process."""

    _CLASSES["fork", "tcp"] = ForkingTCPServer
    _CLASSES["fork", "udp"] = ForkingUDPServer

if hasattr(socket, "AF_UNIX"):
    from sockserve.core.server import UnixDatagramServer, UnixStreamServer

    __all__ += [
        "ThreadPoolUnixDatagramServer",
        "ThreadPoolUnixStreamServer",
        "ThreadingUnixDatagramServer",
        "ThreadingUnixStreamServer",
    ]

    class ThreadingUnixStreamServer(ThreadingMixIn, UnixStreamServer):
        """A UnixStreamServer that serves each connection in a new thread."""

    class ThreadingUnixDatagramServer(ThreadingMixIn, UnixDatagramServer):
        """A UnixDatagramServer that serves each datagram in a new thread."""

    class ThreadPoolUnixStreamServer(ThreadPoolMixIn, UnixStreamServer):
        """A UnixStreamServer that serves its connections in a pool of threads."""

    class ThreadPoolUnixDatagramServer(ThreadPoolMixIn, UnixDatagramServer):
        """A UnixDatagramServer that serves its datagrams in a pool of threads."""

    _CLASSES["inline", "unix"] = UnixStreamServer
    _CLASSES["inline", "unix-dgram"] = UnixDatagramServer
    _CLASSES["thread", "unix"] = ThreadingUnixStreamServer
    _CLASSES["thread", "unix-dgram"] = ThreadingUnixDatagramServer
    _CLASSES["pool", "unix"] = ThreadPoolUnixStreamServer
    _CLASSES["pool", "unix-dgram"] = ThreadPoolUnixDatagramServer

    if hasattr(os, "fork"):
        from sockserve.concurrency.forks import ForkingMixIn

        __all__ += ["ForkingUnixDatagramServer", "ForkingUnixStreamServer"]

        class ForkingUnixStreamServer(ForkingMixIn, UnixStreamServer):
            """A UnixStreamServer that serves each connection in a child process."""

        class ForkingUnixDatagramServer(ForkingMixIn, UnixDatagramServer):
            """A UnixDatagramServer that serves each datagram in a child process."""

        _CLASSES["fork", "unix"] = ForkingUnixStreamServer
        _CLASSES["fork", "unix-dgram"] = ForkingUnixDatagramServer

MODELS = (*dict.fromkeys(model for model, _ in _CLASSES), "greenlet")
"""The ways to run a handler that this platform has."""


def server_class(model: str, scheme: str) -> type[TCPServer[Any, Any]]:
    """The ready-made class for a way to run a handler and an address's scheme.

    Raises ValueError, naming the choice; ImportError for a model whose extra is not installed.
    """
    classes = _CLASSES
    if model == "greenlet":
        # Imported when it is asked for, because it needs an extra.
        classes = cast(
            "dict[tuple[str, str], type[TCPServer[Any, Any]]]",
            vars(importlib.import_module("sockserve.greenlets"))["CLASSES"],
        )
    try:
        return classes[model, scheme]
    except KeyError:
        raise ValueError(f"no model {model!r} for {scheme}: addresses; there are {', '.join(MODELS)}") from None
