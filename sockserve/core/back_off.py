"""The pauses of a server whose ``accept()`` fails for want of something, such as descriptors.

Rule 1. Each pause is twice as long as the one before, up to ``BACK_OFF_LAST`` seconds; the first request that is taken
ends the series.
Rule 2. A pause ends early when a request ends: that may have set free what was missing.

``begin()``, ``end_pause()`` and ``forget()`` are called in the loop's thread, ``recovered()`` in the thread that takes
requests. The end of a request is heard in any thread.
"""

from __future__ import annotations

from sockserve.core.active_requests import ActiveRequests
from sockserve.core.loop import Loop
from sockserve.core.servable import AnyServer
from sockserve.core.timer import Timer
from sockserve.log import counted, log
from sockserve.net.accept_errors import BACK_OFF_FIRST, BACK_OFF_LAST

__all__ = ["BackOff"]


class BackOff:
    """The back-off of one server during its stay in a loop."""

    def __init__(self, server: AnyServer, loop: Loop, table: ActiveRequests) -> None:
        self.delay = 0.0
        """Seconds of the present or last pause of a series that has not ended; 0: accepting works."""
        self.errors = 0
        """Failed attempts in this series."""
        self._server = server
        self._loop = loop
        self._table = table
        self.timer: Timer | None = None
        """Of the present pause; None: there is none, as ``is_pause()`` would say too."""
        self._ends_early = False
        self._hears_changes = False

    def is_pause(self) -> bool:
        """Whether the server is to wait before it tries again."""
        return self.timer is not None and not self._ends_early

    def begin(self, what: str, error: BaseException) -> None:
        """Pause after a failed attempt. ``what`` failed is said in the log with the first error of a series."""
        self.errors += 1
        if not self.delay:
            log.warning("%s: accepting pauses, because %s: %s", self._server, what, error)
        self.delay = min(2 * self.delay, BACK_OFF_LAST) if self.delay else BACK_OFF_FIRST
        self.end_pause()
        self._ends_early = False
        self.timer = self._loop.call_later(self.delay, self.end_pause)
        if not self._hears_changes:
            self._hears_changes = True
            self._table.on_next_change(self._end_early)

    def _end_early(self) -> None:
        self._hears_changes = False
        if self.is_pause():
            self._ends_early = True
            self._loop.wake()

    def end_pause(self) -> None:
        """Let the server try again. Idempotent."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def forget(self) -> None:
        """In a forked child: the pause is the parent's."""
        self.timer = None

    def recovered(self) -> None:
        """An attempt succeeded. No effect outside of a series."""
        if self.delay:
            log.warning("%s: accepting again after %s", self._server, counted(self.errors, "failed attempt"))
            self.delay = 0.0
            self.errors = 0
