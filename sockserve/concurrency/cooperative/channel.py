"""A descriptor that workers wait for: what its loop has told of it, and which workers wait.

Rule 1. A loop tells of each change once (edge-triggered): what no worker waits for is noted, and not lost.
Rule 2. Code that runs outside of a worker waits as for any other socket: it blocks its thread.
Rule 3. A worker that waits for input gets its turns from the loop itself, with what there is to tell, until it pauses
for anything else: to go through here each time would cost a connection with many requests a call for each.
Rule 4. What always finds the descriptor ready gives its turn away all the same, after a time.
"""

from __future__ import annotations

import errno
import os
import selectors
import time
from typing import Any

from sockserve.concurrency.cooperative.turns import RequestGreenlet, current_worker, getcurrent
from sockserve.core.loop import INPUT, OUTPUT, Loop
from sockserve.seconds import LONGEST_WAIT

__all__ = ["FEW", "INPUT", "Channel"]

FEW = 8
"""Operations that may have gone on without a wait before it is looked how long the worker has had its turn: a short
request has fewer, and does not pay for the look."""

TURN = 0.005
"""Seconds after which a worker that need not wait gives its turn away: as long as CPython lets a thread run."""


class Channel:
    """One open descriptor; it is not closed with the channel."""

    __slots__ = (
        "direct",
        "fd",
        "has_ended",
        "is_dry",
        "limit",
        "loop",
        "outputs",
        "reader",
        "turn",
        "turn_ends",
        "unwaited",
        "writer",
    )

    def __init__(self, fd: int, limit: float | None) -> None:
        self.fd = fd
        """-1 when closed."""
        self.limit = limit
        """The socket's time-out, in the words of ``socket.settimeout()``."""
        self.is_dry = False
        """Whether a read took all there was, and the loop has told of no more since."""
        self.has_ended = False
        """Whether the loop told of an end, and so has no more to tell."""
        self.loop: Loop | None = None
        """The loop that it is armed in."""
        self.outputs = False
        """Whether it is armed for output too."""
        self.reader: RequestGreenlet | None = None
        """The worker that waits for input."""
        self.writer: RequestGreenlet | None = None
        """The worker that waits for output."""
        self.direct: RequestGreenlet | None = None
        """The reader, if the loop gives it its turns by itself; also between two waits."""
        self.unwaited = 0
        """Operations since ``share()`` saw that the worker had waited; it is called when they are more than FEW."""
        self.turn = -1
        self.turn_ends = 0.0

    def share(self) -> None:
        """Give the turn away if the caller has had it for long enough. Before an operation that may well not wait."""
        now = time.monotonic()
        if now < self.turn_ends:
            return
        me = current_worker()
        loop = None if me is None else me.hub.loop
        if me is None or loop is None or self.limit == 0:
            self.unwaited = 0
            return
        if self.turn == loop.turns:
            me.hub.give_way(me)
            now = time.monotonic()
        else:
            self.unwaited = 0
        self.turn = loop.turns
        self.turn_ends = now + TURN

    def begin(self) -> float | None:
        """When an operation that begins now has to end; None: never."""
        return time.monotonic() + self.limit if self.limit else None

    def wait_input(self, deadline: float | None = None) -> float | None:
        """Wait for more input, for the socket's time-out or until ``deadline``, which is returned for the next wait.

        Raises TimeoutError; OSError (EBADF) if the descriptor is closed; RuntimeError if another worker waits for it.
        """
        me = getcurrent()
        if self.limit is not None:
            deadline = self._check_time(deadline)
        if type(me) is not RequestGreenlet:
            self._wait_in_thread(selectors.EVENT_READ, deadline)
            return deadline
        if self.direct is not me:
            try:
                self._begin_to_read(me)
            except OSError:
                self.reader = None
                raise
        try:
            told = me.hub.switch() if deadline is None else me.listen(deadline)
        except BaseException:
            self.break_off()
            raise
        self.heard(told)
        return deadline

    def heard(self, told: Any) -> None:
        """The reader has its turn again, and what the loop told it. Raises OSError (EBADF) if closed meanwhile."""
        if told:
            self._note(told)
        if self.direct is None:
            self.reader = None
        if self.fd < 0:
            self.stop_direct()
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def has_input(self) -> bool:
        """Whether the loop told of input that has not been read, and of no end."""
        return not self.is_dry and not self.has_ended

    def dry_up(self) -> None:
        """A read took all there was; what comes from now on the loop tells."""
        me = getcurrent()
        # To another thread it may be telling right now.
        if type(me) is RequestGreenlet and (self.loop is None or self.loop is me.hub.loop):
            self.is_dry = not self.has_ended

    def wait_output(self, deadline: float | None = None) -> float | None:
        """Wait until it takes more output; else as ``wait_input()``."""
        me = getcurrent()
        if self.limit is not None:
            deadline = self._check_time(deadline)
        if type(me) is not RequestGreenlet:
            self._wait_in_thread(selectors.EVENT_WRITE, deadline)
            return deadline
        if self.writer is not None and self.writer is not me and not self.writer.dead:
            raise RuntimeError("another greenlet already waits to send to this socket")
        self.stop_direct()
        self.writer = me
        me.awaits = self
        loop = me.hub.loop
        try:
            if self.loop is not loop or not self.outputs:
                self.rearm(loop)
            me.pause(deadline)
        finally:
            self.writer = None
        if self.fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return deadline

    def close(self) -> None:
        """The descriptor is about to be closed: the workers that wait get an error. From any thread."""
        fd, self.fd = self.fd, -1
        if self.loop is not None:
            self.loop.forget(fd)
        if self.direct is getcurrent():
            # It closes, and so does not wait.
            self.stop_direct()
        self._wake_all()

    def _wake_all(self, but: object = None) -> None:
        for worker in (self.reader, self.writer):
            if worker is not None and worker is not but:
                worker.hub.resume(worker)

    def release(self) -> int:
        """As ``close()``, of a descriptor that stays open; return it."""
        fd, loop = self.fd, self.loop
        if loop is not None:
            loop.unwatch(fd)
        self.close()
        return fd

    def follow(self, loop: Loop | None) -> None:
        """Be told by this loop from now on. If that fails, those that wait try it themselves, and hear of the error.

        None: nothing goes on here any more.
        """
        if loop is None:
            if self.loop is not None:
                self.loop.unwatch(self.fd)
            self.loop = self.reader = self.writer = None
            return
        try:
            self.rearm(loop)
        except OSError:
            self._wake_all()

    def rearm(self, loop: Loop | None) -> None:
        """Be told by this loop from now on. Raises OSError if it has no room; then another try may succeed."""
        if self.fd < 0 or loop is None:
            return
        self.stop_direct()
        self.loop = loop
        self.outputs = self.writer is not None
        wanted = (INPUT if self.reader is not None else 0) | (OUTPUT if self.outputs else 0)
        if not wanted:
            self.loop = None
            return
        try:
            loop.arm(self.fd, self._on_change if loop.stays_armed else self._on_single_change, wanted)
        except OSError:
            self.loop = None
            self.outputs = False
            loop.forget(self.fd)
            # Of two that wait for it the other one is not told any more either.
            self._wake_all(but=getcurrent())
            raise

    def stop_direct(self) -> None:
        """Be told by the loop again, instead of the reader; that one waits on, if it does."""
        worker, self.direct = self.direct, None
        if worker is None:
            return
        worker.listens_to = None
        if worker is getcurrent() or worker.dead:
            self.reader = None
        if self.loop is not None:
            self.loop.rearrange(self.fd, self._on_change)

    def break_off(self) -> None:
        """The reader, which calls this, does not wait after all: an exception ended it."""
        self.stop_direct()
        self.reader = None

    def _begin_to_read(self, me: RequestGreenlet) -> None:
        if self.reader is not None and self.reader is not me and not self.reader.dead:
            raise RuntimeError("another greenlet already waits for this socket's input")
        if me.listens_to is not None:
            me.listens_to.stop_direct()
        self.reader = me
        me.awaits = self
        loop = me.hub.loop
        if self.loop is not loop:
            self.rearm(loop)
        if loop is not None and loop.stays_armed and self.writer is None:
            self.direct = me
            me.listens_to = self
            loop.rearrange(self.fd, me.switch)

    def _note(self, events: int) -> None:
        if events != OUTPUT:
            self.is_dry = False
            if events & ~(INPUT | OUTPUT):
                self.has_ended = True

    def _on_change(self, events: int) -> None:
        self._note(events)
        if events != OUTPUT and self.reader is not None:
            self.reader.switch()
        if events != INPUT and self.writer is not None:
            self.writer.switch()

    def _on_single_change(self, events: int) -> None:
        loop, self.loop = self.loop, None
        self._on_change(events)
        is_elsewhere = self.loop is not loop
        if loop is not None and is_elsewhere and (self.reader is not None or self.writer is not None):
            self.follow(loop)

    def _check_time(self, deadline: float | None) -> float:
        now = time.monotonic()
        if deadline is None:
            return now + (self.limit or 0.0)
        if deadline <= now:
            raise TimeoutError("timed out")
        return deadline

    def _wait_in_thread(self, event: int, deadline: float | None) -> None:
        # Not the default one, which needs a descriptor.
        with getattr(selectors, "PollSelector", selectors.SelectSelector)() as selector:
            selector.register(self.fd, event)
            selector.select(None if deadline is None else min(max(0.0, deadline - time.monotonic()), LONGEST_WAIT))
