"""The pauses of a server that is at its ``limits``. In the loop's thread."""

from __future__ import annotations

from sockserve.core.limits import Limits, limits_of
from sockserve.core.loop import Loop
from sockserve.core.servable import AnyServer
from sockserve.core.timer import Timer

__all__ = ["LimitPause", "limit_pause_of"]


class LimitPause:
    """One server's, during its stay in a loop."""

    def __init__(self, server: AnyServer, loop: Loop, limits: Limits) -> None:
        self.must_wait = limits.must_wait
        self._server = server
        self._loop = loop
        self._limits = limits
        self._timer: Timer | None = None

    def wait_for_room(self, *, is_first: bool) -> None:
        """See that the loop turns again when there is room; before the first wait of a pause say so in the log."""
        limits = self._limits
        if is_first:
            limits.tell_waiting(self._server)
        is_full = limits.requests is not None and limits.active >= limits.requests
        if is_full:
            limits.on_room(self._loop.wake)
        if self._timer is not None:
            self._timer.cancel()
        due = limits.seconds_until_due()
        # Nothing is to be done then: the turn that it begins looks.
        self._timer = self._loop.call_later(due, _nothing) if due else None
        if not due and not is_full:
            # A request has ended since must_wait(), or the time has come: nothing else would wake the loop.
            self._loop.wake()


def limit_pause_of(server: AnyServer, loop: Loop) -> LimitPause | None:
    """That of a server that has ``limits``; None: it has none."""
    limits = limits_of(server)
    return None if limits is None else LimitPause(server, loop, limits)


def _nothing() -> None:
    """What a timer calls that is only to end a wait."""
