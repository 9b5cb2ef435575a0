"""Whether a server accepts, and how it is told to stop.

Theory of operation. A server has one Lifecycle, and at most one stay in a loop at a time: ``begin()`` claims it,
``end()`` gives it back, both in the thread that begins or ends to serve. The other methods may be called from any
thread and in a signal handler: they set a flag that the stay looks at before its next wait, and wake its loop.
``stop()`` and ``wait_until_idle()`` then wait, each caller on a lock of its own (``OneShot``).

Rule 1. Every verb may be called from any thread, a handler or a signal handler; none waits for a lock.
Rule 2. A verb changes a flag first and wakes the loop second; the loop looks at the flags before each wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sockserve.core.active_requests import ActiveRequests, LiveRequest
from sockserve.core.forked import tell_when_forked
from sockserve.core.loop import Loop
from sockserve.core.one_shot import OneShot
from sockserve.seconds import limit_of

__all__ = ["CUT_GRACE", "CutShort", "Drained", "Lifecycle", "Stay", "wait_until_idle"]

CUT_GRACE = 1.0
"""Seconds a handler has to notice that its connection was cut, before it is left behind: unwinding takes far less."""

KEPT_POLL = 0.05
"""Seconds between two looks at requests that a subclass keeps, while a thread waits for them."""


class CutShort(BaseException):
    """Raised into a handler that runs in the loop's thread, to end it when its connection is cut."""


class Drained(NamedTuple):
    """How the requests ended that a drain waited for."""

    finished: int
    """Requests that ended by themselves."""
    cut: int
    """Requests whose connection was cut because the time was up."""


Drained.__module__ = "sockserve"


class Stay:
    """A server's stay in a loop, as its lifecycle knows it. Subclass it."""

    loop: Loop
    stop_requested: bool
    """Set it and wake the loop to end the stay."""
    ended: OneShot

    def has_paused(self) -> bool:
        """Whether no request is being taken, nor about to be."""
        raise NotImplementedError

    def look_again(self) -> None:
        """Look whether a client waits whose wake-up went to another process (EPOLLEXCLUSIVE). From any thread.

        Does nothing here.
        """

    def retire(self, say_paused: Callable[[], object]) -> bool:
        """Take no new client, and leave when the last one has gone; false: nothing of a client is kept in this loop.

        ``say_paused`` is called as soon as no client can be taken any more; never if false. From any thread.
        """
        return False

    def listener_closes(self) -> None:
        """``server_close()`` is about to close the listener. From any thread."""

    def forked(self) -> None:
        """In a child that was forked beside the thread whose stay it is."""


