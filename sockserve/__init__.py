"""Network servers in blocking style: ``socketserver``'s hierarchy, repaired, and fit for production."""

# A map of the house; a module knows those above it, never those below.
#
#   log             the logger, which a configuration in passing does not silence and a peer cannot forge
#   seconds         what infinite, negative and too long times mean
#   errors          what can go wrong, and whose doing it is
#   net/            sockets: named, opened, judged, closed; no server, no handler, no thread
#   core/           the loop, a request's life, the servers, the handlers
#   concurrency/    what runs the handler, or the loop: threads, forks, a pool, greenlets, worker processes
#   greenlets       servers whose handlers run in greenlets, and how those wait
#   ready_made      the combinations
#   run/            servers as a program: serve(), signals, the command line
#   testing         tools for tests of handlers
#   client/         python -m sockserve.client, for people
#
# Public is what stands here; any other name may change. A module is imported when a name of it is first asked for:
# a program pays for what it uses.

import os
import selectors
import socket
import sys  # noqa: F401  # pyright: ignore[reportUnusedImport] - stdlib's module has it, and programs look there
import threading  # noqa: F401  # pyright: ignore[reportUnusedImport]
from io import BufferedIOBase as BufferedIOBase
from time import monotonic as time  # noqa: F401, ICN003  # pyright: ignore[reportUnusedImport]
from typing import TYPE_CHECKING as _TYPE_CHECKING

from sockserve.errors import (
    AddressError,
    AlreadyServingError,
    BindError,
    CrashLoopError,
    DatagramTruncatedError,
    DescriptorsTruncatedError,
    DropInError,
    HandshakeError,
    ListenerLostError,
    PeerError,
    PeerTimeoutError,
    ProxyHeaderError,
    RefusedError,
    ServerClosedError,
    SlowPeerError,
    SockserveError,
    TLSSettingsError,
)

# At once: a program that configures logging before its first server must not silence what it has not heard of.
from sockserve.log import log as _log  # noqa: F401  # pyright: ignore[reportUnusedImport]

