"""A descriptor that greenlets wait for: what its loop has told of it, and which greenlets wait.

Rule 1. A loop tells of each change once (edge-triggered): what no greenlet waits for is noted, and not lost.
Rule 2. Code that runs outside of a RequestGreenlet waits as for any other socket: it blocks its thread.
Rule 3. A greenlet that waits for input is switched to by the loop itself, with the events as the switch's value, until
it pauses for anything else: the requests of a kept connection then need no call of the channel.
Rule 4. A greenlet that always finds the descriptor ready gives its turn away all the same, after ``TURN``.

``close()`` and ``release()`` may be called in any thread; all else in the thread that reads or writes.
"""

from __future__ import annotations

import errno
import os
import selectors
import time
from typing import Any

from sockserve.concurrency.cooperative.request_greenlet import RequestGreenlet, current_request_greenlet, getcurrent
from sockserve.core.loop import INPUT, OUTPUT, Loop
from sockserve.seconds import LONGEST_WAIT

__all__ = ["FEW", "INPUT", "Channel"]

FEW = 8
"""Operations without a wait, after which ``share()`` looks at the clock: a short request has fewer, and saves that."""

TURN = 0.005
"""Seconds after which a greenlet that need not wait gives its turn away: as long as CPython lets a thread run."""


class Channel:
    """One open descriptor; ``close()`` leaves the closing of it to the caller."""

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
        """The socket's time-out, as ``socket.settimeout()`` takes it: seconds, None or 0."""
        self.is_dry = False
        """Whether a read took all there was, and the loop has told of no more since: the next read waits first."""
        self.has_ended = False
        """Whether the loop told of an end: it tells of nothing more, so that a read must not wait."""
        self.loop: Loop | None = None
        """The loop that it is armed in."""
        self.outputs = False
        """Whether it is armed for output as well as input."""
        self.reader: RequestGreenlet | None = None
        """The greenlet that waits for input."""
        self.writer: RequestGreenlet | None = None
        """The greenlet that waits for output."""
        self.direct: RequestGreenlet | None = None
        """The reader, if the loop switches straight to it (rule 3); also between two waits."""
        self.unwaited = 0
        """Operations since the greenlet last waited, as far as is known here; above FEW each calls ``share()``."""
        self.turn = -1
        """The loop's turn in which ``share()`` last looked at the clock."""
        self.turn_ends = 0.0
        """When that is due again, on the clock of ``time.monotonic()``."""

    def share(self) -> None:
        """Give the turn away if the caller has had it for ``TURN``. Called before an operation that may not wait."""
        now = time.monotonic()
        if now < self.turn_ends:
            return
        me = current_request_greenlet()
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
        """Return when an operation that begins now has to end; None: never."""
        return time.monotonic() + self.limit if self.limit else None

    def wait_input(self, deadline: float | None = None) -> float | None:
        """Wait for more input, for the socket's time-out or until ``deadline``, which is returned for the next wait.

        Raises TimeoutError; OSError (EBADF) if the descriptor is closed; RuntimeError if another greenlet waits for it.
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
        """Note what the loop told the reader with its turn. Raises OSError (EBADF) if it was closed meanwhile."""
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
        """Note that a read took all there was: the loop tells what comes from now on."""
        me = getcurrent()
        # In another thread than the loop's, the loop may tell of more at this moment: that would be overwritten.
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
        """Let the greenlets that wait get an error (EBADF): the descriptor is about to be closed. In any thread."""
        fd, self.fd = self.fd, -1
        if self.loop is not None:
            self.loop.forget(fd)
        if self.direct is getcurrent():
            # The reader closes its own socket, and so does not wait.
            self.stop_direct()
        self._wake_all()

    def _wake_all(self, but: object = None) -> None:
        for each in (self.reader, self.writer):
            if each is not None and each is not but:
                each.hub.resume(each)

    def release(self) -> int:
        """As ``close()``, for a descriptor that stays open; return it."""
        fd, loop = self.fd, self.loop
        if loop is not None:
            loop.unwatch(fd)
        self.close()
        return fd

    def follow(self, loop: Loop | None) -> None:
        """Be told by this loop from now on. If that fails, the greenlets that wait get a turn, and raise the error.

        None: stop for ever, in a forked child.
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
        """Be told by this loop from now on. Raises OSError if it has no room (ENOSPC, ENOMEM): try again later."""
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
            # The other greenlet, which waits as well, would not be told any more either: it has to try for itself.
            self._wake_all(but=getcurrent())
            raise

    def stop_direct(self) -> None:
        """Have the loop tell this channel again, and not the reader, which goes on waiting if it does."""
        reader, self.direct = self.direct, None
        if reader is None:
            return
        reader.listens_to = None
        if reader is getcurrent() or reader.dead:
            self.reader = None
        if self.loop is not None:
            self.loop.rearrange(self.fd, self._on_change)

    def break_off(self) -> None:
        """End the wait of the reader, which calls this: an exception came instead of a turn."""
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
        # Not selectors.DefaultSelector: epoll needs a descriptor, and there may be none left.
        with getattr(selectors, "PollSelector", selectors.SelectSelector)() as selector:
            selector.register(self.fd, event)
            selector.select(None if deadline is None else min(max(0.0, deadline - time.monotonic()), LONGEST_WAIT))
