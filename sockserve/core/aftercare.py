"""Connections that linger are looked after by the server's loop, and without one by the next ``handle_request()``."""

from __future__ import annotations

import functools
import time

from sockserve.core.deferral import Deferral
from sockserve.core.loop import Loop
from sockserve.core.poller import wait_readable
from sockserve.core.servable import AnyServer, Request
from sockserve.core.serving import serving_of
from sockserve.net.aborting import why_aborted
from sockserve.net.lingering import SWEEP_SECONDS, Lingering

__all__ = ["let_linger", "wait_for_request"]


def let_linger(server: AnyServer, connection: Request) -> None:
    """Keep a half-closed connection open for a moment, by a descriptor of its own. From any thread."""
    if why_aborted(connection) is not None:
        return
    state = serving_of(server)
    lingering, acceptor = state.lingering, state.acceptor
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