if _TYPE_CHECKING:
    from sockserve.concurrency.dispatch import Dispatcher as Dispatcher
    from sockserve.concurrency.dispatch import DispatchingMixIn as DispatchingMixIn
    from sockserve.concurrency.forks import ForkingMixIn as ForkingMixIn
    from sockserve.concurrency.pool.mix_in import ThreadPoolMixIn as ThreadPoolMixIn
    from sockserve.concurrency.prefork.mix_in import PreForkMixIn as PreForkMixIn
    from sockserve.concurrency.threads import ThreadingMixIn as ThreadingMixIn
    from sockserve.core.active_requests import ActiveRequest as ActiveRequest
    from sockserve.core.active_requests import LiveRequest as LiveRequest
    from sockserve.core.base_server import BaseServer as BaseServer
    from sockserve.core.connection_info import ConnectionInfo as ConnectionInfo
    from sockserve.core.connection_info import TLSInfo as TLSInfo
    from sockserve.core.datagrams import DatagramRequestHandler as DatagramRequestHandler
    from sockserve.core.deadlines import Deadlines as Deadlines
    from sockserve.core.events import Counters as Counters
    from sockserve.core.events import LogObserver as LogObserver
    from sockserve.core.events import Observer as Observer
    from sockserve.core.handlers import BaseRequestHandler as BaseRequestHandler
    from sockserve.core.handlers import StreamRequestHandler as StreamRequestHandler
    from sockserve.core.lifecycle import Drained as Drained
    from sockserve.core.limits import Limits as Limits
    from sockserve.core.loop import Loop as Loop
    from sockserve.core.packets import PacketRequestHandler as PacketRequestHandler
    from sockserve.core.packets import UnixSeqpacketServer as UnixSeqpacketServer
    from sockserve.core.server import TCPServer as TCPServer
    from sockserve.core.server import UDPServer as UDPServer
    from sockserve.core.server import UnixDatagramServer as UnixDatagramServer
    from sockserve.core.server import UnixStreamServer as UnixStreamServer
    from sockserve.core.server_group import ServerGroup as ServerGroup
    from sockserve.greenlets import GreenletMixIn as GreenletMixIn
    from sockserve.greenlets import GreenletTCPServer as GreenletTCPServer
    from sockserve.greenlets import GreenletUDPServer as GreenletUDPServer
    from sockserve.greenlets import GreenletUnixDatagramServer as GreenletUnixDatagramServer
    from sockserve.greenlets import GreenletUnixSeqpacketServer as GreenletUnixSeqpacketServer
    from sockserve.greenlets import GreenletUnixStreamServer as GreenletUnixStreamServer
    from sockserve.http_keep_alive import HTTPKeepAliveMixIn as HTTPKeepAliveMixIn
    from sockserve.net.peer_credentials import PeerCredentials as PeerCredentials
    from sockserve.net.proxy_header import ProxyHeader as ProxyHeader
    from sockserve.net.proxy_tlvs import ProxyTLS as ProxyTLS
    from sockserve.net.tls_settings import TLS as TLS
    from sockserve.ready_made.forks import ForkingTCPServer as ForkingTCPServer
    from sockserve.ready_made.forks import ForkingUDPServer as ForkingUDPServer
    from sockserve.ready_made.forks import ForkingUnixDatagramServer as ForkingUnixDatagramServer
    from sockserve.ready_made.forks import ForkingUnixSeqpacketServer as ForkingUnixSeqpacketServer
    from sockserve.ready_made.forks import ForkingUnixStreamServer as ForkingUnixStreamServer
    from sockserve.ready_made.pool import ThreadPoolTCPServer as ThreadPoolTCPServer
    from sockserve.ready_made.pool import ThreadPoolUDPServer as ThreadPoolUDPServer
    from sockserve.ready_made.pool import ThreadPoolUnixDatagramServer as ThreadPoolUnixDatagramServer
    from sockserve.ready_made.pool import ThreadPoolUnixSeqpacketServer as ThreadPoolUnixSeqpacketServer
    from sockserve.ready_made.pool import ThreadPoolUnixStreamServer as ThreadPoolUnixStreamServer
    from sockserve.ready_made.threads import ThreadingTCPServer as ThreadingTCPServer
    from sockserve.ready_made.threads import ThreadingUDPServer as ThreadingUDPServer
    from sockserve.ready_made.threads import ThreadingUnixDatagramServer as ThreadingUnixDatagramServer
    from sockserve.ready_made.threads import ThreadingUnixSeqpacketServer as ThreadingUnixSeqpacketServer
    from sockserve.ready_made.threads import ThreadingUnixStreamServer as ThreadingUnixStreamServer
    from sockserve.run.serve import serve as serve

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 - grouped, as the reader looks for them
    # servers
    "BaseServer",
    "TCPServer",
    "UDPServer",
    # what runs the handler
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
    # how slow a client may be, and how much it may take
    "Deadlines",
    "Limits",
    # several servers in one loop
    "Loop",
    "ServerGroup",
    # servers as a program
    "serve",
    # the other end: its TLS, its proxy, its process
    "TLS",
    "TLSInfo",
    "ConnectionInfo",
    "PeerCredentials",
    "ProxyHeader",
    "ProxyTLS",
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
    "DescriptorsTruncatedError",
    "DropInError",
    "HandshakeError",
    "ListenerLostError",
    "PeerError",
    "PeerTimeoutError",
    "ProxyHeaderError",
    "RefusedError",
    "ServerClosedError",
    "SlowPeerError",
    "TLSSettingsError",
]

if hasattr(os, "fork"):
    __all__ += ["ForkingMixIn", "ForkingTCPServer", "ForkingUDPServer", "PreForkMixIn"]

if hasattr(socket, "AF_UNIX"):
    __all__ += [
        "PacketRequestHandler",
        "ThreadPoolUnixDatagramServer",
        "ThreadPoolUnixSeqpacketServer",
        "ThreadPoolUnixStreamServer",
        "ThreadingUnixDatagramServer",
        "ThreadingUnixSeqpacketServer",
        "ThreadingUnixStreamServer",
        "UnixDatagramServer",
        "UnixSeqpacketServer",
        "UnixStreamServer",
    ]

    if hasattr(os, "fork"):
        __all__ += ["ForkingUnixDatagramServer", "ForkingUnixSeqpacketServer", "ForkingUnixStreamServer"]

