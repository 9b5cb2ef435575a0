"""Keeps worker processes: starts them, replaces them, ends them.

Rule 1. It sleeps until a worker ends or tells something, a timer is due, or it is told something.
Rule 2. What it is told, in any thread or signal handler, is left in a queue, and its loop is woken. What is told before
the loop turns is heard in its first turn, and what is told too late by the next loop that hosts it.
Rule 3. No worker is told to leave before its successor is ready: what cannot start does not replace what serves.
Rule 4. A worker that is to end is told so in steps, of which the last is SIGKILL.
"""

from __future__ import annotations

import collections
import functools
import os
import threading
from collections.abc import Callable, Sequence

from sockserve.concurrency.children import POLL_WITHOUT_PIDFD
from sockserve.concurrency.cpus import cpu_count
from sockserve.concurrency.prefork.crew import Crew
from sockserve.concurrency.prefork.ending import Ending
from sockserve.concurrency.prefork.hang_detection import HangDetector
from sockserve.concurrency.prefork.outcomes import Outcome, Stage, outcome_of
from sockserve.concurrency.prefork.pauses import Pauses
from sockserve.concurrency.prefork.phases import DRAIN, END, GIVE_UP, RESUME, SHUTDOWN, Phase, Run
from sockserve.concurrency.prefork.places import SETTLED, Places
from sockserve.concurrency.prefork.protocol import (
    ACTIVE,
    ENOUGH,
    LAME,
    LEAVE,
    READY,
    STOPPED,
    Orders,
    choose_dump_signal,
    with_jitter,
)
from sockserve.concurrency.prefork.service import Service, Settings
from sockserve.concurrency.prefork.stacks import ask_for_stacks
from sockserve.concurrency.prefork.storms import Storms
from sockserve.concurrency.prefork.tally import Figures
from sockserve.concurrency.prefork.worker_handle import Step, WorkerHandle, drain_within, retire_within
from sockserve.core.deferral import Deferral
from sockserve.core.events import Counters
from sockserve.core.frugal_loop import host_somehow
from sockserve.core.loop import Loop, Source
from sockserve.core.one_shot import OneShot
from sockserve.errors import CrashLoopError
from sockserve.log import counted, log

__all__ = ["Supervisor"]


