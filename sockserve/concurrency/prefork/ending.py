"""Makes workers end, in steps that are measured.

Rule 1. The last step is SIGKILL, so that every worker ends.
Rule 2. Time in which the supervisor itself did not run is no part of a step's time.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

from sockserve.concurrency.prefork.hang_detection import Pulse
from sockserve.concurrency.prefork.worker_handle import KILL, Step, WorkerHandle
from sockserve.core.loop import Loop
from sockserve.log import log

__all__ = ["Ending"]


class Ending:
    """The steps of those of a supervisor's workers that are to end, in its innermost loop."""

    def __init__(self, name: object, loops: Sequence[Loop], pulse: Pulse) -> None:
        self._name = name
        self._loops = loops
        self._pulse = pulse

    def press(self, worker: WorkerHandle, steps: Sequence[Step]) -> None:
        """Make the first step now, and the others in time, unless it has ended by then."""
        self.forget(worker)
        (command, delay), *later = steps
        if command == KILL:
            log.warning("%s: %s does not end; it is killed", self._name, worker)
        worker.tell(command)
        self._pulse.expect_awake(worker)
        if delay is not None:
            worker.step_time = delay
            worker.timer = self._loops[-1].call_later(delay, functools.partial(self.press, worker, later))

    def forget(self, worker: WorkerHandle) -> None:
        """Make no further step."""
        timer, worker.timer = worker.timer, None
        if timer is not None:
            timer.cancel()

    def slept(self, worker: WorkerHandle, seconds: float) -> None:
        """The next step comes later by that."""
        timer = worker.timer
        if timer is not None and timer.callback is not None:
            worker.timer = self._loops[-1].call_later(timer.when + seconds - time.monotonic(), timer.callback)
            timer.cancel()
