"""How many workers take requests at once: as many as get more done, and no more.

Rule 1. The pool is watched only while there is more than one thing to do at once; else all workers wait for events.
Rule 2. One worker is enough while it computes or waits for events: more of them would only fight for the interpreter's
lock. Where a handler waits for something else all workers are called at once.
Rule 3. Code that computes without the lock looks like a fight for it. Only a trial tells: twice as many workers, kept
if they get a tenth more done, and for as long as they keep more processors busy than half of them could.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["BUSY", "TICK", "Balance", "Look"]

TICK = 0.002
"""Seconds between two looks. After two of them a quick request is served though handlers hold all that stand."""

BUSY = 0.85
"""Part of the time that workers compute or wait for events, from which on no handler waits for something else."""

FEW = 1000.0
"""Requests per second up to which a pool with a worker that waits for events need not be watched."""

CALM = 10
"""Such ticks in a row after which it is watched no longer."""

WINDOW = 0.02
"""Seconds whose progress is compared."""

GAIN = 1.1
"""What twice as many workers must get done, for each request that they did before; and how many processors they must
keep busy, for each that half of them could."""

FIRST_PAUSE, LAST_PAUSE = 0.1, 1.6
"""Seconds until the same trial is made again. Doubled each time that it was in vain."""


class Look(NamedTuple):
    """What the coordinator sees after a tick, or several."""

    elapsed: float
    """Seconds."""
    computed: float
    """Seconds of processor time, of all threads of the process."""
    waited: float
    """Seconds that workers waited for events."""
    moved: int
    """Requests that were served."""
    waiting: int
    """Workers that wait for events now."""
    is_starved: bool = False
    """Whether nothing moved only because the process has got no processor."""

    @property
    def share(self) -> float:
        """How many processors the process had."""
        return self.computed / self.elapsed

    def plus(self, other: Look) -> Look:
        """Both together."""
        return Look(*(mine + others for mine, others in zip(self, other, strict=True)))  # type: ignore[arg-type]


NOTHING = Look(0.0, 0.0, 0.0, 0, 0)


class _Trial:
    """One kind of trial."""

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE
        self.due = 0.0
        """When it may be made, in seconds since the pool was pressed for the first time."""

    def was_right(self, now: float) -> None:
        self._pause = FIRST_PAUSE
        self.due = now + FIRST_PAUSE

    def was_in_vain(self, now: float) -> None:
        self.due = now + self._pause
        self._pause = min(2 * self._pause, LAST_PAUSE)


class Balance:
    """Decides. All methods are for the coordinator's thread."""

    def __init__(self, most: int, processors: int) -> None:
        self.most = most
        self._most_busy = min(most, processors)
        """More could not compute at once, with or without the lock."""
        self.level = 1
        """How many workers are to take requests, beside those that a handler holds up."""
        self.right = 1
        """The level that is right while the processor is busy."""
        self._now = 0.0
        self._quiet = 0
        self._seen = NOTHING
        self._more, self._after_waits = _Trial(), _Trial()
        self._before: Look | None = None
        """What was seen with half of the workers, while a trial is under way."""

    def judge(self, look: Look) -> bool:
        """Choose the level after one tick; false: the pool need not be watched any more."""
        self._now += look.elapsed
        if look.is_starved:
            return True
        if look.waiting and look.moved <= look.elapsed * FEW:
            self._quiet += 1
            return self._quiet < CALM
        self._quiet = 0
        is_busy = look.share >= BUSY
        if not look.waiting and (not look.moved or look.share + look.waited / look.elapsed < BUSY):
            self._call(is_busy)
        elif self.level > self.right and self._before is None:
            if is_busy:
                self._choose(max(self.right, self.level // 2))
            elif self._now >= self._after_waits.due:
                self._choose(self.right)
        else:
            self._seen = self._seen.plus(look)
            if self._seen.elapsed >= WINDOW:
                seen, self._seen = self._seen, NOTHING
                self._compare(seen)
        return True

    def _choose(self, level: int) -> None:
        self.level = level
        self._before = None
        self._seen = NOTHING

    def _call(self, is_busy: bool) -> None:
        """Handlers wait, or compute for long."""
        if self.level == self.most:
            self._choose(self.most)
        elif is_busy:
            self._choose(min(2 * self.level, self.most))
        else:
            self._choose(self.most)
            self._after_waits.was_in_vain(self._now)

    def _compare(self, seen: Look) -> None:
        uses_more = seen.computed > seen.elapsed * GAIN * self.level / 2
        if self._before is not None:
            before = self._before
            if uses_more and seen.moved * before.elapsed > GAIN * before.moved * seen.elapsed:
                self.right = self.level
                self._more.was_right(self._now)
            else:
                self._more.was_in_vain(self._now)
            self._choose(self.right)
            return
        # It has lasted for some time: handlers do not wait any more.
        self._after_waits.was_right(self._now)
        if self.right > 1 and not uses_more:
            self.right //= 2
            self._choose(self.right)
        elif seen.share >= BUSY and self.level < self._most_busy and self._now >= self._more.due:
            self._before = seen
            self.level = min(2 * self.level, self._most_busy)
