"""How the requests in progress are told to end, and what follows for those that do not.

All of it may be called from any thread, and from a signal handler.
"""

from __future__ import annotations

import time

from sockserve.core.active_requests import LiveRequest
from sockserve.core.preparing import DRAIN_GRACE, sees_drain
from sockserve.core.replaced import reach
from sockserve.core.servable import Preparing
from sockserve.core.serving import serving_of, table_of
from sockserve.log import log
from sockserve.net.closing import cut, end_input

__all__ = ["cut_others", "drain_one", "tell_cut"]


def drain_one(server: Preparing, live: LiveRequest) -> None:
    """Tell the worker of a request that a drain has begun. From any thread, and from a signal handler."""
    if live.process is None and sees_drain(server, live):
        _end_preparation_later(server, live)
        return
    if live.process is None and not live.detached and live.kept is None:
        reach(live, server.drain_request)
    # Not else: a child may have begun meanwhile, and what was told was this process's closed copy.
    if live.process is not None:
        live.process.drain()


def _end_preparation_later(server: object, live: LiveRequest) -> None:
    """Let a handshake that has just begun come to its end."""
    acceptor = serving_of(server).acceptor
    # A thread or greenlet that waits sees itself that a drain has begun.
    if live.parking is None or acceptor is None:
        return

    def end() -> None:
        if live.preparation is not None:
            reach(live, end_input)

    acceptor.loop.call_soon(lambda: acceptor.loop.call_later(DRAIN_GRACE, end))


def tell_cut(server: object, live: LiveRequest) -> None:
    """Say in the log that a request did not end by itself."""
    log.warning("%s: cut %s, in progress for %.1f s", server, live.client_address, time.monotonic() - live.since)


def cut_others(server: object) -> list[LiveRequest]:
    """End the connection of every request in progress but the calling thread's own; say which. From any thread.

    Not of those that a subclass keeps: what it does with them is its own business.
    """
    late = [live for live in table_of(server).others() if live.kept is None]
    for live in late:
        tell_cut(server, live)
        if live.process is None and not live.detached:
            reach(live, cut)
        if live.process is not None:
            live.process.cut()
    return late
