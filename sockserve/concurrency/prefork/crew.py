"""What the parts of a supervisor share: its workers, and the loops that host it."""

from __future__ import annotations

import functools
from collections.abc import Callable

from sockserve.concurrency.prefork.service import Service, Settings
from sockserve.concurrency.prefork.tally import Tally
from sockserve.concurrency.prefork.worker_handle import WorkerHandle
from sockserve.core.loop import Loop

__all__ = ["WATCH_AGAIN", "Crew"]

WATCH_AGAIN = 0.25
"""Seconds until the next try to watch what the system had no room to watch: epoll_ctl(2), ENOSPC and ENOMEM."""


class Crew:
    """A supervisor's workers, and where its timers and watches belong. Used in the supervisor's thread alone.

    ``hear`` is called when a worker has told something.
    """

    def __init__(
        self, name: object, service: Service, settings: Settings, hear: Callable[[WorkerHandle], object]
    ) -> None:
        self.name = name
        """What stands at the beginning of each line of the log."""
        self.service = service
        self.settings = settings
        self.hear = hear
        self.tally = Tally()
        self.workers: dict[int, WorkerHandle] = {}
        """All that live, by their process ids."""
        self.loops: list[Loop] = []
        """Those that host the supervisor: a signal handler may run one more inside the wait of another."""

    @property
    def loop(self) -> Loop:
        """The innermost loop, which is the one that turns. IndexError without any."""
        return self.loops[-1]

    def abandon_loops(self) -> None:
        """In a worker: close its copies of the descriptors of all loops, and of what they host."""
        for loop in self.loops:
            loop.abandon()

    def watch(self, worker: WorkerHandle, loop: Loop) -> None:
        """Hear in this loop what a worker tells, and reap it when it has ended."""
        try:
            loop.watch(worker.control.fileno(), functools.partial(self.hear, worker))
            if worker.child.pidfd is not None:
                loop.watch(worker.child.pidfd, worker.child.reap)
        except OSError:
            # ENOSPC or ENOMEM of epoll_ctl(2): until there is room it is asked.
            self.unwatch(worker, loop)
            loop.call_later(WATCH_AGAIN, functools.partial(self._ask, worker, loop))

    def _ask(self, worker: WorkerHandle, loop: Loop) -> None:
        if loop in self.loops and worker.child.pid in self.workers and not worker.child.reap():
            self.hear(worker)
            self.watch(worker, loop)

    def unwatch(self, worker: WorkerHandle, *loops: Loop) -> None:
        """Watch a worker no more in these loops, or if none is named in all."""
        for loop in loops or self.loops:
            loop.unwatch(worker.control.fileno())
            if worker.child.pidfd is not None:
                loop.unwatch(worker.child.pidfd)
