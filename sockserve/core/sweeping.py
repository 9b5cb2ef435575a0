"""Where and when ``deadlines`` are looked after: a lazy sweep of the live table.

Rule 1. A server without deadlines never comes here. With them a request costs nothing: the table is swept now and then.
Rule 2. With nothing in progress there is no sweep: the next change of the table begins the next one.
Rule 3. A server whose loop is free for it is swept by a timer of that loop; one whose handlers run in the loop's own
thread, or that has no loop, by a thread of its own, which begins with a request and ends a second after the last.
Rule 4. No error of a sweep ends the loop.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

from sockserve.core.active_requests import LiveRequest
from sockserve.core.deadlines import LONGEST_TICK, Deadlines, Watch, deadlines_of
from sockserve.core.forked import tell_when_forked
from sockserve.core.loop import Loop
from sockserve.core.servable import AnyServer
from sockserve.core.serving import serving_of
from sockserve.core.streams import mark_waits
from sockserve.core.timer import Timer
from sockserve.log import Seldom, log
from sockserve.seconds import LONGEST_WAIT

__all__ = ["HandlersDeadlines", "begin_sweeping", "end_sweeping", "marks_waits", "sweep_in_child"]

STAY = 1.0
"""Seconds that a thread for sweeps waits for another request before it ends."""

JOIN = 1.0
"""Seconds that the end of a server waits for that thread: a sweep of thousands takes milliseconds."""

_waits: list[tuple[type, str]] = []
"""Methods that wait for a client between two of its messages."""


def marks_waits(cls: type, name: str) -> None:
    """Let a method of a handler, which waits between two messages, say that it does so once a server has deadlines."""
    _waits.append((cls, name))


def _mark_all_waits() -> None:
    """Exchange what waits for what also tells it: so that programs without deadlines do not pay for it."""
    mark_waits()
    while _waits:
        cls, name = _waits.pop()
        setattr(cls, name, _marking(vars(cls)[name]))


def _marking(wait: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def wait_and_tell(handler: Any) -> Any:
        handler._serving_waits_since = time.monotonic()  # noqa: SLF001
        try:
            return wait(handler)
        finally:
            # In this order: it would look like a part of the message before.
            handler._serving_turns = getattr(handler, "_serving_turns", 0) + 1  # noqa: SLF001
            handler._serving_waits_since = 0.0  # noqa: SLF001

    return wait_and_tell


class Sweeper:
    """Sweeps the table of one server. ``begin()``, ``end()``: in the thread that serves or closes it."""

    def __init__(self, server: AnyServer) -> None:
        self._server = server
        self._table = serving_of(server).table
        self._watches: dict[LiveRequest, Watch] = {}
        self._tick = LONGEST_TICK
        self._loop: Loop | None = None
        self._timer: Timer | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._change = threading.Event()
        self._stop: threading.Event | None = None
        """Set to end the sweeps; None: there are none."""
        self._counts_request = True
        self._failures = Seldom()
        tell_when_forked(self)

    def forked(self) -> None:
        """In a forked child: its thread is in the parent, and what waits for changes of the table was forgotten."""
        self._thread = self._timer = None
        self._watches = {}
        self._starting = threading.Lock()
        self._change = threading.Event()
        loop = self._loop
        if loop is not None and (loop.is_left_behind or loop.is_closed):
            self._loop = self._stop = None
        elif self._stop is not None:
            self._stop = threading.Event()
            self._listen()

    def begin(self, loop: Loop | None, tick: float, *, counts_request: bool = True) -> None:
        """Sweep from now on, in this loop or, without one, in a thread. No effect if it does already."""
        self._tick = min(self._tick, tick)
        if self._stop is not None and self._loop is not loop:
            self.end()
        if self._stop is None:
            _mark_all_waits()
            self._counts_request = counts_request
            self._loop = loop
            self._stop = threading.Event()
            self._listen()
            if self._table.by_id:
                self._something_came()

    def end(self) -> None:
        """Sweep no more. Idempotent."""
        stop, self._stop = self._stop, None
        if stop is None:
            return
        self._table.not_on_next_change(self._something_came)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._watches = {}
        self._loop = None
        stop.set()
        self._change.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN)

    def is_at_work(self) -> bool:
        """Whether it sweeps, or will as soon as there is something."""
        return self._stop is not None

    def hurry(self, live: LiveRequest | None, tick: float) -> None:
        """A request in progress has got other deadlines: look at it soon. From any thread."""
        self._tick = min(self._tick, tick)
        watch = None if live is None else self._watches.get(live)
        if watch is not None:
            watch.look_at = 0.0
        self._something_came()

    def _listen(self) -> None:
        self._table.not_on_next_change(self._something_came)
        self._table.on_next_change(self._something_came)

    def _something_came(self) -> None:
        """The table has changed. In the thread that changed it."""
        if self._stop is None:
            return
        loop = self._loop
        if loop is not None:
            loop.call_soon(self._sweep_soon)
            return
        self._change.set()
        if self._thread is None:
            self._start_thread()

    # in the loop's thread

    def _sweep_soon(self) -> None:
        loop, timer = self._loop, self._timer
        if loop is None or self._stop is None:
            return
        if timer is not None:
            if timer.when <= time.monotonic() + self._tick:
                return
            timer.cancel()
        self._timer = loop.call_later(self._tick, self._sweep_in_loop)

    def _sweep_in_loop(self) -> None:
        self._timer = None
        loop = self._loop
        if loop is None or self._stop is None:
            return
        delay = self._sweep_safely()
        if delay is not None:
            self._timer = loop.call_later(delay, self._sweep_in_loop)

    # in a thread of its own

    def _start_thread(self) -> None:
        with self._starting:
            stop = self._stop
            if self._thread is not None or stop is None:
                return
            thread = threading.Thread(target=self._run, args=(stop,), name="sockserve-deadlines", daemon=True)
            self._thread = thread
            try:
                thread.start()
            except (RuntimeError, MemoryError) as error:
                # The next change of the table tries again.
                self._thread = None
                log.debug("%s: no thread for deadlines: %s", self._server, error)
                self._listen()

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._change.clear()
            delay = self._sweep_safely()
            if delay is None:
                if not self._change.wait(STAY):
                    with self._starting:
                        if not self._change.is_set():
                            self._thread = None
                            return
            elif delay > self._tick:
                self._change.wait(delay)
            # Not for each change: there may be thousands of them in this time.
            stop.wait(self._tick)

    # in either

    def _sweep_safely(self) -> float | None:
        """Sweep, and see that a change is heard if the next sweep is not soon; None: only a change makes one."""
        try:
            delay = self._sweep()
        except Exception:
            self._tell_failure()
            return self._tick
        if delay is None or delay > self._tick:
            self._listen()
            if delay is None and self._table.by_id:
                # It came between the look and the registration.
                return self._tick
        return delay

    def _tell_failure(self) -> None:
        if count := self._failures.count():
            log.exception("%s: a look at the deadlines failed, %d since the last such line", self._server, count)

    def _sweep(self) -> float | None:
        """Look at all that are due; return in how many seconds to sweep again, None if nothing is in progress."""
        lives = self._table.all()
        if not lives:
            self._watches = {}
            return None
        now = time.monotonic()
        before = self._watches
        watches: dict[LiveRequest, Watch] = {}
        servers = deadlines_of(self._server)
        earliest = math.inf
        for live in lives:
            watch = before.get(live) or Watch(live)
            watches[live] = watch
            if watch.look_at <= now:
                deadlines = deadlines_of(live.handler) or servers
                if deadlines is None:
                    watch.look_at = now + self._tick
                else:
                    self._tick = min(self._tick, deadlines.tick)
                    self._look(watch, live, deadlines, now)
            earliest = min(earliest, watch.look_at)
        self._watches = watches
        return min(max(earliest - now, self._tick), LONGEST_WAIT)

    def _look(self, watch: Watch, live: LiveRequest, deadlines: Deadlines, now: float) -> None:
        try:
            watch.look(live, deadlines, now, counts_request=self._counts_request)
        except Exception:
            # One of them must not keep the others from being looked at.
            watch.look_at = now + deadlines.tick
            self._tell_failure()


def _sweeper_of(server: AnyServer) -> Sweeper:
    return serving_of(server).part(Sweeper, lambda: Sweeper(server))


def begin_sweeping(server: AnyServer, loop: Loop | None, *, counts_request: bool = True) -> None:
    """Look after the deadlines of a server, if it or its handlers have any: in its loop, or in a thread (None)."""
    own = deadlines_of(server), deadlines_of(getattr(server, "RequestHandlerClass", None))
    ticks = [deadlines.tick for deadlines in own if deadlines is not None]
    if ticks:
        _sweeper_of(server).begin(loop, min(ticks), counts_request=counts_request)


def sweep_in_child(server: AnyServer) -> None:
    """In a forked child that serves one request: all but ``request``, which its parent looks after."""
    end_sweeping(server)
    begin_sweeping(server, None, counts_request=False)


def end_sweeping(server: AnyServer) -> None:
    """Look after them no more. From any thread."""
    sweeper = serving_of(server).find(Sweeper)
    if sweeper is not None:
        sweeper.end()


class HandlersDeadlines:
    """The attribute ``deadlines`` of a handler, which may be assigned in ``handle()``; None at first."""

    def __get__(self, handler: Any, owner: type) -> Deadlines | None:
        return None if handler is None else getattr(handler, "_serving_deadlines", None)

    def __set__(self, handler: Any, value: Deadlines | None) -> None:
        handler._serving_deadlines = value  # noqa: SLF001 - ours
        if not isinstance(value, Deadlines):
            return
        server = handler.server
        sweeper = _sweeper_of(server)
        state = serving_of(server)
        if not sweeper.is_at_work():
            # No other of this server's requests had any until now.
            acceptor = state.acceptor
            sweeper.begin(acceptor.loop if acceptor is not None and acceptor.has_free_loop() else None, value.tick)
        sweeper.hurry(state.table.find(handler.request), value.tick)
