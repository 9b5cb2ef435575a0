"""The threads of a pool: each takes what is ready and serves it itself, until the pool ends.

Rule 1. There is always a thread that waits, unless ``max_workers`` of them are busy: the one that takes the last idle
place asks for another thread, and the one that would be the last to wait does not retire.
Rule 2. A worker that dies of an exception is reported and replaced, so that nothing of it reaches the next request.
Rule 3. After ``stop()`` nothing is taken any more; what is being served is served to its end.
"""

from __future__ import annotations

import collections
import contextvars
import itertools
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from sockserve.concurrency.pool.bench import Bench, Seat
from sockserve.concurrency.pool.parking import Parking
from sockserve.concurrency.pool.poller import INPUT, SharedPoller
from sockserve.concurrency.threads import WorkerThreads
from sockserve.core.forked import tell_when_forked
from sockserve.log import log

__all__ = ["Pool", "PoolSettings", "PoolThread"]


class PoolSettings(NamedTuple):
    """What a server says about its pool when its stay in a loop begins."""

    name: str
    fewest: int
    most: int
    idle_timeout: float
    """Seconds; -1: without limit."""
    make_thread: Callable[[Callable[[], object]], threading.Thread]
    block_on_close: bool


class Pool:
    """The threads that share one poller, for one stay of a server in a loop."""

    def __init__(
        self,
        settings: PoolSettings,
        poller: SharedPoller,
        threads: WorkerThreads,
        parking: Parking,
        wake: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.poller = poller
        self.parking = parking
        self.threads = threads
        self.wake = wake
        """Makes the coordinator tend the pool."""
        self.context = contextvars.copy_context()
        self.listener_fd = -1
        self.stopping = False
        self.tells_when_done = False
        """Whether the coordinator wants to hear when a worker is done with taking."""
        self.wants_worker = False
        self.stillborn = 0
        """How many workers have died before they served anything, since the coordinator looked."""
        self.is_full = False
        """Whether all workers were busy when the coordinator last heard of it."""
        self.is_pressed = False
        """Whether there was more than one thing to do at once; the coordinator, which watches then, ends that."""
        # A list of tokens, because pop() and append() are atomic with and without the GIL.
        self.idle: list[None] = []
        """As many as there are workers that wait for events, or are on the bench."""
        self.bench = Bench()
        self.events_at_once = 1
        """Events that one wait may return."""
        self.ready: collections.deque[tuple[tuple[int, int], float]] = collections.deque()
        """Events that a worker was told of beside the one it acts on, each with the time at which its wait began."""
        self.workers: dict[int, PoolThread] = {}
        # Guards the number of workers, and the users of the poller, of which the last closes it. None: the coordinator.
        self._counting = threading.Lock()
        self._users: set[PoolThread | None] = {None}
        self._helpers: dict[Callable[[], object], threading.Thread] = {}
        self.is_lost = False
        """Whether its threads are in the parent of this process."""
        self.when_lost: Callable[[], object] | None = None
        tell_when_forked(self)

    def forked(self) -> None:
        """In a forked child, where at most one of its threads is: take nothing more, as the parent waits for it."""
        me = threading.get_ident()
        self.is_lost = self.stopping = True
        self.tells_when_done = False
        self._counting = threading.Lock()
        self._helpers.clear()
        self.ready.clear()
        self.bench = Bench()
        self.workers = {key: worker for key, worker in self.workers.items() if worker.thread.ident == me}
        self.parking.forked()
        self.poller.close()
        if self.when_lost is not None:
            self.when_lost()

    def begin(
        self,
        take: Callable[[], object],
        may_take: Callable[[], bool],
        make_counter: Callable[[], Callable[[], int] | None],
        batch: int,
        done_taking: Callable[[], None],
        *,
        found_nothing: Callable[[], None],
    ) -> None:
        """Say how a worker takes requests.

        ``take`` takes one from the listener and serves it, and returns True if there was one; ``may_take`` says whether
        it may; ``make_counter`` makes, for one worker, what says how many wait, if that can be told; ``batch`` is how
        many it takes at most before it looks what else is ready; ``done_taking`` is called then if ``tells_when_done``;
        ``found_nothing`` is called if there was not even one.
        """
        self.take = take
        self.may_take = may_take
        self.make_counter = make_counter
        self.batch = batch
        self.done_taking = done_taking
        self.found_nothing = found_nothing

    def start_worker(self) -> None:
        """Start one more. Raises RuntimeError if the system has no thread to give."""
        worker = PoolThread(self)
        # The program's own code; another thread may fork meanwhile, and forked() looks at the thread of each worker.
        worker.thread = self.settings.make_thread(worker.run)
        self.workers[id(worker)] = worker
        # Counted from now on, or the next to look would start another.
        self.idle.append(None)
        try:
            self._start(worker)
        except BaseException:
            if not _runs(worker.thread):
                self.idle.pop()
                self.workers.pop(id(worker), None)
            raise

    def _start(self, worker: PoolThread) -> None:
        thread = worker.thread
        try:
            self._users.add(worker)
            if self.settings.block_on_close:
                # Before it starts, or it could end without being known.
                self.threads.append(thread)
            thread.start()
        except BaseException:
            # What a signal handler raises may come when it runs already; then it lets go itself.
            if not _runs(thread):
                self.threads.remove(thread)
                self.let_go(worker)
            raise

    def start_helper(self, help_out: Callable[[], object]) -> None:
        """Start one that only ends some of the parked, if there is none for that. Raises RuntimeError as above."""
        helper = self._helpers.get(help_out)
        if helper is None or not helper.is_alive():
            worker = PoolThread(self)
            worker.thread = self.settings.make_thread(lambda: worker.help(help_out))
            self._start(worker)
            self._helpers[help_out] = worker.thread

    def needs_worker(self) -> bool:
        """Whether one more is to be started."""
        count = len(self.workers)
        # The poller does not tell of those in later, should the worker that put them there have died.
        is_short = not self.idle or bool(self.parking.later)
        return count < self.settings.fewest or (count < self.settings.most and is_short)

    def served(self) -> int:
        """A number that changes when a worker has become free."""
        return sum(worker.served for worker in self.workers.copy().values())

    def left(self, worker: PoolThread) -> None:
        """A worker's thread is about to end."""
        self.workers.pop(id(worker), None)
        self.let_go(worker)
        if self.tells_when_done:
            self.done_taking()
        self.threads.finished(worker.thread)

    def let_go(self, user: PoolThread | None = None) -> None:
        """One of its users needs the poller no longer; None: the coordinator."""
        with self._counting:
            self._users.discard(user)
            is_last = not self._users
        if is_last:
            self.poller.close()

    def may_retire(self, worker: PoolThread) -> bool:
        """Whether a worker that found nothing to do may go; then it counts no longer."""
        with self._counting:
            if len(self.workers) <= self.settings.fewest:
                return False
            self.idle.pop()
            if not self.idle:
                # No other waits.
                self.idle.append(None)
                return False
            self.workers.pop(id(worker), None)
            return True

    def is_taking(self, threads_that_serve: set[int | None]) -> bool:
        """Whether a worker may be just now taking a request that is not yet among those being served."""
        return any(
            worker.taking and worker.thread.ident not in threads_that_serve for worker in self.workers.copy().values()
        )

    def put_aside(self, events: list[tuple[int, int]], began: float) -> None:
        """Leave to any worker what one was told of in a wait that began then, beside the first."""
        self.ready.extend(zip(events[1:], itertools.repeat(began), strict=False))
        if not self.is_pressed:
            # A worker that waits for events would not look here by itself.
            self.poller.nudge()
            self.press()

    def press(self) -> None:
        """There is more than one thing to do at once: the coordinator is to watch."""
        if not self.is_pressed:
            self.is_pressed = True
            self.wake()

    def last_place_was_taken(self) -> None:
        """All workers are busy."""
        if len(self.workers) < self.settings.most:
            if not self.wants_worker:
                self.wants_worker = True
                self.wake()
        elif not self.is_full:
            self.is_full = True
            self.wake()

    def stop(self) -> None:
        """Take nothing more; the workers leave when they have nothing left to do. Idempotent, from any thread."""
        self.stopping = True
        self.bench.close()
        self.parking.close()
        self.poller.end()


def _runs(thread: threading.Thread) -> bool:
    """Whether a thread was started, though its ``start()`` may have been interrupted."""
    return thread.ident is not None or thread in threading.enumerate()


class PoolThread:
    """One thread of a pool."""

    thread: threading.Thread

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.taking = False
        """Whether it takes a request, or serves one that it took."""
        self.served = 0
        self.waited = 0.0
        """Seconds that it has waited for events."""
        self.is_waiting = False
        self.seat = Seat()

    def run(self) -> None:
        """Serve until the pool ends, or there is nothing to do for too long."""
        pool = self.pool
        has_retired = False
        try:
            has_retired = self._work()
            if not has_retired:
                pool.parking.end_all()
        except BaseException as error:
            # In a process that a handler forked it is the end of that process.
            if not (pool.is_lost and isinstance(error, SystemExit)):
                log.exception("%s: %s dies, another worker takes its place", pool.settings.name, self.thread.name)
            if pool.stopping and not pool.is_lost:
                # It may have been the last that would.
                pool.parking.end_all()
        finally:
            if not has_retired:
                pool.idle.pop()
                if not self.served and not pool.stopping:
                    # Before it is missed.
                    pool.stillborn += 1
            pool.left(self)
            if not has_retired and not pool.stopping:
                pool.wants_worker = True
                pool.wake()

    def help(self, help_out: Callable[[], object]) -> None:
        """End some of those that are parked."""
        try:
            help_out()
        finally:
            self.pool.left(self)

    def _work(self) -> bool:
        """False: the pool has ended; true: this worker may retire."""
        pool = self.pool
        # Not shared: select.poll objects, which it may be made of, bear one thread only.
        self._count_waiting = pool.make_counter()
        poll, idle, ready, bench = pool.poller.poll, pool.idle, pool.ready, pool.bench
        parking = pool.parking
        parked, held, later = parking.parked, parking.held, parking.later
        workers, fewest, idle_timeout = pool.workers, pool.settings.fewest, pool.settings.idle_timeout
        is_needed = False
        event: tuple[int, int] | None = None
        live = continue_handler = None
        try:
            while not pool.stopping:
                event = live = continue_handler = None
                if bench.asked and not bench.sit(self.seat, idle_timeout) and pool.may_retire(self):
                    return True
                has_later = bool(later)
                if ready:
                    try:
                        event, began = ready.popleft()
                    except IndexError:
                        continue
                else:
                    self.is_waiting = True
                    began = time.monotonic()
                    # The last few, and a worker that waits alone, wait without limit: an idle pool does not wake.
                    # One that was there before this look goes on after it, so that neither waits for the other's end.
                    limit = 0 if has_later else -1 if is_needed or len(workers) <= fewest else idle_timeout
                    events = poll(limit, pool.events_at_once)
                    self.is_waiting = False
                    self.waited += time.monotonic() - began
                    if not events:
                        if later:
                            self._serve_later()
                            continue
                        if pool.may_retire(self):
                            return True
                        is_needed = True
                        continue
                    if len(events) > 1:
                        pool.put_aside(events, began)
                    event = events[0]
                is_needed = False
                idle.pop()
                try:
                    if not idle:
                        pool.last_place_was_taken()
                    while True:
                        fd = event[0]
                        if fd == pool.listener_fd:
                            self._take()
                        else:
                            live = parked.pop(fd, None)
                            if live is None and fd in held:
                                parking.quiet(fd)
                                live = parked.pop(fd, None)
                            if live is not None:
                                continue_handler = live.continue_handler
                                if live.parking_record.trusted_from < began > parking.claimed_at:
                                    parking.serve(live, event[1] == INPUT)
                                else:
                                    parking.put_back(live)
                        self.served += 1
                        if not ready or bench.asked or pool.stopping:
                            break
                        event = live = continue_handler = None
                        event, began = ready.popleft()
                except IndexError:
                    # Another worker took the last one.
                    if event is not None:
                        raise
                finally:
                    idle.append(None)
                if has_later:
                    self._serve_later()
        except BaseException:
            if event is not None:
                self.served += 1
            # What it was told of no other worker is told.
            if not pool.is_lost:
                if live is not None:
                    parking.undo_taking(live, continue_handler)
                else:
                    parking.hear_again(None if event is None else event[0])
            raise
        finally:
            self.is_waiting = False
        return False

    def _serve_later(self) -> None:
        idle = self.pool.idle
        idle.pop()
        try:
            if not idle:
                self.pool.last_place_was_taken()
            self.pool.parking.serve_later()
        finally:
            self.served += 1
            idle.append(None)

    def _take(self) -> None:
        pool = self.pool
        count_waiting = self._count_waiting
        # In this order: the thread that forbids taking does so first, and asks which workers take second.
        self.taking = True
        served_before = self.served
        is_second = False
        try:
            for _ in range(pool.batch):
                # Often another worker was quicker, and to accept in vain costs as much as a short request.
                if not pool.may_take() or (count_waiting is not None and not count_waiting()):
                    return
                if is_second and not pool.is_pressed:
                    pool.press()
                has_taken = pool.context.copy().run(pool.take)
                if has_taken is not True:
                    if has_taken is False and self.served == served_before:
                        pool.found_nothing()
                    return
                self.served += 1
                is_second = True
        finally:
            self.taking = False
            if pool.tells_when_done:
                pool.done_taking()
