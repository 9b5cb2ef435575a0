"""What a worker does for its supervisor, with the servers that it serves: it counts, and does what it is told.

Rule 1. A worker does what it is told at once, and ends when nothing is in progress any more.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from sockserve.concurrency.prefork.protocol import (
    ACCEPTED,
    ACTIVE,
    CUTS,
    ENOUGH,
    FAILED,
    HANDLED,
    PASSES,
    PAUSED,
    PAUSES,
    REFUSED,
    SLOW,
    STOPPED,
    SUSPENSIONS,
)
from sockserve.concurrency.prefork.worker_link import Link
from sockserve.core.active_requests import LiveRequest
from sockserve.core.cutting import cut_others, drain_one
from sockserve.core.events import Observer
from sockserve.core.one_shot import OneShot
from sockserve.core.replaced import reach
from sockserve.core.server import TCPServer, UDPServer
from sockserve.core.serving import serving_of, table_of
from sockserve.net.closing import end_input

__all__ = ["Duties", "end_input_of"]

END_PAUSE = 0.02
"""Seconds for which a worker with nothing more to do leaves the processor to others before it ends: the kernel takes
milliseconds to clear a process away, and ``shutdown()`` may be waiting for the next worker."""


_COUNTED_AS = {"failed": FAILED, "refused": REFUSED, "cut": SLOW}
"""Where the page counts what became of a request; all else is HANDLED."""


class Duties(Observer):
    """What a worker does for its supervisor; one of its servers' observers."""

    def __init__(self, link: Link, servers: Sequence[Any]) -> None:
        self._link = link
        self.servers = servers
        self._numbers = link.page.numbers
        self._lock = threading.Lock()
        self._limit = link.orders.max_requests
        self._ends_input = False
        self._retires = False
        self._leaves = False
        self._may_end = OneShot()
        link.when_let_go = self._let_go

    def on_wait(self, server: Any, reason: str | None) -> None:
        """Count it, and pass on the client that this worker was woken for and cannot accept."""
        if reason in ("full", "back off"):
            with self._lock:
                self._numbers[PAUSES] += 1
        # For one connection one worker is woken (EPOLLEXCLUSIVE).
        if reason == "back off" and serving_of(server).shares_listener:
            self._link.tell(PASSES)

    def on_accept(self, server: Any, request: LiveRequest) -> None:
        """Count it; one that came in the moment of a drain is drained too."""
        self._link.beat_between_requests()
        self.begin_one()
        if self._ends_input:
            end_input_of(server, request)

    def on_shutdown(self, server: Any, request: LiveRequest) -> None:
        """Count what became of it."""
        self.end_one(_COUNTED_AS.get(request.outcome, HANDLED))

    def begin_one(self) -> None:
        """Count a request, and ask for a successor if that is enough."""
        numbers = self._numbers
        with self._lock:
            # First, and in end_one() last: another process that sees that none is active finds all of them counted.
            numbers[ACTIVE] += 1
            numbers[ACCEPTED] += 1
            is_last = numbers[ACCEPTED] == self._limit
        if self._link.page.is_asleep():
            # A pool's worker took it: its loop sleeps on.
            self._link.stir()
        if is_last:
            self._link.tell(ENOUGH)

    def end_one(self, outcome: int) -> None:
        """Count what became of one: HANDLED, REFUSED, SLOW or FAILED."""
        with self._lock:
            self._numbers[outcome] += 1
            self._numbers[ACTIVE] -= 1

    def _let_go(self) -> None:
        self._numbers = self._link.page.numbers

    # Told by the supervisor, in the control thread, or by SIGTERM in the main thread.

    def retire(self) -> None:
        """Accept no more, but go on with the clients that are there, the parked among them."""
        self._retires = True
        for server in self.servers:
            stay = serving_of(server).lifecycle.acceptor
            if stay is None or not stay.retire(functools.partial(self._link.tell, STOPPED)):
                # Only a pool's parked connections need the accepting loop; every other model may leave now.
                self.leave()

    def be_lame(self) -> None:
        """Serve as before; handlers that ask hear that a drain will come."""
        for server in self.servers:
            serving_of(server).lifecycle.is_lame = True

    def leave(self) -> None:
        """Accept no more. Safe in a signal handler; idempotent, as the others. Told so again: end."""
        if self._leaves:
            self._may_end.set()
        self._leaves = True
        for server in self.servers:
            serving_of(server).lifecycle.draining = True
            # A standard library's server knows of no other way.
            server._BaseServer__shutdown_request = True  # noqa: SLF001
        self._link.tell(STOPPED)

    def drain(self) -> None:
        """Free the ports, and end the input of what is in progress."""
        self._ends_input = True
        self._may_end.set()
        self.leave()
        for server in self.servers:
            if _can_close_early(server):
                # Past the mix-ins, which would wait for their workers.
                TCPServer._serving_free_address(server)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - not what lingers
            for live in table_of(server).all():
                end_input_of(server, live)

    def cut(self) -> None:
        """End the connections of what is in progress."""
        self._may_end.set()
        self.leave()
        for server in self.servers:
            late = len(cut_others(server))
            with self._lock:
                self._numbers[CUTS] += late

    def wait_to_end(self) -> None:
        """Let a thread that waits for the end of accepting go first."""
        self._may_end.wait(END_PAUSE)

    def pause_or_go_on(self) -> None:
        """Accept or do not, as the page says; in a pause leave its number there as soon as nothing new can come."""
        number = self._numbers[SUSPENSIONS]
        is_pause = bool(number % 2)
        awaited = {id(server) for server in self.servers}

        def has_paused(server: Any) -> None:
            awaited.discard(id(server))
            if not awaited:
                self._numbers[PAUSED] = number

        for server in self.servers:
            # A standard library's server has no such verbs.
            with contextlib.suppress(AttributeError):
                if is_pause:
                    server.suspend()
                elif not self._retires:
                    server.resume()
            if is_pause:
                self._when_paused(server, number, functools.partial(has_paused, server))

    def _when_paused(self, server: Any, number: int, has_paused: Callable[[], object]) -> None:
        lifecycle = serving_of(server).lifecycle
        acceptor = lifecycle.acceptor
        if acceptor is None:
            # If it begins after this look it sees that it is suspended; a standard library's server has no pauses.
            has_paused()
            return
        table, loop = table_of(server), acceptor.loop
        is_over = False

        def look() -> None:
            nonlocal is_over
            if is_over or self._numbers[SUSPENSIONS] != number:
                return
            table.on_next_change(look_soon)
            # One that a pool's worker has just entered may not have been counted: there is another look when it ends.
            if lifecycle.has_paused() and not any(live.state == "accept" for live in table.all()):
                is_over = True
                table.not_on_next_change(look_soon)
                has_paused()

        def look_soon() -> None:
            # Between two calls that the loop makes nothing is half taken there.
            loop.call_soon(look)

        look_soon()

    def look(self) -> None:
        """Look whether a client waits whose wake-up went to another worker."""
        for server in self.servers:
            stay = serving_of(server).lifecycle.acceptor
            if stay is not None:
                stay.look_again()


def _can_close_early(server: object) -> bool:
    # A datagram server's answer on this very socket.
    return isinstance(server, TCPServer) and not isinstance(server, UDPServer)


def end_input_of(server: Any, live: LiveRequest) -> None:
    """Tell what serves a request that its client shall have no more to say."""
    if hasattr(server, "drain_request"):
        drain_one(server, live)
    elif not live.detached:
        # A standard library's server.
        reach(live, end_input)
