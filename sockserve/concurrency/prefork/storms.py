"""Restart storms: a place whose workers end again and again just after their start begins its next one later.

Rule 1. One early end costs no time: it may be the only one. Each further one in a row doubles the pause.
Rule 2. A pause is of one place: the others go on, and are replaced at once.
Rule 3. What ends a storm is a worker of that place that has settled.
"""

from __future__ import annotations

import functools

from sockserve.concurrency.prefork.crew import Crew
from sockserve.concurrency.prefork.places import BACK_OFF_FIRST, SETTLED, back_off
from sockserve.concurrency.prefork.worker_handle import WorkerHandle
from sockserve.core.loop import Timer
from sockserve.log import log

__all__ = ["Storms"]


class Storms:
    """The early ends in a row at each place, and the pauses for them in a supervisor's innermost loop."""

    def __init__(self, crew: Crew) -> None:
        self.held: dict[int | None, Timer] = {}
        """The places at which no worker begins until this timer is due; None: all places."""
        self._crew = crew
        self._in_a_row: dict[int, int] = {}

    def ended_early(self, worker: WorkerHandle, how: str) -> None:
        """A worker that has not settled is to be replaced, by no order: its place pauses if that comes in a row."""
        place = worker.place
        in_a_row = self._in_a_row[place] = self._in_a_row.get(place, 0) + 1
        delay = back_off(in_a_row - 1) if in_a_row > 1 else 0.0 if worker.is_ready else BACK_OFF_FIRST
        if delay and self._crew.loops:
            if in_a_row > 1:
                log.warning(
                    "%s: %s; that is early end number %d in a row at this place, before %g second of service:"
                    " the next worker begins in %.1f seconds",
                    *(self._crew.name, how, in_a_row, SETTLED, delay),
                )
            self.hold(place, delay)

    def hold(self, place: int | None, delay: float) -> None:
        """Begin no worker at this place, or at any, for so many seconds."""
        self._release(place)
        self.held[place] = self._crew.loop.call_later(delay, functools.partial(self._release, place))

    def settled(self, worker: WorkerHandle) -> None:
        """Its place is in order."""
        self._in_a_row.pop(worker.place, None)

    def rest(self) -> None:
        """The loop of the timers is gone."""
        for place in list(self.held):
            self._release(place)

    def _release(self, place: int | None) -> None:
        timer = self.held.pop(place, None)
        if timer is not None:
            timer.cancel()
