"""Which worker serves where, at which place the next one begins, and after which pause.

Rule 1. A place has one worker that holds it, and perhaps one that is about to: its successor, or its first.
Rule 2. Successors begin one at a time, so that at no moment more than one place is in change.
Rule 3. After a failed start the next is tried alone, and later each time, until one succeeds.
"""

from __future__ import annotations

from collections.abc import Container

from sockserve.concurrency.prefork.worker_handle import WorkerHandle

__all__ = ["BACK_OFF_FIRST", "BACK_OFF_LAST", "GIVE_UP_AFTER", "SETTLED", "Places", "back_off"]

SETTLED = 1.0
"""Seconds that a worker has to serve before what ends it no longer counts as a failed start."""

BACK_OFF_FIRST = 0.1
"""Seconds of the pause after a failed start; each further one in a row doubles it."""

BACK_OFF_LAST = 5.0
"""Seconds that such a pause never exceeds."""

GIVE_UP_AFTER = 6
"""Failed starts in a row, while no worker serves, after which it is hopeless: 3 seconds for what is merely late."""


def back_off(failures: int) -> float:
    """Seconds of the pause after so many failures in a row, at least one."""
    # No float is as large as the 1024th power of 2.
    return min(BACK_OFF_FIRST * 2.0 ** min(failures - 1, 60), BACK_OFF_LAST)


class Places:
    """The places of the workers. It decides; the supervisor does it."""

    def __init__(self) -> None:
        self.holders: dict[int, WorkerHandle] = {}
        self.starting: dict[int, WorkerHandle] = {}
        self.generation = 0
        """How many rolling restarts were asked for, and not given up."""
        self.proven_generation = 0
        """The latest of which a worker was ready."""
        self.attempt: int = 0
        """The number of the attempt to start workers that is being made, or comes next."""
        self.failures: int = 0
        """Failed attempts in a row."""
        self._last_was_ready = False

    def next_to_start(self, wanted: int, held: Container[int | None] = ()) -> list[int]:
        """The places whose next worker may begin now, if there are to be so many; none of those ``held``."""
        if self.failures and self.starting:
            return []
        missing = [place for place in range(wanted) if place not in self.holders and place not in self.starting]
        missing = [place for place in missing if place not in held]
        if missing:
            return missing[:1] if self.failures else missing
        if self.starting:
            return []
        return [place for place, worker in self.holders.items() if self._is_outdated(worker) and place not in held][:1]

    def is_rolling(self) -> bool:
        """Whether a rolling restart was asked for that is neither over nor given up."""
        is_first = self.proven_generation < self.generation
        return is_first or any(worker.generation < self.generation for worker in self.holders.values())

    def _is_outdated(self, worker: WorkerHandle) -> bool:
        return worker.wants_out or worker.generation < self.generation

    def take(self, worker: WorkerHandle) -> tuple[bool, WorkerHandle | None]:
        """A worker is ready: say whether the place is its own now, and which worker held it before."""
        place = worker.place
        if self.starting.get(place) is not worker:
            return False, None
        del self.starting[place]
        before = self.holders.get(place)
        self.holders[place] = worker
        if not self._last_was_ready:
            self.failures = 0
        self.proven_generation = max(self.proven_generation, worker.generation)
        return True, before

    def give_up(self, place: int) -> list[WorkerHandle]:
        """Vacate a place; return its workers, which are to end."""
        given_up = (self.holders.pop(place, None), self.starting.pop(place, None))
        return [worker for worker in given_up if worker is not None]

    def forget(self, worker: WorkerHandle) -> None:
        """Take a worker out of its place."""
        for places in (self.holders, self.starting):
            if places.get(worker.place) is worker:
                del places[worker.place]

    def rolls_in_vain(self, place: int) -> bool:
        """A start at this place failed: whether that was a rolling restart, which is given up then."""
        holder = self.holders.get(place)
        if holder is None or holder.generation == self.generation:
            return False
        self.generation = self.proven_generation
        for each in self.holders.values():
            # One that a restart did not come to before it was given up is as good as those that it did.
            each.generation = self.generation
        return True

    def failed(self, attempt: int, *, was_ready: bool) -> float | None:
        """A start failed: return the seconds until the next one; None: another of that attempt has failed before.

        ``was_ready``: it ended soon after it was ready. Then only one that has settled shows that it works again.
        """
        if attempt != self.attempt:
            return None
        self.attempt += 1
        self.failures += 1
        self._last_was_ready = was_ready
        return back_off(self.failures)

    def is_hopeless(self) -> bool:
        """Whether nothing but failed starts is left."""
        serving = any(worker.is_settled for worker in self.holders.values())
        return self.failures >= GIVE_UP_AFTER and not serving
