"""A pool's stay in a loop (Leader/Followers; Schmidt et al., Pattern-Oriented Software Architecture 2).

Rule 1. The thread that runs the loop serves nothing: it stays responsive when all workers are busy.
Rule 2. Nothing is handed from thread to thread: each worker takes its next request itself. When all are busy none
accepts, and the kernel's backlog holds the rest: that is all the back-pressure there is.
Rule 3. The thread that forbids taking forbids first and asks which workers take second; a worker says that it takes
first, and asks whether it may second. So after "none takes" nothing is taken.
"""

from __future__ import annotations

import collections
import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from sockserve.concurrency.pool.parking import Parking
from sockserve.concurrency.pool.poller import open_shared_poller
from sockserve.concurrency.pool.pressure import Pressure
from sockserve.concurrency.pool.room import Room
from sockserve.concurrency.pool.workers import Pool
from sockserve.concurrency.threads import interpreter_ends
from sockserve.core.accepting import Acceptor
from sockserve.core.lifecycle import CUT_GRACE
from sockserve.core.loop import Loop, Timer
from sockserve.log import counted, log
from sockserve.net.accept import counter_of
from sockserve.net.accept_errors import Verdict, is_out_of_descriptors
from sockserve.net.blocking_mode import give_back

__all__ = ["Coordinator"]


BATCH = 16
"""Requests that a worker takes one after the other before it looks whether a parked connection speaks."""

ALL_BUSY = 1.0
"""Seconds without a free worker after which the log says so: a client notices by then."""

STUCK = 0.05
"""Seconds without a free worker after which a drain ends the parked in a thread of its own."""

RETRY_THREAD = 1.0
"""Seconds until another try after a thread could not be started, or died before it served anything."""


