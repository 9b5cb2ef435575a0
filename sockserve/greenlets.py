"""Servers whose handlers run in greenlets, and what such a handler uses to wait. Needs the extra sockserve[greenlet].

Thousands of connections take turns in one thread; each handler is written as if it were alone. A turn ends where a
cooperative socket (``self.request``, or what ``create_connection()`` returns) waits, or finds that the turn has taken
some milliseconds, and in the functions here, never anywhere else. Give a call that blocks in another way to
``run_in_thread()``. Outside of such a handler these functions block the calling thread; only ``spawn()`` needs one.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from sockserve.concurrency.cooperative.mix_in import GreenletMixIn, cooperative
from sockserve.concurrency.cooperative.request_greenlet import current_request_greenlet, sleep
from sockserve.concurrency.cooperative.sockets import CooperativeSocket
from sockserve.core.one_shot import OneShot
from sockserve.core.server import TCPServer, UDPServer
from sockserve.log import log

__all__ = [
    "GreenletMixIn",
    "GreenletTCPServer",
    "GreenletUDPServer",
    "Task",
    "cooperative",
    "create_connection",
    "run_in_thread",
    "sleep",
    "spawn",
]


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class GreenletTCPServer(GreenletMixIn, TCPServer):
    """A TCPServer that serves each connection in a greenlet."""


class GreenletUDPServer(GreenletMixIn, UDPServer):
    """A UDPServer that serves each datagram in a greenlet; the socket it answers on is not cooperative."""


CLASSES: dict[tuple[str, str], type[TCPServer[Any, Any]]] = {
    ("greenlet", "tcp"): GreenletTCPServer,
    ("greenlet", "udp"): GreenletUDPServer,
}
"""The ready-made classes by model and an address's scheme."""

if hasattr(socket, "AF_UNIX"):
    from sockserve.core.packets import UnixSeqpacketServer
    from sockserve.core.server import UnixDatagramServer, UnixStreamServer

    __all__ += ["GreenletUnixDatagramServer", "GreenletUnixSeqpacketServer", "GreenletUnixStreamServer"]

    class GreenletUnixStreamServer(GreenletMixIn, UnixStreamServer):
        """A UnixStreamServer that serves each connection in a greenlet."""

    class GreenletUnixDatagramServer(GreenletMixIn, UnixDatagramServer):
        """A UnixDatagramServer that serves each datagram in a greenlet; the socket it answers on is not cooperative."""

    class GreenletUnixSeqpacketServer(GreenletMixIn, UnixSeqpacketServer):
        """A UnixSeqpacketServer that serves each connection in a greenlet."""

    CLASSES["greenlet", "unix"] = GreenletUnixStreamServer
    CLASSES["greenlet", "unix-dgram"] = GreenletUnixDatagramServer
    CLASSES["greenlet", "unix-seqpacket"] = GreenletUnixSeqpacketServer


class Task:
    """A call that goes on in a greenlet of its own, made by ``spawn()``."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._ended = OneShot()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, at most ``timeout`` seconds (None: without limit); return whether it has."""
        me = current_request_greenlet()
        return self._ended.wait(timeout) if me is None else me.wait_for(self._ended, timeout)

    def run(self) -> None:
        """Make the call. ``spawn()`` starts this."""
        try:
            self._call()
        except Exception:
            log.exception("what a handler has spawned failed")
        finally:
            self._ended.set()


def spawn(function: Callable[Arguments, object], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Task:
    """Call a function in a greenlet of its own, which begins when the caller next waits.

    It may outlive the handler that spawned it; the server's end waits for it as for a handler. What it raises is
    logged. Raises RuntimeError outside of a handler's greenlet.
    """
    me = current_request_greenlet()
    if me is None:
        raise RuntimeError("spawn() is for handlers that run in greenlets")
    task = Task(functools.partial(function, *args, **kwargs))
    me.hub.spawn(task.run)
    return task


def run_in_thread(function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """Call a function that blocks (a database driver, a file, a lock) in a thread; return or raise what it does.

    The threads are those of a ``concurrent.futures.ThreadPoolExecutor`` with its default size; calls that find none
    free wait. The function sees a copy of the caller's context variables. Outside of a handler's greenlet
    it is simply called.
    """
    me = current_request_greenlet()
    return (
        function(*args, **kwargs)
        if me is None
        else me.hub.run_in_thread(me, functools.partial(function, *args, **kwargs))
    )


def create_connection(
    address: tuple[str, int], timeout: float | None = None, source_address: tuple[str, int] | None = None
) -> socket.socket:
    """Connect to a TCP service and return a cooperative socket, so that a handler can be a client, or a proxy.

    As ``socket.create_connection()``: each address of the host is tried; ``timeout`` (seconds; None: none) is for each
    try, and remains the time-out of the socket. A name is looked up in a thread. The caller closes the socket. Raises
    the OSError of the last try.
    """
    host, port = address
    try:
        found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = run_in_thread(socket.getaddrinfo, host, port, 0, socket.SOCK_STREAM)
    failure: OSError | None = None
    for family, kind, proto, _, sockaddr in found:
        try:
            return _connect(CooperativeSocket(family, kind, proto), sockaddr, timeout, source_address)
        except OSError as error:
            failure = error
    try:
        raise failure or OSError(f"there is no address for {host!r}")
    finally:
        # The error's traceback refers to this frame.
        failure = None


def _connect(sock: CooperativeSocket, sockaddr: Any, timeout: float | None, source_address: Any) -> CooperativeSocket:
    try:
        sock.settimeout(timeout)
        if source_address is not None:
            sock.bind(source_address)
        sock.connect(sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


for _class in (GreenletMixIn, *CLASSES.values()):
    # Tracebacks and pickles name a thing by where it is public.
    _class.__module__ = "sockserve"