class Supervisor(Source):
    """Keeps as many workers as there shall be, as a source of the loop that runs it.

    From any thread, and in signal handlers: ``roll()``, ``more()``, ``fewer()``, ``be_lame()``, ``stop()``,
    ``tell_stacks()``, ``leave_ports()``, ``active()``, ``is_idle()``. From any thread: ``drain()``. In the thread that
    runs the supervisor, or while none does: ``run()``, ``end()``. The loop alone calls ``before_wait()``,
    ``after_turn()``, ``leave()``, ``abandon()``.
    """

    def __init__(self, name: object, service: Service, settings: Settings) -> None:
        self.pid = os.getpid()
        self.max_wait: float | None = None
        self._crew = crew = Crew(name, service, settings, self._hear)
        self.pauses = Pauses(crew.workers)
        self._places = Places()
        self._storms = Storms(crew)
        self._hang_detector = HangDetector(crew)
        self._ending = Ending(crew, self._hang_detector)
        self._told: collections.deque[Callable[[], object]] = collections.deque()
        # Held by what ends the workers without a loop that runs: one at a time, and again in a signal handler of it.
        self._ends = threading.RLock()
        self._run = Run(1)
        self._stood: tuple[Phase, bool] | None = None
        """What the service was told last of how this stands; None: it is to be told again."""

    @property
    def counters(self) -> Counters:
        """What those workers have counted that have ended."""
        return self._crew.tally.counters

    def figures(self) -> Figures:
        """What it has counted, with what its workers have. In the thread that runs it."""
        return self._crew.tally.figures(self.workers.values())

    @property
    def workers(self) -> dict[int, WorkerHandle]:
        """All that live, by their process ids."""
        return self._crew.workers

    # what it is told, from any thread and in signal handlers

    def roll(self) -> None:
        """Replace each worker by one that loads its program anew, one after the other."""
        self._tell(self._roll)

    def more(self) -> None:
        """Keep one worker more."""
        self._tell(lambda: self._run.want(1))

    def fewer(self) -> None:
        """Keep one worker less, but always one."""
        self._tell(lambda: self._run.want(-1))

    def stop(self) -> None:
        """Drain the workers and end; asked once more, cut them. Asked twice in one turn is asked once."""
        self._tell(self._stop)

    def be_lame(self, seconds: float | None) -> None:
        """As ``stop()``, in so many seconds (None: not by itself), or by the next ``stop()``; say so to the workers."""
        self._tell(lambda: self._be_lame(seconds))

    def tell_stacks(self, tell: Callable[[str], object] | None = None) -> None:
        """Tell the stacks of all threads of all workers, half a second later, in the loop; None: log them."""
        self._tell(lambda: ask_for_stacks(self._crew, tell))

    def empty(self, then: Callable[[], object]) -> None:
        """Drain the workers, stay without any until not suspended, and call back in the loop when the last has gone."""
        is_empty = OneShot()
        is_empty.then(then)
        self._tell(lambda: self._drain(drain_within(self._crew.settings.drain_timeout), is_empty))

    def drain(self, timeout: float | None, run_ends: OneShot | None) -> tuple[int, int]:
        """Drain the workers, and stay without any until not suspended; say how many requests finished, were cut.

        ``run_ends``: of the ``run()`` in another thread, which does it; None: it is done here and now.
        """
        active, cut_before = self.active(), self._ending.cut
        steps = drain_within(timeout)
        is_empty = OneShot()
        if run_ends is not None:
            self._tell(lambda: self._drain(steps, is_empty))
            is_over = OneShot()
            is_empty.then(is_over.set)
            run_ends.then(is_over.set)
            is_over.wait()
        if not is_empty.is_set():
            self._run.change(DRAIN)
            self.end(steps)
        cut = self._ending.cut - cut_before
        return max(0, active - cut), cut

    def active(self) -> int:
        """How many requests the workers have in progress."""
        return sum(worker.page.numbers[ACTIVE] for worker in list(self.workers.values()))

    def is_idle(self) -> bool:
        """Whether no worker that lives has a request in progress."""
        return not any(worker.page.numbers[ACTIVE] and not worker.has_ended() for worker in list(self.workers.values()))

    def _tell(self, verb: Callable[[], object]) -> None:
        self._told.append(verb)
        for loop in self._crew.loops:
            loop.wake()

    def leave_ports(self) -> None:
        """Listeners are about to be closed in this process. From any thread."""
        self._hang_detector.leave_ports()

    # running

    def run(self, loop: Loop, is_to_stop: Callable[[], bool], is_suspended: Callable[[], bool]) -> None:
        """Keep workers until ``is_to_stop()``, which is asked in each turn; then no worker accepts any more.

        They pause while ``is_suspended()``. Those that still serve go on: ``end()`` waits for them. After ``stop()``
        this waits itself until all have ended. Raises CrashLoopError.
        """
        self._run, self._stood = Run(self._crew.settings.processes or cpu_count(), is_to_stop, is_suspended), None
        self._places.failures = 0
        if any(worker.is_ready and not worker.is_leaving for worker in self.workers.values()):
            # Of a run that an exception ended.
            self._crew.service.serves()
        self._host(loop)
        if self._run.error is not None:
            raise self._run.error

    def end(self, steps: Sequence[Step]) -> None:
        """Tell all workers to end, in these steps, and wait until they have. What ends the wait kills them."""
        if self.pid != os.getpid():
            return
        with self._ends:
            if not self.workers:
                return
            self._run.end(END, steps)
            try:
                host_somehow(functools.partial(self._host, until_empty=True))
            except BaseException:
                with Deferral():
                    for worker in list(self.workers.values()):
                        worker.child.cut()
                        while worker.child.pid in self.workers and not worker.child.reap():
                            worker.has_ended(waits=True)
                raise

    def _host(self, loop: Loop, *, until_empty: bool = False) -> None:
        # What a turn does is whole for the next loop, whatever a signal handler raises: its time is the wait.
        with Deferral() as signals:
            loop.lift_waits(signals)
            self._crew.loops.append(loop)
            is_outer, self._run.until_empty = self._run.until_empty, until_empty
            try:
                self._begin_to_host(loop)
                # The loop may host others, which go on as long as this does.
                loop.run(self)
            finally:
                self._hang_detector.rest()
                for worker in self.workers.values():
                    self._crew.unwatch(worker, loop)
                loop.remove(self)
                self._crew.loops.remove(loop)
                self._run.until_empty = is_outer
                self._storms.rest()
                self._ending.rest()
                if self._crew.loops:
                    self._hang_detector.look(self._crew.loop)

    def _begin_to_host(self, loop: Loop) -> None:
        crew = self._crew
        loop.add(self)
        for worker in self.workers.values():
            crew.watch(worker, loop)
            # Timers of another loop are gone.
            worker.is_hung = False
            if worker.stage is Stage.READY:
                loop.call_later(SETTLED, functools.partial(self._has_settled, worker))
            if worker.is_leaving and self._run.steps is None:
                self._retire(worker)
        self._hang_detector.look(loop)

    def before_wait(self) -> None:
        """Do what was asked for since."""
        run, crew = self._run, self._crew
        self._do_what_was_told()
        steps, run.steps = run.steps, None
        if steps is not None:
            self._end_all(steps)
        if self.pauses.tell(run.is_suspended):
            for worker in self.workers.values():
                self._hang_detector.expect_awake(worker)
        if run.phase is Phase.EMPTIES and not run.is_suspended():
            run.change(RESUME)
        if run.phase is Phase.KEEPS and run.is_to_stop():
            run.change(SHUTDOWN)
            self._stop_all()
        if run.is_ending:
            if not self.workers and run.has_emptied():
                self.leave()
        elif run.phase is Phase.STOPS:
            if all(worker.has_stopped for worker in self.workers.values()):
                self.leave()
        else:
            self._fill()
        stands = run.phase, self._places.is_rolling()
        if stands != self._stood:
            self._stood = stands
            crew.service.stands(*stands, run.is_lame)
        self._hang_detector.before_wait(crew.loop)
        limit = self._ending.before_wait(crew.loop)
        without_pidfd = any(worker.child.pidfd is None for worker in self.workers.values())
        self.max_wait = POLL_WITHOUT_PIDFD if without_pidfd else limit

    def _do_what_was_told(self) -> None:
        is_to_stop = False
        while self._told:
            verb = self._told.popleft()
            if verb == self._stop:
                is_to_stop = True
            else:
                verb()
        if is_to_stop:
            self._stop()

    def _roll(self) -> None:
        self._places.generation += 1
        self._crew.tally.rolls += 1
        self._stood = None

    def _be_lame(self, seconds: float | None) -> None:
        self._run.is_lame, self._stood = True, None
        for worker in self.workers.values():
            worker.tell(LAME)
        if seconds is not None:
            self._crew.loop.call_later(seconds, lambda: None if self._run.is_ending else self._stop())

    def _stop(self) -> None:
        self._run.stop(self._crew.settings.drain_timeout)
        self.leave_ports()
        self._crew.service.close_ports()

    def _drain(self, steps: Sequence[Step], is_empty: OneShot) -> None:
        self._run.end(DRAIN, steps)
        self._run.waiting.append(is_empty)

    def after_turn(self) -> None:
        """Reap what no descriptor announces."""
        for worker in list(self.workers.values()):
            if worker.child.pidfd is None:
                worker.child.reap()

    def leave(self) -> None:
        """Let the loop end."""
        self._crew.loop.remove(self)

    def abandon(self) -> None:
        """In a forked process: close its copies of the descriptors."""
        for worker in self.workers.values():
            worker.abandon()

    def _retire(self, worker: WorkerHandle) -> None:
        self._ending.escalate(worker, retire_within(self._crew.settings.drain_timeout))

    def _end_all(self, steps: Sequence[Step]) -> None:
        for worker in self.workers.values():
            self._ending.escalate(worker, steps)

    def _stop_all(self) -> None:
        for worker in self.workers.values():
            if not worker.is_leaving:
                # One that is only about to begin could take its time until it hears anything.
                worker.has_stopped = worker.page.call_off()
                self._ending.escalate(worker, [(LEAVE, None)])

    # having workers

    def _fill(self) -> None:
        places, wanted = self._places, self._run.wanted
        for place in [place for place in (*places.holders, *places.starting) if place >= wanted]:
            for worker in places.give_up(place):
                self._retire(worker)
            self.leave_ports()
            self._crew.service.close_place(place)
        for place in places.next_to_start(wanted, self._storms.held):
            # What fails in this very turn may hold all places, or be the end.
            if None not in self._storms.held and self._run.phase is Phase.KEEPS:
                self._start(place)

    def _start(self, place: int) -> None:
        settings, places = self._crew.settings, self._places
        limit = with_jitter(settings.max_requests, settings.max_requests_jitter)
        orders = Orders(place, places.generation > 0, settings.worker_timeout, limit, choose_dump_signal())
        try:
            self._crew.service.open_place(place)
            worker = WorkerHandle(orders, places.generation, places.attempt, self.pauses.number)
            worker.start(self._crew.service.work, self._crew.abandon_loops, self._has_begun, self._ended)
        except (OSError, MemoryError) as error:
            self._failed(places.attempt, place, f"worker {place} cannot be made: {error}", was_ready=False)
        else:
            self._hang_detector.look(self._crew.loop)

    def _has_begun(self, worker: WorkerHandle) -> None:
        self._crew.tally.begun += 1
        self.workers[worker.child.pid] = self._places.starting[worker.place] = worker
        self._crew.watch(worker, self._crew.loop)
        if self._run.is_lame:
            worker.tell(LAME)

    # what they tell

    def _hear(self, worker: WorkerHandle) -> None:
        told, may_tell_more = worker.hear()
        loops = self._crew.loops
        if not may_tell_more:
            for loop in loops:
                loop.unwatch(worker.control.fileno())
        if READY[0] in told:
            self._is_ready(worker)
        if ENOUGH[0] in told:
            worker.wants_out = True
        if loops:
            self._hang_detector.hear(worker, told, loops[-1])
        if STOPPED[0] in told:
            worker.has_stopped = True
            self._hang_detector.let_others_look(worker)
            if not worker.is_leaving:
                # By SIGTERM, or by itself. What counts is this moment: its requests may take their time to end.
                self._places.forget(worker)
                self._retire(worker)
                if not worker.is_settled:
                    self._storms.ended_early(worker, f"{worker} stopped by itself")

    def _is_ready(self, worker: WorkerHandle) -> None:
        worker.stage = Stage.READY
        is_taken, before = self._places.take(worker)
        if is_taken and self._crew.loops:
            log.info("%s: %s is ready", self._crew.name, worker)
            self._crew.loop.call_later(SETTLED, functools.partial(self._has_settled, worker))
            if before is not None:
                if before.wants_out and not before.is_settled:
                    self._storms.ended_early(before, f"{before} has served its number of requests")
                self._retire(before)
            if self._run.phase is Phase.KEEPS and self._stop not in self._told:
                self._crew.service.serves()

    def _has_settled(self, worker: WorkerHandle) -> None:
        if worker.child.pid in self.workers and not worker.is_leaving:
            worker.stage = Stage.SETTLED
            self._places.failures = 0
            self._storms.settled(worker)

    # how they end

    def _ended(self, worker: WorkerHandle, status: int) -> None:
        self._hear(worker)
        self._crew.unwatch(worker)
        del self.workers[worker.child.pid]
        self._ending.has_ended(worker)
        active = worker.page.numbers[ACTIVE]
        how = worker.how_it_ended(status) + (f", with {counted(active, 'request')} in progress" if active else "")
        worker.close()
        self._hang_detector.let_others_look(worker)
        self._places.forget(worker)
        is_expected = worker.is_leaving or self._run.is_ending
        outcome = outcome_of(worker.stage, status, is_expected=is_expected, was_hung=worker.is_hung)
        self._crew.tally.has_ended(worker, outcome)
        if outcome is Outcome.EXPECTED:
            log.info("%s: %s", self._crew.name, how)
            return
        how += "" if worker.is_ready else ", before it was ready"
        if outcome is Outcome.NOT_STARTED:
            self._failed(worker.attempt, worker.place, how, was_ready=False)
        else:
            log.warning("%s: %s; another one takes its place", self._crew.name, how)
            if outcome is Outcome.EARLY:
                self._storms.ended_early(worker, str(worker))
            elif outcome is Outcome.SHORT_LIVED:
                self._failed(worker.attempt, worker.place, how, was_ready=True)

    def _failed(self, attempt: int, place: int, how: str, *, was_ready: bool) -> None:
        places, name = self._places, self._crew.name
        if places.rolls_in_vain(place):
            how = f"the rolling restart is given up, and the old workers go on: {how}"
        if place not in places.holders:
            self._crew.service.place_is_empty(place, bool(places.holders))
        log.error("%s: %s", name, how)
        delay = places.failed(attempt, was_ready=was_ready)
        if places.is_hopeless():
            failed = f"{places.failures} times in a row workers ended as soon as they began"
            self._run.error = CrashLoopError(f"{name}: {failed}; the last: {how}")
            self._run.change(GIVE_UP)
            self._end_all(drain_within(self._crew.settings.drain_timeout))
        elif delay is not None:
            self._storms.hold(None, delay)
