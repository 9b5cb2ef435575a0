"""The loop: waits until something is ready, and sleeps until then.

Theory of operation. One thread runs a loop; each turn has these steps:

1. every source says what it wants to watch (``before_wait()``), and may leave; without sources the loop ends;
2. one wait: for a ready descriptor, the next timer, or a byte on the wake-up socket;
3. the calls of ``after_next_wait()``, then a callback for each ready descriptor, then the timers that are due, then the
   calls of ``call_soon()``;
4. every source hears that the turn is over (``after_turn()``).

All callbacks run in that thread, one after the other, so what they share needs no lock. Another thread changes a flag
first and calls ``wake()`` second: the flag is looked at in step 1 of the next turn.

Rule 1. The wait ends at once on readiness, on ``wake()`` from any thread or signal handler, and on the next timer.
Rule 2. With nothing to do it waits without limit: an idle process does not wake.
Rule 3. From any thread, and in a signal handler: ``wake()``, ``call_soon()``, ``after_next_wait()``. From any thread:
``forget()``, ``unwatch()``. Everything else is called in the thread that runs the loop, or before it runs.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import heapq
import socket
import threading
import time
from collections.abc import Callable
from typing import Self

from sockserve.core.deferral import Deferral
from sockserve.core.forked import tell_when_forked
from sockserve.core.poller import INPUT, OUTPUT, Poller, PollerToCome, open_poller
from sockserve.core.source import Source
from sockserve.core.taken_signals import give_wakeup_back, take_wakeup, take_wakeup_again
from sockserve.core.timer import Timer
from sockserve.core.wake_up import send_wake_up
from sockserve.errors import AlreadyServingError
from sockserve.seconds import LONGEST_WAIT

__all__ = ["INPUT", "OUTPUT", "Loop", "Source", "Timer"]

LONGEST_DEAFNESS = 0.05
"""Seconds of the first wait after something was called, which may have taken the signals' wake-up descriptor away: to
look before each wait would cost every turn a system call."""


class Loop:
    """Waits for any number of servers and file descriptors in one thread.

    ``server.attach(loop)`` makes it host a server; ``run()`` returns when every source has left, which a server does
    after ``shutdown()``. Opens three descriptors; ``close()`` gives them back.
    """

    def __init__(self) -> None:
        self._poller = self._open()
        self.stays_armed = self._poller.stays_armed
        """Whether a callback of ``arm()`` stays armed after it was called."""
        # By descriptor: those are small numbers, and for each event a list is cheaper than a dict, in memory too.
        self._callbacks: list[Callable[[int], object] | None] = []
        # Of the others, which are all armed, only INPUT is wanted, or OUTPUT too: few of either kind.
        self._watched: set[int] = set()
        self._shared: set[int] = set()
        self._wants_output: set[int] = set()
        self._told_in_part = self._is_running = False
        self._after_wait: collections.deque[Callable[[], object]] = collections.deque()
        self._soon: collections.deque[Callable[[], object]] = collections.deque()
        self._timers: list[Timer] = []
        self._look_for_cancelled_at = 64
        self._sources: tuple[Source, ...] = ()
        self.thread: int | None = None
        """The identity of the thread that runs the loop, or is about to; None: no thread does."""
        self.turns = 0
        """A number that each turn changes."""
        self.is_closed = False
        self.is_left_behind = False
        """Whether it ran in another thread when this process was forked, and what it hosted then is in the parent."""
        self._wakeup: tuple[int, int] | None = None
        """What signals wake this loop with, while it runs in the main thread."""
        self._hears_signals = True
        """Whether no callback ran since the wake-up descriptor of signals was set last."""
        try:
            self._begin_to_hear()
        except BaseException:
            self.abandon()
            raise
        # Before its sources: they unwatch descriptors, and this poller is still the parent's.
        tell_when_forked(self, first=True)

    def _open(self) -> Poller:
        # A socket pair and not a pipe: select() on Windows takes nothing but sockets.
        self._wake_reader, self._wake_writer = socket.socketpair()
        try:
            self._wake_reader.setblocking(False)
            self._wake_writer.setblocking(False)
            return open_poller()
        except BaseException:
            self._close_wake_pair()
            raise

    def _begin_to_hear(self) -> None:
        self.watch(self._wake_reader.fileno(), self._drain_wake_ups)

    def _take_wakeup(self) -> tuple[int, int] | None:
        fd = self._wake_writer.fileno()
        # Closed in a forked child, until the first wait.
        return None if fd < 0 else take_wakeup(fd)

    def add(self, source: Source) -> None:
        """Host a source until ``remove``."""
        self.is_left_behind = False
        self._sources = (*self._sources, source)

    def remove(self, source: Source) -> None:
        """Host a source no longer; ``run()`` returns when none is left."""
        self._sources = tuple(hosted for hosted in self._sources if hosted is not source)

    def watch(self, fd: int, callback: Callable[[], object], *, shared: bool = False) -> None:
        """Call back in every turn that finds the descriptor readable (level-triggered) until ``unwatch``.

        ``shared``: other processes wait for the same; not all need to wake (EPOLLEXCLUSIVE, where there is that).
        """
        self._set_callback(fd, lambda _: callback())
        self._watched.add(fd)
        if shared:
            self._shared.add(fd)
        else:
            self._shared.discard(fd)
        try:
            self._poller.register(fd, shared=shared)
        except BaseException:
            # What is not watched must not look as if it were: its number may be another's soon.
            self._drop_callback(fd)
            self._watched.discard(fd)
            raise

    def arm(self, fd: int, callback: Callable[[int], object], events: int) -> None:
        """Call back with what a connection is ready for, once it is ready for one of ``events``: INPUT, OUTPUT.

        Called once for each change (edge-triggered), of input in any case, until ``forget()`` or ``unwatch()``; also
        for what is ready already. Without epoll it is called only once (``stays_armed`` is false): arm it again then.
        Raises OSError if the system has no room for it (ENOSPC, ENOMEM: epoll_ctl(2)); then nothing changed.
        """
        self._poller.arm(fd, events)
        self._set_callback(fd, callback)
        self._watched.discard(fd)
        if events & OUTPUT:
            self._wants_output.add(fd)
        elif self._wants_output:
            self._wants_output.discard(fd)

    def rearrange(self, fd: int, callback: Callable[[int], object]) -> None:
        """Replace the callback of an armed descriptor. No effect on any other."""
        if 0 <= fd < len(self._callbacks) and self._callbacks[fd] is not None:
            self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """Drop the callback of a descriptor that is about to be closed. From any thread."""
        if self._drop_callback(fd) and not self.stays_armed:
            # The kernel takes a closed descriptor out of an epoll by itself.
            self._poller.unregister(fd)

    def unwatch(self, fd: int) -> None:
        """Stop watching; from any thread, before the descriptor is closed. No effect on one that is not watched."""
        self._watched.discard(fd)
        if self._drop_callback(fd):
            self._poller.unregister(fd)

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call back once, ``delay`` seconds from now at the earliest; inf: never. Raises ValueError if it is NaN."""
        if delay != delay:  # noqa: PLR0124 - NaN is what equals nothing
            raise ValueError("a delay cannot be NaN")
        timer = Timer(time.monotonic() + delay, callback)
        if len(self._timers) >= self._look_for_cancelled_at:
            # Nearly all time-outs are cancelled, long before they are due.
            self._timers = [each for each in self._timers if each.callback is not None]
            heapq.heapify(self._timers)
            self._look_for_cancelled_at = 2 * len(self._timers) + 64
        heapq.heappush(self._timers, timer)
        return timer

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call back once, in this turn or the next one. Safe in any thread and in a signal handler."""
        self._soon.append(callback)
        if self.thread != threading.get_ident():
            self.wake()

    def after_next_wait(self, callback: Callable[[], object]) -> None:
        """Call back once, when the next wait is over, before what is ready is looked at. Safe in any thread."""
        self._after_wait.append(callback)

    def wake(self) -> None:
        """End the present wait, or the next one, at once. Safe in any thread and in a signal handler; never blocks."""
        send_wake_up(self._wake_writer)

    def run(self, source: Source | None = None) -> None:
        """Turn until no source is left, or until ``source`` has left.

        An exception of a callback, a source or a signal handler ends it. It may be run again then, and may also run
        inside of itself, in a signal handler. What a turn that did not come to its end had still to tell of armed
        descriptors is told again.
        Raises AlreadyServingError if another thread runs it.
        """
        claimed_by, me = self.thread, threading.get_ident()
        if claimed_by not in (None, me):
            raise AlreadyServingError("another thread runs this loop")
        is_inner, lent_before = self._is_running, self._wakeup
        with Deferral() as signals:
            self.thread = me
            # A signal's Python handler runs in the main thread, between two instructions: one that lands just before
            # the wait, or in another thread, would wait as long as the loop does.
            if threading.current_thread() is threading.main_thread():
                # ValueError: the main thread of a subinterpreter, where no signal handler runs.
                with contextlib.suppress(ValueError):
                    self._wakeup = self._take_wakeup()
            try:
                signals.lifted(functools.partial(self._run, source))
            finally:
                self._is_running = is_inner
                if self._wakeup is not None and self._wakeup is not lent_before:
                    give_wakeup_back(self._wakeup)
                self._wakeup = lent_before
                self.thread = claimed_by

    def lift_waits(self, signals: Deferral) -> None:
        """Let the handlers of signals that are deferred otherwise run in each wait of this loop, from now on."""
        poll = self._poller.poll
        # The turn is whole then: what is ready is told again, should a handler raise.
        self._poller.poll = lambda timeout: signals.lifted(lambda: poll(timeout))  # type: ignore[method-assign]

    def close(self) -> None:
        """Make every source leave and close the loop's own descriptors. Idempotent."""
        for source in self._sources:
            source.leave()
        self.abandon()

    def abandon(self, keep: Source | None = None) -> None:
        """Close this process's copies of the descriptors, those of every source but ``keep`` included, and no more.

        What a forked child does with its parent's loop.
        """
        for source in self._sources:
            if source is not keep:
                source.abandon()
        self.is_closed = True
        self._callbacks[:] = [None] * len(self._callbacks)
        self._poller.close()
        self._close_wake_pair()

    def forked(self) -> None:
        """In a forked child: let go of what the kernel shares with the parent.

        What the forking thread hosts here, and what is hosted in a loop that does not run, goes on in this process as
        well, with descriptors of its own, which are opened on first use. All else stays behind with the thread that
        runs it.
        """
        if self.is_closed:
            return
        self._stop_hearing()
        self._poller.close()
        self._poller = PollerToCome(self._open_anew, stays_armed=self.stays_armed)
        # It was given back already, as each process's signals are.
        self._wakeup = None
        if self.thread in (None, threading.get_ident()):
            return
        self.is_left_behind = True
        self._sources = ()
        self._callbacks, self._timers = [], []
        for others in (self._watched, self._shared, self._wants_output, self._after_wait, self._soon):
            others.clear()
        self.thread = None
        self._told_in_part = self._is_running = False

    def _open_anew(self) -> Poller:
        to_come, self._poller = self._poller, self._open()
        known = list(enumerate(self._callbacks))
        try:
            self._begin_to_hear()
        except BaseException:
            self._poller.close()
            self._close_wake_pair()
            self._poller = to_come
            raise
        for fd, callback in known:
            # Another one: its descriptor was closed without a word, and is the wake-up's here.
            if callback is None or self._callbacks[fd] is not callback:
                continue
            # Closed in that way too: there is nothing to wait for.
            with contextlib.suppress(OSError, ValueError):
                if fd in self._watched:
                    self._poller.register(fd, shared=fd in self._shared)
                else:
                    self._poller.arm(fd, INPUT | OUTPUT if fd in self._wants_output else INPUT)
        if self._is_running and threading.current_thread() is threading.main_thread():
            with contextlib.suppress(ValueError):
                self._wakeup = self._take_wakeup()
        # Until now wake() reached nothing, and the loop may have looked before it came: it looks once more.
        self.wake()
        return self._poller

    def _stop_hearing(self) -> None:
        fd = self._wake_reader.fileno()
        self._watched.discard(fd)
        self._drop_callback(fd)
        self._close_wake_pair()

    def _close_wake_pair(self) -> None:
        self._wake_reader.close()
        self._wake_writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _run(self, source: Source | None) -> None:
        is_inner, self._is_running = self._is_running, True
        if self._told_in_part:
            self._tell_again()
        # From here, and not in an except clause: an exception may come between poll() and the name for its result.
        self._told_in_part = True
        while self._sources if source is None else source in self._sources:
            self._turn(source)
        self._told_in_part = is_inner

    def _turn(self, until: Source | None = None) -> None:
        sources = self._sources
        for source in sources:
            source.before_wait()
        if self._sources is not sources and (not self._sources or (until and until not in self._sources)):
            return
        self.turns += 1
        callbacks = self._callbacks
        limit = 0.0 if self._soon else self._wait_limit(sources)
        if self._hears_signals or self._wakeup is None or (limit is not None and limit <= LONGEST_DEAFNESS):
            ready = self._poller.poll(limit)
        else:
            ready = self._poller.poll(LONGEST_DEAFNESS)
            if not ready:
                take_wakeup_again(self._wakeup)
                self._hears_signals = True
                ready = self._poller.poll(0.0 if self._soon else self._wait_limit(sources))
        if ready:
            self._hears_signals = False
        while self._after_wait:
            self._after_wait.popleft()()
        for fd, events in ready:
            callback = callbacks[fd]
            # An earlier callback of this turn may have unwatched it.
            if callback is not None:
                callback(events)
        if self._timers:
            self._fire_timers()
        # What these ask for is for the next turn.
        if self._soon:
            for _ in range(len(self._soon)):
                self._soon.popleft()()
        for source in sources:
            source.after_turn()

    def _tell_again(self) -> None:
        """Let epoll tell once more what armed descriptors are ready for: it tells of each change once."""
        for fd, callback in enumerate(self._callbacks):
            if callback is None or fd in self._watched:
                continue
            try:
                self._poller.arm(fd, INPUT | OUTPUT if fd in self._wants_output else INPUT)
            except (OSError, ValueError):
                # Closed without a word: there is nothing to tell of.
                pass

    def _set_callback(self, fd: int, callback: Callable[[int], object]) -> None:
        missing = fd + 1 - len(self._callbacks)
        if missing > 0:
            self._callbacks += [None] * missing
        self._callbacks[fd] = callback

    def _drop_callback(self, fd: int) -> bool:
        """Whether there was one."""
        if not 0 <= fd < len(self._callbacks) or self._callbacks[fd] is None:
            return False
        self._callbacks[fd] = None
        return True

    def _wait_limit(self, sources: tuple[Source, ...]) -> float | None:
        limit = None
        for source in sources:
            if source.max_wait is not None and (limit is None or source.max_wait < limit):
                limit = source.max_wait
        timers = self._timers
        if timers:
            while timers and timers[0].callback is None:
                heapq.heappop(timers)
            if timers:
                due = max(0.0, timers[0].when - time.monotonic())
                limit = due if limit is None else min(limit, due)
        return None if limit is None else min(limit, LONGEST_WAIT)

    def _fire_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0].when <= now:
            callback = heapq.heappop(self._timers).callback
            if callback is not None:
                self._hears_signals = False
                callback()

    def _drain_wake_ups(self) -> None:
        try:
            self._wake_reader.recv(4096)
        except OSError:
            # Nothing to read; or no memory just now, and the next wait tells again.
            pass
