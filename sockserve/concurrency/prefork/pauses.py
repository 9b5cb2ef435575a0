"""Pauses of all workers at once: what each was told, and whether all take no request any more.

Rule 1. A pause has a number, and so has its end: what a worker says about an earlier one counts for nothing.
Rule 2. What suspends a server sets the flag first and asks here second; here it is the other way round: of two that
meet at least one sees the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sockserve.concurrency.prefork.protocol import PAUSED
from sockserve.concurrency.prefork.worker_handle import WorkerHandle

__all__ = ["Pauses"]


class Pauses:
    """The pauses of a supervisor's workers."""

    def __init__(self, workers: Mapping[int, WorkerHandle]) -> None:
        self.number = 0
        """What all workers have been told, as on their pages: odd in a pause."""
        self._workers = workers

    def tell(self, is_suspended: Callable[[], bool]) -> bool:
        """Let all pause or go on, and say whether that is new.

        In the supervisor's thread; while the supervisor does not run, in any.
        """
        before, suspended = self.number, is_suspended()
        if suspended is bool(before % 2):
            return False
        if not suspended:
            # In this order: a suspend() of this moment is either seen here, or sees that this pause counts no longer.
            self.number = before + 1
            if is_suspended():
                self.number = before
                return False
        for worker in list(self._workers.values()):
            worker.suspend(before + 1)
        self.number = before + 1
        return True

    def has_come(self) -> bool:
        """Whether all were told to pause, and take no request any more."""
        number = self.number
        workers = list(self._workers.values())
        return bool(number % 2) and all(
            worker.page.numbers[PAUSED] == number or worker.has_stopped or worker.has_ended() for worker in workers
        )