_NAMES = {
    "sockserve.concurrency.dispatch": "Dispatcher DispatchingMixIn",
    "sockserve.concurrency.forks": "ForkingMixIn",
    "sockserve.concurrency.pool.mix_in": "ThreadPoolMixIn",
    "sockserve.concurrency.prefork.mix_in": "PreForkMixIn",
    "sockserve.concurrency.threads": "ThreadingMixIn",
    "sockserve.core.active_requests": "ActiveRequest LiveRequest",
    "sockserve.core.base_server": "BaseServer",
    "sockserve.core.connection_info": "ConnectionInfo TLSInfo",
    "sockserve.core.deadlines": "Deadlines",
    "sockserve.core.datagrams": "DatagramRequestHandler",
    "sockserve.core.events": "Counters LogObserver Observer",
    "sockserve.core.handlers": "BaseRequestHandler StreamRequestHandler",
    "sockserve.http_keep_alive": "HTTPKeepAliveMixIn",
    "sockserve.core.lifecycle": "Drained",
    "sockserve.core.limits": "Limits",
    "sockserve.core.loop": "Loop",
    "sockserve.core.packets": "PacketRequestHandler UnixSeqpacketServer",
    "sockserve.core.server": "TCPServer UDPServer UnixDatagramServer UnixStreamServer",
    "sockserve.core.server_group": "ServerGroup",
    "sockserve.greenlets": (
        "GreenletMixIn GreenletTCPServer GreenletUDPServer GreenletUnixDatagramServer "
        "GreenletUnixSeqpacketServer GreenletUnixStreamServer"
    ),
    "sockserve.ready_made.forks": (
        "ForkingTCPServer ForkingUDPServer ForkingUnixDatagramServer ForkingUnixSeqpacketServer ForkingUnixStreamServer"
    ),
    "sockserve.net.peer_credentials": "PeerCredentials",
    "sockserve.net.proxy_header": "ProxyHeader",
    "sockserve.net.proxy_tlvs": "ProxyTLS",
    "sockserve.net.tls_settings": "TLS",
    "sockserve.ready_made.pool": (
        "ThreadPoolTCPServer ThreadPoolUDPServer ThreadPoolUnixDatagramServer "
        "ThreadPoolUnixSeqpacketServer ThreadPoolUnixStreamServer"
    ),
    "sockserve.ready_made.threads": (
        "ThreadingTCPServer ThreadingUDPServer ThreadingUnixDatagramServer "
        "ThreadingUnixSeqpacketServer ThreadingUnixStreamServer"
    ),
    "sockserve.run.serve": "serve",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}
# Not in __all__: "import *" would ask for them, and they need an extra.
_in_greenlets = [
    name for name in _MODULE_OF if name.startswith("Greenlet") and ("Unix" not in name or hasattr(socket, "AF_UNIX"))
]
# Private in socketserver too, and used by programs all the same.
_PRIVATE = {
    "_NoThreads": "sockserve.concurrency.threads.NoThreads",
    "_SocketWriter": "sockserve.core.streams.SocketWriter",
    "_Threads": "sockserve.concurrency.threads.WorkerThreads",
}


def __getattr__(name: str) -> object:
    import importlib  # noqa: PLC0415 - a program that defines no server does without

    if name in _PRIVATE:
        module, _, attribute = _PRIVATE[name].rpartition(".")
        value = getattr(importlib.import_module(module), attribute)
    elif name in _in_greenlets or (name in __all__ and name in _MODULE_OF):
        value = getattr(importlib.import_module(_MODULE_OF[name]), name)
        # The others say it themselves, for they may be seen before they are asked for.
        if name == "Loop":
            value.__module__ = __name__
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Programs that write a loop of their own take their selector from here.
_ServerSelector = getattr(selectors, "PollSelector", selectors.SelectSelector)

for _name in __all__:
    if _name in globals():
        # Tracebacks and pickles name a thing by where it is public. The classes below say it themselves.
        globals()[_name].__module__ = __name__
