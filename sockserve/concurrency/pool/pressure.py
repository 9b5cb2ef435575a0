"""The watch over a pressed pool: looks, ticks, and workers that sit down and get up."""

from __future__ import annotations

import time

from sockserve.concurrency.cpus import cpu_count
from sockserve.concurrency.pool.balance import BUSY, TICK, Balance, Look
from sockserve.concurrency.pool.workers import Pool, PoolThread
from sockserve.core.loop import Loop, Timer

__all__ = ["Pressure"]

EVENTS = 16
"""Events that a worker takes at once if it is the only one: enough to make the wait's cost vanish."""


LONG_TICK = 0.01
"""Seconds until the next look while all workers take requests."""

SAMPLES = 4
"""Workers at most whose state the kernel is asked for in one look."""


class Pressure:
    """Watches one pool. All methods are for the coordinator's thread."""

    def __init__(self, pool: Pool, loop: Loop) -> None:
        self._pool = pool
        self._loop = loop
        self._timer: Timer | None = None
        most = pool.settings.most
        self._balance = Balance(most, cpu_count())
        self._let_take(alone=most == 1)
        self._can_choose = most > 1 and pool.poller.can_hold
        if not self._can_choose:
            # There is nothing to choose: no worker need say that it is.
            pool.is_pressed = True
        else:
            pool.events_at_once = 2
        self._time = self._computed = 0.0
        self._before: dict[int, tuple[int, float]] = {}
        """For each worker at the last look: requests served, seconds waited for events."""

    def begin(self) -> None:
        """Watch from now on, as a worker has said that the pool is pressed. Idempotent."""
        if self._timer is None and self._can_choose:
            self._look()
            self._follow(len(self._pool.idle))

    def end(self) -> None:
        """Watch no more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        look, able = self._look()
        balance = self._balance
        if balance.judge(look):
            self._follow(able)
        else:
            self._timer = None
            self._let_take(alone=False)
            self._pool.bench.call_all()
            # Now, and not before: from here on a worker says it again.
            self._pool.is_pressed = False
            self._pool.events_at_once = 2

    def _follow(self, able: int) -> None:
        level = self._balance.level
        self._let_take(alone=level == 1)
        self._seat(able)
        # If none sits there is none to call, and no hurry.
        pause = LONG_TICK if level == self._balance.most else TICK
        self._timer = self._loop.call_later(pause, self._tick)

    def _look(self) -> tuple[Look, int]:
        """What has happened since the last look, and how many workers stand that are not held up."""
        now, computed = time.monotonic(), time.process_time()
        elapsed, used = max(now - self._time, TICK / 100), computed - self._computed
        moved = waiting = able = 0
        waited = 0.0
        standing: list[PoolThread] = []
        before, self._before = self._before, {}
        seated = set(self._pool.bench.seated)
        for key, worker in self._pool.workers.copy().items():
            served, waited_now = self._before[key] = worker.served, worker.waited
            served_before, waited_before = before.get(key, (served, waited_now))
            moved += served - served_before
            waited += waited_now - waited_before
            if worker.seat in seated:
                continue
            if worker.is_waiting:
                waiting += 1
            else:
                standing.append(worker)
                if served == served_before:
                    # A handler holds it up.
                    continue
            able += 1
        # As Balance asks: only then is it worth a look at the kernel's tables.
        looks_held_up = not waiting and (not moved or used + waited < BUSY * elapsed)
        is_starved = looks_held_up and used < elapsed / 2 and any(map(_is_ready, standing[:SAMPLES]))
        self._time, self._computed = now, computed
        return Look(elapsed, used, waited, moved, waiting, is_starved), able

    def _let_take(self, *, alone: bool) -> None:
        pool = self._pool
        pool.parking.holds = alone and pool.poller.can_hold
        pool.events_at_once = EVENTS if alone and pool.poller.can_hold else 1

    def _seat(self, able: int) -> None:
        bench, level = self._pool.bench, self._balance.level
        if level >= self._balance.most:
            bench.call_all()
            return
        # Not those that a handler holds up: they are asked when they are done, if they are too many then.
        surplus = able - len(bench.asked) - level
        if surplus > 0:
            bench.ask(surplus)
        elif surplus < 0:
            bench.call(-surplus)


def _is_ready(worker: PoolThread) -> bool:
    """Whether a worker has a processor or waits for one, and not for anything else; Linux, proc(5).

    Where this process gets less time than it wants, as others have the processors, nothing moves although no handler
    waits. False as well if the kernel does not tell.
    """
    try:
        with open(f"/proc/self/task/{worker.thread.native_id}/stat", "rb", buffering=0) as file:
            # After the thread's name, which may have any characters, in parentheses.
            return file.read(512).rpartition(b")")[2][1:2] == b"R"
    except OSError:
        # Ended, no descriptor left, or another system.
        return False
