"""What a supervisor counts: what became of its workers, and what all of them have counted, the dead ones too.

Rule 1. A number that is called a total never becomes less: what a worker has counted is kept when it ends.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import NamedTuple

from sockserve.concurrency.prefork.outcomes import Outcome, Stage
from sockserve.concurrency.prefork.protocol import (
    ACCEPTED,
    ACTIVE,
    CUTS,
    FAILED,
    HANDLED,
    PAUSES,
    REFUSED,
)
from sockserve.concurrency.prefork.worker_handle import WorkerHandle
from sockserve.core.events import Counters

__all__ = ["Figures", "Tally"]


class Figures(NamedTuple):
    """How many there have been, or are, at one moment."""

    accepted: int
    handled: int
    refused: int
    failed: int
    active: int
    """Requests in progress."""
    pauses: int
    """How often a worker accepted no more because it was full, or the system gave nothing."""
    cut: int
    """Requests whose connection was cut because the time was up."""
    starting: int
    serving: int
    leaving: int
    """Workers."""
    begun: int
    ends: dict[Outcome, int]
    hangs: int
    rolls: int


class Tally:
    """Counts for one supervisor, in its thread."""

    def __init__(self) -> None:
        self.counters = Counters()
        """What those have counted that have ended."""
        self.ends: collections.Counter[Outcome] = collections.Counter()
        self.begun = self.hangs = self.rolls = 0
        self._pauses = self._cut = 0

    def has_ended(self, worker: WorkerHandle, outcome: Outcome) -> None:
        """Keep what it has counted."""
        worker.page.add_to(self.counters)
        self._pauses += worker.page.numbers[PAUSES]
        self._cut += worker.page.numbers[CUTS]
        self.ends[outcome] += 1

    def figures(self, workers: Iterable[WorkerHandle]) -> Figures:
        """All of it, with what the workers that live have counted so far."""
        living = tuple(workers)
        serving = [worker for worker in living if worker.is_ready and not worker.is_leaving]
        leaving = sum(worker.is_leaving for worker in living)
        counted = {
            slot: sum(worker.page.numbers[slot] for worker in living)
            for slot in (ACCEPTED, HANDLED, REFUSED, FAILED, ACTIVE, PAUSES, CUTS)
        }
        kept = self.counters
        return Figures(
            kept.accepted + counted[ACCEPTED],
            kept.handled + counted[HANDLED],
            kept.refused + counted[REFUSED],
            kept.failed + counted[FAILED],
            counted[ACTIVE],
            self._pauses + counted[PAUSES],
            self._cut + counted[CUTS],
            sum(worker.stage is Stage.STARTS and not worker.is_leaving for worker in living),
            len(serving),
            leaving,
            self.begun,
            {outcome: self.ends[outcome] for outcome in Outcome},
            self.hangs,
            self.rolls,
        )
