"""Notices that this process itself did not run: Ctrl-Z, ``docker pause``, a frozen cgroup, a paused virtual machine.

Rule 1. A wait has a limit while anything is measured. What comes much later than that was no wait, and the time beyond
it counts for nothing: neither a worker's silence nor a part of the time that its requests have to end. The same holds
of what a turn takes.
CLOCK_MONOTONIC does not go on while the machine is suspended, so that case needs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sockserve.core.loop import Loop

__all__ = ["TimeAsleep"]

LATE = 0.5
"""Seconds after which a wait that should be over counts as sleep: a busy machine delays a process by less."""

SHORTEST_TICK = 0.1
TICKS = 8
"""In a time that is measured there are so many waits: one part in eight of it may pass unnoticed."""


class TimeAsleep:
    """What a supervisor knows of it; ``slept`` is called with the seconds, before anything else of that turn."""

    def __init__(self, slept: Callable[[float], object]) -> None:
        self._slept = slept
        self._began: float | None = None
        """When the present wait began; None: nothing is measured."""
        self._woke: float | None = None
        """When the last wait ended."""

    def before_wait(self, loop: Loop, shortest: float | None) -> float | None:
        """The limit that the coming wait needs, if the shortest time that is measured now is this; None: no limit."""
        woke, self._woke = self._woke, None
        self._began = began = None if shortest is None else time.monotonic()
        if shortest is None or began is None:
            return None
        if woke is not None and began - woke > LATE:
            # Stopped within a turn.
            self._slept(began - woke)
        tick = max(SHORTEST_TICK, shortest / TICKS)

        def is_over() -> None:
            # Of a loop that was left, or in whose wait a signal handler ran another one, it says nothing.
            if self._began is began:
                self._woke = time.monotonic()
                late = self._woke - began - tick
                if late > LATE:
                    self._slept(late)

        loop.after_next_wait(is_over)
        return tick

    def rest(self) -> None:
        """No loop turns from now on, or another one."""
        self._began = self._woke = None
