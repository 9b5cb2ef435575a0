"""Keeps worker processes: starts them, replaces them, ends them.

Rule 1. It sleeps until a worker ends or tells something, a timer is due, or it is told something.
Rule 2. Whoever tells it something, in any thread or signal handler, leaves it in a queue and wakes its loop. What is
told before the loop turns is heard in its first turn, and what is told too late by whoever hosts it next.
Rule 3. Nobody is told to leave before his successor is ready: what cannot start does not replace what serves.
Rule 4. A worker that is to end is told so in steps, of which the last is SIGKILL.
"""

from __future__ import annotations

import collections
import functools
import os
import signal
import threading
from collections.abc import Callable, Sequence

from sockserve.concurrency.child_process import POLL_WITHOUT_PIDFD
from sockserve.concurrency.prefork.ending import Ending
from sockserve.concurrency.prefork.hang_detection import WATCH_AGAIN, Pulse
from sockserve.concurrency.prefork.pauses import Pauses
from sockserve.concurrency.prefork.places import SETTLED, Places
from sockserve.concurrency.prefork.protocol import (
    ACTIVE,
    CUTS,
    ENOUGH,
    LEAVE,
    READY,
    STOPPED,
    Orders,
    choose_dump_signal,
    with_jitter,
)
from sockserve.concurrency.prefork.service import Service, Settings, cpu_count
from sockserve.concurrency.prefork.storms import Storms
from sockserve.concurrency.prefork.time_asleep import TimeAsleep
from sockserve.concurrency.prefork.worker_handle import Step, WorkerHandle, cut_now, drain_within, retire_within
from sockserve.core.deferral import Deferral
from sockserve.core.events import Counters
from sockserve.core.frugal_loop import host_somehow
from sockserve.core.loop import Loop
from sockserve.core.one_shot import OneShot
from sockserve.errors import CrashLoopError
from sockserve.log import counted, log

__all__ = ["Supervisor"]


