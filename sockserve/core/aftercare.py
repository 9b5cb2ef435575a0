"""Connections that linger are looked after by the server's loop, and without one by the next ``handle_request()``."""

from __future__ import annotations

import functools
import socket
import time

from sockserve.core.deferral import Deferral
from sockserve.core.loop import Loop
from sockserve.core.poller import wait_readable
from sockserve.core.servable import AnyServer, Request
from sockserve.core.serving import serving_of
from sockserve.net.aborting import reset_on_close, why_aborted
from sockserve.net.closing import half_close
from sockserve.net.lingering import MOST_FAREWELLS, SWEEP_SECONDS, Farewells, Lingering
from sockserve.net.tls import is_tls

__all__ = ["let_linger", "part_from", "wait_for_request"]

_DONT_WAIT: int = getattr(socket, "MSG_DONTWAIT", 0)


def let_linger(server: AnyServer, connection: Request) -> None:
    """Keep a half-closed connection open for a moment, by a descriptor of its own. From any thread."""
    if why_aborted(connection) is None:
        _keep(server, connection, serving_of(server).lingering)


def part_from(server: AnyServer, connection: Request, farewell: bytes | None) -> None:
    """Say farewell to a connection that is refused, and is closed then; without one, or without room, it is reset."""
    if not isinstance(connection, socket.socket):
        return
    has_tls = is_tls(connection) or (getattr(server, "tls", None) is not None and server.tls_at_once)
    farewells = serving_of(server).part(Farewells)
    if farewell is None or has_tls or len(farewells) >= MOST_FAREWELLS or not _send(connection, farewell):
        reset_on_close(connection)
        return
    half_close(connection)
    _keep(server, connection, farewells)


def _send(connection: socket.socket, farewell: bytes) -> bool:
    try:
        # A new connection has room for it, or it is not worth waiting for.
        return connection.send(farewell, _DONT_WAIT) == len(farewell)
    except OSError:
        return False


def _keep(server: AnyServer, connection: Request, lingering: Lingering) -> None:
    acceptor = serving_of(server).acceptor
    with Deferral():
        # Between the system call and the object that owns the descriptor nothing may raise.
        is_kept = lingering.add(connection)
    if is_kept and acceptor is not None:
        _look_after(lingering, acceptor.loop)
    if server.fileno() < 0:
        # Its end may have looked for the last time.
        lingering.finish(in_haste=True)


def _look_after(lingering: Lingering, loop: Loop) -> None:
    if lingering.host is not loop:
        lingering.host = loop
        loop.call_soon(functools.partial(_look, lingering, loop))


def _look(lingering: Lingering, loop: Loop) -> None:
    if lingering.host is not loop:
        return
    if lingering.sweep():
        loop.call_later(SWEEP_SECONDS, functools.partial(_look, lingering, loop))
        return
    # In this order: one that is added meanwhile is either seen here or looked after by the thread that adds it.
    lingering.host = None
    if lingering:
        _look_after(lingering, loop)


def wait_for_request(server: AnyServer, fd: int, timeout: float | None) -> bool:
    """Wait as ``wait_readable()`` does, and look after what lingers meanwhile."""
    lingering = serving_of(server).lingering
    deadline = None if timeout is None else time.monotonic() + timeout
    while lingering.sweep() and (timeout is None or timeout > SWEEP_SECONDS):
        if wait_readable(fd, SWEEP_SECONDS):
            return True
        if deadline is not None:
            timeout = deadline - time.monotonic()
    return wait_readable(fd, timeout)