class Coordinator(Acceptor):
    """Lets the workers of a pool accept for one server."""

    def __init__(self, server: Any, loop: Loop, poll_interval: float) -> None:
        # Reentrant, because a signal handler may close the listener while this thread watches it.
        self._watch_lock = threading.RLock()
        self._failures: collections.deque[tuple[BaseException, Verdict]] = collections.deque()
        # May raise; what is opened below has an owner from then on.
        self._open_pool(server, loop)
        self._silence: Timer | None = None
        self._busy: Timer | None = None
        self._served = 0
        self._draining: Timer | None = None
        self._served_draining = 0
        self._has_told = False
        self._cannot_start = False
        self._is_over = False
        self._retires = False
        self._say_paused: Callable[[], object] | None = None
        self._hears_end = False
        self._lent: list[Any] = []
        """The listener, if its mode is given back after this stay."""
        try:
            super().__init__(server, loop, poll_interval)
        except BaseException:
            # If another thread serves, there was nothing to leave.
            self._end_pool()
            raise

    def _open_pool(self, server: Any, loop: Loop) -> None:
        settings = server._serving_pool_settings()  # noqa: SLF001 - the mix-in's own
        self._poller = open_shared_poller()
        self.parking = Parking(server, self._poller, loop.wake)
        self._room = Room(self.parking)
        self.pool = Pool(settings, self._poller, server._serving_threads, self.parking, loop.wake)  # noqa: SLF001 - as above
        self._pressure = Pressure(self.pool, loop)

    def _take_over_listener(self, longest_wait: float | None, connection_class: type[socket.socket] | None) -> None:
        super()._take_over_listener(longest_wait, connection_class)
        self._begin_pool()

    def _begin_pool(self) -> None:
        take = self.server._handle_request_noblock  # noqa: SLF001 - stdlib's name for one request
        batch = min(self._batch, BATCH)
        self.pool.begin(
            take, self.may_take, self._make_counter, batch, self.table.touch, found_nothing=self.found_nothing
        )
        self._state.put(self.pool)
        self.table.parking = self.parking
        self.pool.when_lost = self._lose_pool
        # Without this one there is no service; without the others there is.
        self.pool.start_worker()
        self._start_workers()

    def _lose_pool(self) -> None:
        # In a forked child; another thread may have held the lock.
        self._watch_lock = threading.RLock()
        self._failures.clear()
        self.watching = False
        self.table.parking = None

    def _make_counter(self) -> Callable[[], int] | None:
        return None if self.intake.count_waiting is None else counter_of(self.listener)

    # 1 WAIT

    def before_wait(self) -> None:
        """As every acceptor; and tend the pool."""
        if self._failures:
            error, verdict = self._failures.popleft()
            # Several workers fail at once for one reason.
            self.back_off.errors += len(self._failures)
            self._failures.clear()
            super().failed(error, verdict)
        if self.pool.is_lost and not self.stop_requested:
            # This process was forked by the loop's thread, or before the loop ran: it needs threads of its own.
            self._open_pool(self.server, self.loop)
            self._begin_pool()
        super().before_wait()
        if self._retires and not self._left:
            self._leave_after_the_last()
        if not self._left:
            self._tend()

    def _watch(self) -> None:
        with self._watch_lock:
            if not self.listener_lost:
                # Again: a worker may have made it false since, and only both together are true.
                self.watching = True
                self.pool.tells_when_done = False
                self.pool.listener_fd = self._fd
                try:
                    self._poller.watch(self._fd, shared=self._is_shared)
                except BaseException:
                    self.watching = False
                    self.pool.listener_fd = -1
                    raise

    def _unwatch(self) -> None:
        with self._watch_lock:
            self.watching = False
            # Its number may soon be a parked connection's.
            self.pool.listener_fd = -1
            self._poller.unwatch(self._fd)

    def has_free_loop(self) -> bool:
        """Yes: the coordinator serves nothing."""
        return True

    def has_paused(self) -> bool:
        """Whether no worker is taking a request, nor about to."""
        return super().has_paused() and not self._is_taking()

    def _is_taking(self) -> bool:
        self.pool.tells_when_done = True
        return self.pool.is_taking({live.thread for live in self.table.all()})

    # 2 ACCEPT, in the workers

    def may_take(self) -> bool:
        """Whether a worker may take a request now; if not, no worker will be told of any."""
        if not self._is_forbidden():
            return True
        with self._watch_lock:
            if self._is_forbidden():
                self._unwatch()
        # The loop watches it again when it may.
        self.loop.wake()
        return False

    def _is_forbidden(self) -> bool:
        return self.stop_requested or self.listener_lost or self.lifecycle.suspended or self.is_at_limit()

    def recovered(self) -> None:
        """A descriptor was to be had: whatever made accept fail is over."""
        if self.back_off.delay:
            with self._watch_lock:
                super().recovered()

    def failed(self, error: BaseException, verdict: Verdict) -> None:
        """Make room among the parked, or leave it to the coordinator what the table says about an error."""
        if self.listener_closed or verdict is Verdict.IGNORE:
            return
        if is_out_of_descriptors(error) and self._room.make():
            return
        # At once, or the workers would try again and again.
        self._unwatch()
        self._failures.append((error, verdict))
        self.loop.wake()

    # 9 TICK

    def _tend(self) -> None:
        pool, parking = self.pool, self.parking
        if parking.wants_look:
            self._look_at_the_silent()
        if pool.wants_worker:
            self._start_workers()
        if pool.is_pressed:
            self._pressure.begin()
        if pool.is_full and self._busy is None:
            self._served = pool.served()
            self._busy = self.loop.call_later(ALL_BUSY, self._look_at_the_busy)
        if parking.parked and self.lifecycle.draining and self._draining is None and not self._retires:
            self._served_draining = pool.served()
            self._draining = self.loop.call_later(STUCK, self._look_at_the_draining)

    def _look_at_the_silent(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
        self.parking.look()
        if self.parking.unheard:
            self._end_unheard()
        until = self.parking.next_look - time.monotonic()
        self._silence = None if until == math.inf else self.loop.call_later(until, self._look_at_the_silent)

    def _start_workers(self) -> None:
        if self._cannot_start:
            return
        pool = self.pool
        pool.wants_worker = False
        try:
            while pool.needs_worker():
                if pool.stillborn:
                    # Whatever they died of, the next may die of it as soon: at full speed that would be all there is.
                    pool.stillborn = 0
                    self._pause_starting()
                    return
                pool.start_worker()
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and interpreter_ends(error):
                self.stop_requested = True
                self.loop.wake()
                return
            log.warning(
                "%s: goes on with %s, because no thread starts: %s",
                self.server,
                counted(len(pool.workers), "worker"),
                error,
            )
            self._pause_starting()

    def _pause_starting(self) -> None:
        self._cannot_start = True
        self.loop.call_later(RETRY_THREAD, self._try_to_start_again)

    def _try_to_start_again(self) -> None:
        self._cannot_start = False
        if not self._left:
            self._start_workers()

    def _look_at_the_busy(self) -> None:
        self._busy = None
        pool = self.pool
        if pool.idle or self._left:
            pool.is_full = self._has_told = False
            return
        if pool.served() != self._served:
            self._has_told = False
        elif not self._has_told:
            self._has_told = True
            # Where the kernel does not count them, 1 means "some".
            waiting = 0 if self.intake.count_waiting is None else self.intake.count_waiting()
            text = "%s: none of %s has been free for %g s, and %d or more clients wait"
            log.warning(text, self.server, counted(len(pool.workers), "worker"), ALL_BUSY, waiting)

    def _look_at_the_draining(self) -> None:
        self._draining = None
        # What a drain has made ready for them the workers take by themselves, unless all are busy with something else.
        if not self._left and self.pool.served() == self._served_draining:
            self._help_to_end()

    def _help_to_end(self) -> None:
        """See that a thread ends the parked even if all workers are busy."""
        if not self.pool.idle:
            with contextlib.suppress(RuntimeError, MemoryError):
                self.pool.start_helper(self.parking.end_all)

    def _end_unheard(self) -> None:
        if self._left or not self.parking.unheard:
            return
        with contextlib.suppress(RuntimeError, MemoryError):
            self.pool.start_helper(self.parking.end_unheard)
        # It may not have started, or be the last one that was about to end.
        self.loop.call_later(RETRY_THREAD, self._end_unheard)

    # leaving

    def retire(self, say_paused: Callable[[], object]) -> bool:
        """Take no new client, and leave when the last one has gone, a parked one too. From any thread.

        ``say_paused`` is called as soon as no client can be taken any more.
        """
        self._say_paused = say_paused
        self.lifecycle.draining = self.lifecycle.suspended = True
        self._retires = True
        self.loop.wake()
        return True

    def _leave_after_the_last(self) -> None:
        if not self._hears_end:
            self._hears_end = True
            self.table.on_next_change(self._look_for_the_end)
        # Asked for after that, or the last one could end unheard. Watched it still is if all this was said since this
        # turn looked; another one follows.
        if self.watching or not self.has_paused():
            return
        if self._say_paused is not None:
            self._say_paused()
            self._say_paused = None
        if not self.table.all():
            self.stop_requested = True
            self.leave()

    def _look_for_the_end(self) -> None:
        self._hears_end = False
        self.loop.wake()

    def _leave(self) -> None:
        """With no worker taking anything more."""
        if self._left:
            return
        self.stop_requested = True
        self._unwatch()
        self._wait_for_the_taking()
        self.table.parking = None
        self.pool.stop()
        if self.parking.parked or self.parking.unheard:
            self._help_to_end()
        super()._leave()
        self._end_pool()

    def _wait_for_the_taking(self) -> None:
        deadline = time.monotonic() + CUT_GRACE
        while True:
            change = self.table.next_change()
            try:
                if not self._is_taking():
                    return
                limit = deadline - time.monotonic()
                if limit <= 0:
                    # A get_request() of the program's own, which waits for a client that may never speak.
                    text = "%s: the loop ends although get_request() has not returned for %g s in a worker"
                    log.warning(text, self.server, CUT_GRACE)
                    return
                change.wait(limit)
            finally:
                self.table.forget_change(change)

    def _return_listener(self) -> None:
        if self.intake.is_lent and self._is_taking():
            self.intake.is_lent = False
            self._lent.append(self.listener)
            self._return_when_taken()
        super()._return_listener()

    def _return_when_taken(self) -> None:
        """A worker in accept() must not find the listener blocking again. From any thread."""
        # In this order, or the last change could come between the two.
        self.table.on_next_change(self._return_when_taken)
        if not self._is_taking():
            self.table.not_on_next_change(self._return_when_taken)
            # By one of the threads that come here at once.
            with contextlib.suppress(IndexError):
                give_back(self._lent.pop())

    def _end_pool(self) -> None:
        if not self._is_over:
            self._is_over = True
            self.pool.let_go()