class Supervisor:
    """Keeps as many workers as there shall be, as a source of the loop that runs it."""

    max_wait: float | None = None

    def __init__(self, name: object, service: Service, settings: Settings) -> None:
        self.pid = os.getpid()
        self.workers: dict[int, WorkerHandle] = {}
        """All that live, by their process ids."""
        self.pauses = Pauses(self.workers)
        self.counters = Counters()
        """What those have counted that have ended."""
        self._name = name
        self._service = service
        self._settings = settings
        self._loops: list[Loop] = []
        self._places = Places()
        self._storms = Storms(name, self._loops)
        self._pulse = Pulse(name, service, settings, self.workers, self._hear)
        self._ending = Ending(name, self._loops, self._pulse)
        self._escalate = self._ending.press
        self._time_asleep = TimeAsleep(self._slept)
        self._cut = 0
        self._told: collections.deque[Callable[[], object]] = collections.deque()
        self._waiting: list[OneShot] = []
        # Who ends the workers without a loop that runs: one at a time, and again within that a signal handler.
        self._ends = threading.RLock()
        self._begin()

    def _begin(self) -> None:
        self._wanted = self._settings.processes or cpu_count()
        self._is_to_drain = self._has_drained = False
        self._is_to_stop: Callable[[], bool] = bool
        self._is_suspended: Callable[[], bool] = bool
        self._is_stopping = self._is_ending = self._stays_empty = self._until_empty = False
        self._asked_steps: Sequence[Step] | None = None
        self._error: CrashLoopError | None = None
        self._places.failures = 0

    # what it is told, from any thread and in signal handlers

    def roll(self) -> None:
        """Replace each worker by one that loads its program anew, one after the other."""
        self._tell(self._roll)

    def more(self) -> None:
        """Keep one worker more."""
        self._tell(self._more)

    def fewer(self) -> None:
        """Keep one worker less, but always one."""
        self._tell(self._fewer)

    def stop(self) -> None:
        """Drain the workers and end; asked once more, cut them. Asked twice in one turn is asked once."""
        self._tell(self._stop)

    def drain(self, timeout: float | None, run_ends: OneShot | None) -> tuple[int, int]:
        """Drain the workers, and stay without any until not suspended; say how many requests finished, were cut.

        ``run_ends``: of the ``run()`` in another thread, which does it; None: it is done here and now.
        """
        active, cut_before = self.active(), self._cut
        steps = drain_within(timeout)
        is_empty = OneShot()
        if run_ends is not None:
            self._tell(lambda: self._drain(steps, is_empty))
            is_over = OneShot()
            is_empty.then(is_over.set)
            run_ends.then(is_over.set)
            is_over.wait()
        if not is_empty.is_set():
            self._stays_empty = True
            self.end(steps)
        cut = self._cut - cut_before
        return max(0, active - cut), cut

    def active(self) -> int:
        """How many requests the workers have in progress."""
        return sum(worker.page.numbers[ACTIVE] for worker in list(self.workers.values()))

    def is_idle(self) -> bool:
        """Whether no worker that lives has a request in progress."""
        return not any(worker.page.numbers[ACTIVE] and not worker.has_ended() for worker in list(self.workers.values()))

    def _tell(self, verb: Callable[[], object]) -> None:
        self._told.append(verb)
        for loop in self._loops:
            loop.wake()

    def leave_ports(self) -> None:
        """Listeners are about to be closed in this process. From any thread."""
        self._pulse.leave_ports()

    # running

    def run(self, loop: Loop, is_to_stop: Callable[[], bool], is_suspended: Callable[[], bool]) -> None:
        """Keep workers until ``is_to_stop()``, which is asked in each turn; then no worker accepts any more.

        They pause while ``is_suspended()``. Those that still serve go on: ``end()`` waits for them. After ``stop()``
        this waits itself until all have ended. Raises CrashLoopError.
        """
        self._begin()
        self._is_to_stop, self._is_suspended = is_to_stop, is_suspended
        if any(worker.is_ready and not worker.is_leaving for worker in self.workers.values()):
            # Of a run that an exception ended.
            self._service.serves()
        self._host(loop)
        if self._error is not None:
            raise self._error

    def end(self, steps: Sequence[Step]) -> None:
        """Tell all workers to end, in these steps, and wait until they have. What ends the wait kills them."""
        if self.pid != os.getpid():
            return
        with self._ends:
            if not self.workers:
                return
            self._asked_steps = steps
            try:
                host_somehow(functools.partial(self._host, until_empty=True))
            except BaseException:
                self._is_ending = True
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
            self._loops.append(loop)
            is_outer, self._until_empty = self._until_empty, until_empty
            try:
                self._begin_to_host(loop)
                loop.run()
            finally:
                self._pulse.rest()
                for worker in self.workers.values():
                    self._unwatch(worker, loop)
                loop.remove(self)
                self._loops.remove(loop)
                self._until_empty = is_outer
                self._storms.rest()
                if self._loops:
                    self._pulse.look(self._loops[-1])

    def _begin_to_host(self, loop: Loop) -> None:
        loop.add(self)
        for worker in self.workers.values():
            self._watch(worker, loop)
            # Timers of another loop are gone.
            worker.is_hung = False
            if worker.is_ready and not worker.is_settled:
                loop.call_later(SETTLED, functools.partial(self._has_settled, worker))
            if worker.is_leaving and self._asked_steps is None:
                self._escalate(worker, retire_within(self._settings.drain_timeout))
        self._pulse.look(loop)

    def before_wait(self) -> None:
        """Do what was asked for since."""
        while self._told:
            self._told.popleft()()
        if self._is_to_drain:
            self._asked_steps = cut_now() if self._has_drained else drain_within(self._settings.drain_timeout)
            self._is_to_drain, self._has_drained = False, True
            self._stays_empty = False
            self.leave_ports()
            self._service.close_ports()
        steps, self._asked_steps = self._asked_steps, None
        if steps is not None:
            self._end_all(steps)
        if self.pauses.tell(self._is_suspended):
            for worker in self.workers.values():
                self._pulse.expect_awake(worker)
        if not self._is_ending and self._is_to_stop():
            self._stop_all()
        if self._is_ending and self._stays_empty and not self._is_suspended():
            self._is_ending = self._stays_empty = False
        if self._is_ending:
            if not self.workers:
                self._have_ended()
        elif self._is_stopping:
            if all(worker.has_stopped for worker in self.workers.values()):
                self.leave()
        else:
            self._fill()
        self._pulse.before_wait(self._loops[-1])
        without_pidfd = any(worker.child.pidfd is None for worker in self.workers.values())
        times = [worker.step_time for worker in self.workers.values() if worker.timer is not None]
        if self._pulse.is_looking():
            times.append(self._settings.worker_timeout or 0.0)
        tick = self._time_asleep.before_wait(self._loops[-1], min(times, default=None))
        self.max_wait = POLL_WITHOUT_PIDFD if without_pidfd else tick

    def _slept(self, seconds: float) -> None:
        log.debug("%s: the supervisor itself did not run for %.1f seconds", self._name, seconds)
        self._pulse.slept()
        for worker in self.workers.values():
            self._ending.slept(worker, seconds)

    def _roll(self) -> None:
        self._places.generation += 1

    def _more(self) -> None:
        self._wanted += 1

    def _fewer(self) -> None:
        self._wanted = max(1, self._wanted - 1)

    def _stop(self) -> None:
        self._is_to_drain = True

    def _drain(self, steps: Sequence[Step], is_empty: OneShot) -> None:
        self._stays_empty = True
        self._asked_steps = steps
        self._waiting.append(is_empty)

    def after_turn(self) -> None:
        """Reap what no descriptor announces."""
        for worker in list(self.workers.values()):
            if worker.child.pidfd is None:
                worker.child.reap()

    def leave(self) -> None:
        """Let the loop end."""
        self._loops[-1].remove(self)

    def abandon(self) -> None:
        """Close this process's copies of the descriptors."""
        for worker in self.workers.values():
            worker.abandon()

    def _end_all(self, steps: Sequence[Step]) -> None:
        self._is_ending = True
        for worker in self.workers.values():
            self._escalate(worker, steps)

    def _stop_all(self) -> None:
        if not self._is_stopping:
            self._is_stopping = True
            for worker in self.workers.values():
                if not worker.is_leaving:
                    # One that is only about to begin could take its time until it hears anything.
                    worker.has_stopped = worker.page.call_off()
                    self._escalate(worker, [(LEAVE, None)])

    def _have_ended(self) -> None:
        while self._waiting:
            self._waiting.pop().set()
        if self._until_empty or not self._stays_empty or self._is_to_stop():
            self.leave()

    # having workers

    def _fill(self) -> None:
        places = self._places
        for place in [place for place in (*places.holders, *places.starting) if place >= self._wanted]:
            for worker in places.give_up(place):
                self._escalate(worker, retire_within(self._settings.drain_timeout))
            self.leave_ports()
            self._service.close_place(place)
        for place in places.next_to_start(self._wanted, self._storms.held):
            if None not in self._storms.held and not self._is_ending:
                self._start(place)

    def _start(self, place: int) -> None:
        settings, places = self._settings, self._places
        limit = with_jitter(settings.max_requests, settings.max_requests_jitter)
        orders = Orders(place, places.generation > 0, settings.worker_timeout, limit, choose_dump_signal())
        try:
            self._service.open_place(place)
            worker = WorkerHandle(orders, places.generation, places.attempt, self.pauses.number)
            worker.start(self._service.work, self._abandon_in_child, self._has_begun, self._ended)
        except (OSError, MemoryError) as error:
            self._failed(places.attempt, place, f"worker {place} cannot be made: {error}", was_ready=False)
        else:
            self._pulse.look(self._loops[-1])

    def _has_begun(self, worker: WorkerHandle) -> None:
        self.workers[worker.child.pid] = self._places.starting[worker.place] = worker
        self._watch(worker, self._loops[-1])

    def _abandon_in_child(self) -> None:
        for loop in self._loops:
            loop.abandon()

    def _watch(self, worker: WorkerHandle, loop: Loop) -> None:
        try:
            loop.watch(worker.control.fileno(), functools.partial(self._hear, worker))
            if worker.child.pidfd is not None:
                loop.watch(worker.child.pidfd, worker.child.reap)
        except OSError:
            # ENOSPC or ENOMEM of epoll_ctl(2): until there is room it is asked.
            self._unwatch(worker, loop)
            loop.call_later(WATCH_AGAIN, functools.partial(self._ask, worker, loop))

    def _ask(self, worker: WorkerHandle, loop: Loop) -> None:
        if loop in self._loops and worker.child.pid in self.workers and not worker.child.reap():
            self._hear(worker)
            self._watch(worker, loop)

    def _unwatch(self, worker: WorkerHandle, *loops: Loop) -> None:
        for loop in loops or self._loops:
            loop.unwatch(worker.control.fileno())
            if worker.child.pidfd is not None:
                loop.unwatch(worker.child.pidfd)

    # what they tell

    def _hear(self, worker: WorkerHandle) -> None:
        told, may_tell_more = worker.hear()
        if not may_tell_more:
            for loop in self._loops:
                loop.unwatch(worker.control.fileno())
        if READY[0] in told:
            self._is_ready(worker)
        if ENOUGH[0] in told:
            worker.wants_out = True
        if self._loops:
            self._pulse.hear(worker, told, self._loops[-1])
        if STOPPED[0] in told:
            worker.has_stopped = True
            self._pulse.let_others_look(worker)
            if not worker.is_leaving:
                # By SIGTERM, or by itself. What counts is this moment: its requests may take their time to end.
                self._places.forget(worker)
                self._escalate(worker, retire_within(self._settings.drain_timeout))
                if not worker.is_settled:
                    self._storms.ended_early(worker, f"{worker} stopped by itself")

    def _is_ready(self, worker: WorkerHandle) -> None:
        worker.is_ready = True
        is_taken, before = self._places.take(worker)
        if is_taken and self._loops:
            log.info("%s: %s is ready", self._name, worker)
            self._loops[-1].call_later(SETTLED, functools.partial(self._has_settled, worker))
            if before is not None:
                if before.wants_out and not before.is_settled:
                    self._storms.ended_early(before, f"{before} has served its number of requests")
                self._escalate(before, retire_within(self._settings.drain_timeout))
            is_to_stop = self._is_ending or self._is_stopping or self._stop in self._told
            if not is_to_stop:
                self._service.serves()

    def _has_settled(self, worker: WorkerHandle) -> None:
        if worker.child.pid in self.workers and not worker.is_leaving:
            worker.is_settled = True
            self._places.failures = 0
            self._storms.settled(worker)

    # how they end

    def _ended(self, worker: WorkerHandle, status: int) -> None:
        self._hear(worker)
        self._unwatch(worker)
        self._ending.forget(worker)
        del self.workers[worker.child.pid]
        active = worker.page.numbers[ACTIVE]
        self._cut += max(worker.page.numbers[CUTS], active)
        worker.page.add_to(self.counters)
        how = worker.how_it_ended(status) + (f", with {counted(active, 'request')} in progress" if active else "")
        worker.close()
        self._pulse.let_others_look(worker)
        self._places.forget(worker)
        was_killed = status == -signal.SIGKILL and not worker.is_hung
        if worker.is_leaving or self._is_ending:
            log.info("%s: %s", self._name, how)
        elif not worker.is_ready and not was_killed:
            self._failed(worker.attempt, worker.place, f"{how}, before it was ready", was_ready=False)
        else:
            how += "" if worker.is_ready else ", before it was ready"
            log.warning("%s: %s; another one takes its place", self._name, how)
            if was_killed and not worker.is_settled:
                # From outside, or by the kernel for want of memory: no reason to give up.
                self._storms.ended_early(worker, str(worker))
            elif not worker.is_settled:
                self._failed(worker.attempt, worker.place, how, was_ready=True)

    def _failed(self, attempt: int, place: int, how: str, *, was_ready: bool) -> None:
        places = self._places
        if places.rolls_in_vain(place):
            how = f"the rolling restart is given up, and the old workers go on: {how}"
        if place not in places.holders:
            self._service.place_is_empty(place, bool(places.holders))
        log.error("%s: %s", self._name, how)
        delay = places.failed(attempt, was_ready=was_ready)
        if places.is_hopeless():
            failed = f"{places.failures} times in a row workers ended as soon as they began"
            self._error = CrashLoopError(f"{self._name}: {failed}; the last: {how}")
            self._stays_empty = False
            self._end_all(drain_within(self._settings.drain_timeout))
        elif delay is not None:
            self._storms.hold(None, delay)