class Lifecycle:
    """One server's flags, its stay in a loop if there is one, and the events that wait for them."""

    def __init__(self) -> None:
        self.acceptor: Stay | None = None
        self.has_served = False
        self.suspended = False
        self.suspended_by_drain = False
        """Whether the next stay in a loop undoes the suspension: it was a part of a drain."""
        self.draining = False
        self.is_lame = False
        """Whether the process is about to drain, and serves as before until then: handlers are told the same."""
        self.listener_is_closing = False
        """Whether ``server_close()`` closes the listener just now."""
        self.serving = OneShot()
        self.when_serving: Callable[[], object] | None = None
        """Called when this process begins to serve: a stay in a loop, or one request without."""
        self._stop_at_start = False
        self._claim = threading.Lock()
        tell_when_forked(self)

    def forked(self) -> None:
        """In a forked child: nothing of the server is being served here, unless it is by the thread that forked."""
        acceptor = self.acceptor
        if acceptor is not None:
            if not acceptor.loop.is_left_behind:
                return
            self.draining = False
            self.acceptor = None
            acceptor.forked()
        self.serving = OneShot()
        self._claim = threading.Lock()

    def begin(self, acceptor: Stay) -> bool:
        """Claim the one stay in a loop; false: another one has not ended."""
        if not self._claim.acquire(blocking=False):
            return False
        self.tell_serving()
        self.draining = False
        if self.suspended_by_drain:
            self.suspended = self.suspended_by_drain = False
        # In this order, or a stop() between the two would neither find the stay nor set _stop_at_start.
        self.acceptor = acceptor
        self.has_served = True
        if self._stop_at_start:
            acceptor.stop_requested = True
            self._stop_at_start = False
        return True

    def tell_serving(self) -> None:
        """Tell ``when_serving``."""
        if self.when_serving is not None:
            self.when_serving()

    def end(self) -> None:
        """End the stay: another one may begin."""
        if self.serving.is_set():
            self.serving = OneShot()
        self.acceptor = None
        self._claim.release()

    @property
    def stop_requested(self) -> bool:
        """Whether the present stay in a loop, or without one the next, is to end at once."""
        acceptor = self.acceptor
        return self._stop_at_start if acceptor is None else acceptor.stop_requested

    @stop_requested.setter
    def stop_requested(self, value: bool) -> None:
        acceptor = self.acceptor
        if acceptor is None:
            self._stop_at_start = value
            # As in stop().
            acceptor = self.acceptor
            if acceptor is not None:
                self._stop_at_start = False
        if acceptor is not None:
            acceptor.stop_requested = value
            acceptor.loop.wake()

    def wake(self) -> None:
        """Make the loop look at the flags now."""
        acceptor = self.acceptor
        if acceptor is not None:
            acceptor.loop.wake()

    def stop(self, timeout: float | None) -> None:
        """Ask the loop to end and wait until it has, unless the caller is what the loop would have to wait for.

        Before the first stay in a loop, that first one will end at once; after the last, this has no effect.
        Raises TimeoutError.
        """
        # First: a timeout that is refused must not stop the server.
        timeout = limit_of(timeout, "timeout")
        # In this order, or a stay that begins between the two is missed: begin() writes the acceptor first.
        has_served = self.has_served
        acceptor = self.acceptor
        if acceptor is None and not has_served:
            self._stop_at_start = True
            # It may have begun since the look above, and not seen the flag.
            acceptor = self.acceptor
            if acceptor is not None:
                self._stop_at_start = False
        if acceptor is None:
            return
        acceptor.stop_requested = True
        acceptor.loop.wake()
        if acceptor.loop.thread in (None, threading.get_ident()):
            # A loop that no thread runs looks at the flag in its first turn.
            return
        if not acceptor.ended.wait(timeout):
            raise TimeoutError(f"the loop has not ended within {timeout} seconds")

    def has_paused(self) -> bool:
        """Whether no loop takes requests, nor is about to."""
        acceptor = self.acceptor
        return acceptor is None or acceptor.has_paused()


def wait_until_idle(
    watched: Sequence[tuple[Lifecycle, ActiveRequests]],
    timeout: float | None,
    wait: Callable[[OneShot, float | None], bool],
    see: Callable[[LiveRequest], object] | None = None,
) -> bool:
    """Wait until no request is in progress but the caller's own, and, where suspended, none can be under way.

    ``see`` is called once with each request that is waited for; ``wait`` waits so many seconds at most for a change of
    a table. False: ``timeout`` seconds were not enough.
    """
    limit = limit_of(timeout, "timeout")
    deadline = None if limit is None else time.monotonic() + limit
    seen: set[LiveRequest] = set()
    while True:
        change = OneShot()
        for _, table in watched:
            table.on_next_change(change.set)
        try:
            # In this order, or a request could slip through: what was being taken before a pause is in the table after
            # it.
            nothing_comes = all(not lifecycle.suspended or lifecycle.has_paused() for lifecycle, _ in watched)
            waited_for = [live for _, table in watched for live in table.others()]
            if see is not None:
                for live in waited_for:
                    if live not in seen:
                        seen.add(live)
                        see(live)
            if nothing_comes and not waited_for:
                return True
            limit = None if deadline is None else max(0.0, deadline - time.monotonic())
            if any(live.kept is not None for live in waited_for):
                # A subclass may close what it keeps, and nothing tells of that.
                limit = KEPT_POLL if limit is None else min(limit, KEPT_POLL)
            if not wait(change, limit) and deadline is not None and time.monotonic() >= deadline:
                return False
        finally:
            for _, table in watched:
                table.forget_change(change)
