"""How many a second: for all together, and for each source in a fixed amount of memory.

Each is the Generic Cell Rate Algorithm (ITU-T I.371): the time at which the next one is due if all came evenly. Not
safe for several threads: the caller holds a lock.
"""

from __future__ import annotations

import array

__all__ = ["Rate", "SourceRates"]

CELLS = 16384
"""Cells in each of two rows, 256 KiB together. Two sources share both cells with a probability of 1 in 2**28, and in a
flood of 2000 sources a second 1 in 70 meets a full one in each row."""

ROUNDING = 1e-6
"""Seconds by which one may come too early: sums of floating-point numbers are not exact."""


class Rate:
    """At most so many a second, and so many at once after a pause."""

    def __init__(self, rate: float) -> None:
        self._interval = 1 / rate
        self._slack = max(0.0, 1 - self._interval) + ROUNDING
        self._due = 0.0

    def seconds_until_due(self, now: float) -> float:
        """Seconds until the next one may come; 0: now."""
        return max(0.0, self._due - self._slack - now)

    def count(self, now: float) -> None:
        """One came."""
        self._due = max(self._due, now) + self._interval


class SourceRates:
    """The same for each source."""

    def __init__(self, rate: float) -> None:
        self._interval = 1 / rate
        self._slack = max(0.0, 1 - self._interval) + ROUNDING
        self._first, self._second = (array.array("d", bytes(8 * CELLS)) for _ in range(2))

    def is_due(self, source: str, now: float) -> bool:
        """Whether this one may come, which then counts; one that may not counts for nothing."""
        # Of a text it is SipHash, with a key that no client knows (PEP 456): no client can choose its cells.
        number = hash(source)
        one, other = number % CELLS, number // CELLS % CELLS
        # What other sources have put into a cell only makes it later: the earlier of both is nearer to the truth.
        due = min(self._first[one], self._second[other])
        if due - self._slack > now:
            return False
        due = max(due, now) + self._interval
        self._first[one] = max(self._first[one], due)
        self._second[other] = max(self._second[other], due)
        return True
