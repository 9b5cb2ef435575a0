"""Network servers in blocking style: ``socketserver``'s hierarchy, repaired, and fit for production."""

# A map of the house; a module knows those above it, never those below.
#
#   log             the logger, which a configuration in passing does not silence and a peer cannot forge
#   seconds         what infinite, negative and too long times mean
#   errors          what can go wrong, and whose doing it is
#   net/            sockets: named, opened, judged, closed; no server, no handler, no thread
#   core/           the loop, a request's life, the servers, the handlers
#   concurrency/    who runs the handler, or the loop: threads, forks, a pool, greenlets, worker processes
#   greenlets       servers whose handlers run in greenlets, and how those wait
#   ready_made      the combinations
#   run/            servers as a program: serve(), signals, the command line
#   testing         tools for those who test their handlers
#   client/         python -m sockserve.client, for people
#
# Public is what stands here; any other name may change.

import importlib as _importlib
import os as _os
import selectors as _selectors
import socket as _socket
from typing import TYPE_CHECKING as _TYPE_CHECKING

from sockserve.concurrency.dispatch import Dispatcher, DispatchingMixIn
from sockserve.concurrency.pool import ThreadPoolMixIn
from sockserve.concurrency.threads import ThreadingMixIn
from sockserve.core.active_requests import ActiveRequest, LiveRequest
from sockserve.core.base_server import BaseServer
from sockserve.core.events import Counters, LogObserver, Observer
from sockserve.core.handlers import BaseRequestHandler, DatagramRequestHandler, StreamRequestHandler
from sockserve.core.keep_alive import HTTPKeepAliveMixIn
from sockserve.core.lifecycle import Drained
from sockserve.core.loop import Loop
from sockserve.core.server import TCPServer, UDPServer
from sockserve.core.streams import SocketWriter as _SocketWriter  # noqa: F401  # pyright: ignore[reportUnusedImport] - used by programs
from sockserve.errors import (
    AddressError,
    AlreadyServingError,
    BindError,
    CrashLoopError,
    DatagramTruncatedError,
    DropInError,
    HandshakeError,
    ListenerLostError,
    PeerError,
    PeerTimeoutError,
    ServerClosedError,
    SockserveError,
)
from sockserve.ready_made import ThreadingTCPServer, ThreadingUDPServer, ThreadPoolTCPServer, ThreadPoolUDPServer
from sockserve.run.serve import serve

__version__ = "0.1.0.dev0"

__all__ = [  # noqa: RUF022 - grouped, as the reader looks for them
    # servers
    "BaseServer",
    "TCPServer",
    "UDPServer",
    # who runs the handler
    "ThreadingMixIn",
    "ThreadPoolMixIn",
    "DispatchingMixIn",
    "Dispatcher",
    "ThreadingTCPServer",
    "ThreadingUDPServer",
    "ThreadPoolTCPServer",
    "ThreadPoolUDPServer",
    # handlers
    "BaseRequestHandler",
    "StreamRequestHandler",
    "DatagramRequestHandler",
    "HTTPKeepAliveMixIn",
    # several servers in one loop
    "Loop",
    # servers as a program
    "serve",
    # what happens
    "ActiveRequest",
    "LiveRequest",
    "Observer",
    "LogObserver",
    "Counters",
    "Drained",
    # errors
    "SockserveError",
    "AddressError",
    "AlreadyServingError",
    "BindError",
    "CrashLoopError",
    "DatagramTruncatedError",
    "DropInError",
    "HandshakeError",
    "ListenerLostError",
    "PeerError",
    "PeerTimeoutError",
    "ServerClosedError",
]

if hasattr(_os, "fork"):
    from sockserve.concurrency.forks import ForkingMixIn
    from sockserve.concurrency.prefork import PreForkMixIn
    from sockserve.ready_made import ForkingTCPServer, ForkingUDPServer

    __all__ += ["ForkingMixIn", "ForkingTCPServer", "ForkingUDPServer", "PreForkMixIn"]

if hasattr(_socket, "AF_UNIX"):
    from sockserve.core.server import UnixDatagramServer, UnixStreamServer
    from sockserve.ready_made import (
        ThreadingUnixDatagramServer,
        ThreadingUnixStreamServer,
        ThreadPoolUnixDatagramServer,
        ThreadPoolUnixStreamServer,
    )

    __all__ += [
        "ThreadPoolUnixDatagramServer",
        "ThreadPoolUnixStreamServer",
        "ThreadingUnixDatagramServer",
        "ThreadingUnixStreamServer",
        "UnixDatagramServer",
        "UnixStreamServer",
    ]

    if hasattr(_os, "fork"):
        from sockserve.ready_made import ForkingUnixDatagramServer, ForkingUnixStreamServer

        __all__ += ["ForkingUnixDatagramServer", "ForkingUnixStreamServer"]

if _TYPE_CHECKING:
    from sockserve.greenlets import GreenletMixIn as GreenletMixIn
    from sockserve.greenlets import GreenletTCPServer as GreenletTCPServer
    from sockserve.greenlets import GreenletUDPServer as GreenletUDPServer
    from sockserve.greenlets import GreenletUnixDatagramServer as GreenletUnixDatagramServer
    from sockserve.greenlets import GreenletUnixStreamServer as GreenletUnixStreamServer

# Found when they are asked for: they need an extra, and say so. Not in __all__, or "import *" would ask for them.
_in_greenlets = ["GreenletMixIn", "GreenletTCPServer", "GreenletUDPServer"]
if hasattr(_socket, "AF_UNIX"):
    _in_greenlets += ["GreenletUnixDatagramServer", "GreenletUnixStreamServer"]


def __getattr__(name: str) -> object:
    if name in _in_greenlets:
        return getattr(_importlib.import_module("sockserve.greenlets"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Programs that write a loop of their own take their selector from here.
_ServerSelector = getattr(_selectors, "PollSelector", _selectors.SelectSelector)

for _name in __all__:
    # Tracebacks and pickles name a thing by where it is public.
    globals()[_name].__module__ = __name__
