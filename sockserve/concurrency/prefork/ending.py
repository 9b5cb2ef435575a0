"""Makes workers end, in steps that are measured.

Rule 1. The last step is SIGKILL, so that every worker ends.
Rule 2. Time in which the supervisor itself did not run is no part of a step's time.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

from sockserve.concurrency.prefork.crew import Crew
from sockserve.concurrency.prefork.hang_detection import HangDetector
from sockserve.concurrency.prefork.protocol import ACTIVE, CUTS
from sockserve.concurrency.prefork.time_asleep import TimeAsleep
from sockserve.concurrency.prefork.worker_handle import KILL, Step, WorkerHandle
from sockserve.core.loop import Loop
from sockserve.log import log

__all__ = ["Ending"]


class Ending:
    """The steps of those of a supervisor's workers that are to end. Used in the supervisor's thread alone."""

    def __init__(self, crew: Crew, hang_detector: HangDetector) -> None:
        self.cut = 0
        """How many requests were cut by the ends of workers so far."""
        self._crew = crew
        self._hang_detector = hang_detector
        self._time_asleep = TimeAsleep(self.slept)

    def escalate(self, worker: WorkerHandle, steps: Sequence[Step]) -> None:
        """Make the first step now, and the others in time, unless it has ended by then."""
        self._forget(worker)
        (command, delay), *later = steps
        if command == KILL:
            log.warning("%s: %s does not end; it is killed", self._crew.name, worker)
        worker.tell(command)
        self._hang_detector.expect_awake(worker)
        if delay is not None:
            worker.step_time = delay
            worker.timer = self._crew.loop.call_later(delay, functools.partial(self.escalate, worker, later))

    def has_ended(self, worker: WorkerHandle) -> None:
        """Make no further step, and count what the worker still had in progress."""
        self._forget(worker)
        self.cut += max(worker.page.numbers[CUTS], worker.page.numbers[ACTIVE])

    def _forget(self, worker: WorkerHandle) -> None:
        timer, worker.timer = worker.timer, None
        if timer is not None:
            timer.cancel()

    def before_wait(self, loop: Loop) -> float | None:
        """Seconds that the coming wait may last at most, so that sleep of this process shows; None: without limit."""
        times = [worker.step_time for worker in self._crew.workers.values() if worker.timer is not None]
        if self._hang_detector.is_looking():
            times.append(self._crew.settings.worker_timeout or 0.0)
        return self._time_asleep.before_wait(loop, min(times, default=None))

    def rest(self) -> None:
        """A loop that hosted the supervisor is left: what comes until the next turn is no sleep."""
        self._time_asleep.rest()

    def slept(self, seconds: float) -> None:
        """Let each next step come later by the seconds in which this process did not run."""
        log.debug("%s: the supervisor itself did not run for %.1f seconds", self._crew.name, seconds)
        self._hang_detector.slept()
        for worker in self._crew.workers.values():
            timer = worker.timer
            if timer is not None and timer.callback is not None:
                worker.timer = self._crew.loop.call_later(timer.when + seconds - time.monotonic(), timer.callback)
                timer.cancel()
