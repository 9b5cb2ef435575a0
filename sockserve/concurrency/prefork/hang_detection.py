"""Finds workers that hang, and wakes no process for it while nothing happens.

Rule 1. A worker whose heartbeat is older than ``worker_timeout`` hangs, unless it announced sleep.
Rule 2. While a worker sleeps, the listeners are watched here too: if a client waits there, the workers that sleep are
woken.
Rule 3. From the moment when a worker was told something that wakes it, Rule 1 is about it again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from sockserve.concurrency.prefork.crew import WATCH_AGAIN, Crew
from sockserve.concurrency.prefork.protocol import ASLEEP, AWAKE, BEAT, LOOK, PASSES
from sockserve.concurrency.prefork.worker_handle import KILL, WorkerHandle
from sockserve.core.loop import INPUT, Loop, Timer
from sockserve.log import Lines, log
from sockserve.net.accept_errors import is_shortage

__all__ = ["HangDetector"]

GRACE = 0.05
"""Seconds that a look for hung workers comes after the first of them could hang, so that it finds it."""

STEP_TIME = 0.4
"""Seconds for a worker whose loop stands still, to go on after its request was ended, and then to tell the stacks of
its threads: if either works at all it takes milliseconds, or what the handler does when its client has gone."""


class HangDetector:
    """Looks after the workers of a supervisor, in its loop.

    From any thread: ``leave_ports()``. In the supervisor's thread: all else.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._loop: Loop | None = None
        self._next_look: Timer | None = None
        self._ports: list[int] = []
        self._is_look_due = False

    def look(self, loop: Loop) -> None:
        """Look for those that hang, and decide what the next look waits for."""
        self.rest()
        self._is_look_due = False
        timeout = self._crew.settings.worker_timeout
        if timeout is None:
            return
        self._loop = loop
        next_look = None
        a_worker_sleeps = False
        for worker in list(self._crew.workers.values()):
            if worker.has_stopped or worker.is_hung:
                continue
            silence = worker.page.silence()
            if silence is None:
                a_worker_sleeps = a_worker_sleeps or not worker.is_leaving
            elif silence > timeout:
                self._hangs(loop, worker)
            elif next_look is None or timeout - silence < next_look:
                next_look = timeout - silence
        if a_worker_sleeps and not self._watch_ports(loop):
            next_look = WATCH_AGAIN if next_look is None else min(next_look, WATCH_AGAIN)
        if next_look is not None:
            self._next_look = loop.call_later(next_look + GRACE, functools.partial(self.look, loop))

    def expect_awake(self, worker: WorkerHandle) -> None:
        """It was told something that makes its loop turn: the next wait is about that."""
        if worker.page.is_asleep():
            worker.page.beat()
            self._is_look_due = True

    def before_wait(self, loop: Loop) -> None:
        """See to it that the wait ends in time."""
        if self._is_look_due:
            self.look(loop)

    def rest(self) -> None:
        """Look no more."""
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        self.leave_ports()

    def leave_ports(self) -> None:
        """Before a listener is closed: the workers' copies keep it alive in an epoll(7)."""
        ports, self._ports = self._ports, []
        for port in ports:
            if self._loop is not None:
                self._loop.unwatch(port)

    def hear(self, worker: WorkerHandle, told: bytes, loop: Loop) -> None:
        """A worker told something."""
        if ASLEEP[0] in told or AWAKE[0] in told:
            self.look(loop)
        if PASSES[0] in told:
            self.let_others_look(worker)

    def let_others_look(self, worker: WorkerHandle) -> None:
        """One accepts no more, or cannot for some time: see whether a client waits that it was woken for."""
        # For one connection one worker is woken (EPOLLEXCLUSIVE): this one may have been, and have taken it no more.
        for other in self._crew.workers.values():
            if other is not worker and not other.has_stopped:
                other.tell(LOOK)

    def _watch_ports(self, loop: Loop) -> bool:
        """False: the system has no room for that, and those that sleep are trusted until the next look."""
        try:
            for port in self._crew.service.ports():
                if port >= 0:
                    loop.arm(port, lambda _: self._a_client_waits(loop), INPUT)
                    self._ports.append(port)
        except OSError as error:
            self.leave_ports()
            if not is_shortage(error):
                raise
            log.debug("%s: a look for workers that hang in their sleep has to wait: %s", self._crew.name, error)
            return False
        return True

    def _a_client_waits(self, loop: Loop) -> None:
        for worker in self._crew.workers.values():
            if worker.page.is_asleep():
                worker.page.beat()
                worker.tell(LOOK)
        self.look(loop)

    def slept(self) -> None:
        """The supervisor did not run, and what runs beside it may not have either: each has the whole time again."""
        for worker in self._crew.workers.values():
            if not worker.page.is_asleep():
                worker.page.beat()
        self._is_look_due = True

    def is_looking(self) -> bool:
        """Whether any worker has to turn within ``worker_timeout``."""
        return self._next_look is not None or any(worker.is_hung for worker in self._crew.workers.values())

    def _hangs(self, loop: Loop, worker: WorkerHandle) -> None:
        worker.is_hung = True
        beat = worker.page.numbers[BEAT]
        steps: list[Callable[[], object]] = [
            # What keeps it may be a client; of a request that it serves inline the input ends, then the connection.
            functools.partial(worker.free, beat),
            functools.partial(worker.free, beat),
            worker.ask_for_stacks,
            functools.partial(self._kill, worker),
        ]
        self._go_on(loop, worker, beat, steps)

    def _go_on(self, loop: Loop, worker: WorkerHandle, beat: int, steps: list[Callable[[], object]]) -> None:
        if worker.child.pid not in self._crew.workers:
            return
        self._crew.hear(worker)
        if worker.page.is_asleep() or worker.page.numbers[BEAT] != beat:
            worker.is_hung = False
            worker.take_text()
            log.info("%s: %s turns again", self._crew.name, worker)
            self.look(loop)
            return
        if _is_traced(worker.child.pid):
            # A debugger holds it.
            worker.is_hung = False
            worker.page.beat()
            self.look(loop)
            return
        step, *later = steps
        step()
        if later:
            loop.call_later(STEP_TIME, functools.partial(self._go_on, loop, worker, beat, later))

    def _kill(self, worker: WorkerHandle) -> None:
        self._crew.tally.hangs += 1
        stacks = worker.take_text() or "It could not tell its stacks."
        text = "%s: %s hangs: its loop has not turned for %.1f seconds; it is killed\n%s"
        log.error(text, self._crew.name, worker, worker.page.silence() or 0.0, Lines(stacks))
        worker.tell(KILL)


def _is_traced(pid: int) -> bool:
    # As proc(5) has it; without a /proc nothing is known.
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            return any(line.startswith("TracerPid:") and line.split()[1] != "0" for line in status)
    except OSError:
        return False
