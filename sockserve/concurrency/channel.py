"""A descriptor that workers wait for: what its loop has told of it, and who waits.

Rule 1. A loop tells of each change once (edge-triggered): what nobody waits for is counted, and not lost.
Rule 2. Whoever is not a worker waits as for any other socket, with its thread.
"""

from __future__ import annotations

import errno
import math
import os
import selectors
import time

from sockserve.concurrency.hub import Worker, getcurrent
from sockserve.core.loop import INPUT, OUTPUT, Loop

__all__ = ["Channel"]


class Channel:
    """One open descriptor; it is not closed with the channel."""

    __slots__ = ("changes", "dry_at", "fd", "limit", "loop", "outputs", "reader", "writer")

    def __init__(self, fd: int, limit: float | None) -> None:
        self.fd = fd
        """-1 when closed."""
        self.limit = limit
        """The socket's time-out, in the words of ``socket.settimeout()``."""
        self.changes: float = 0
        """How often the loop told of input; not a number, which equals nothing, when it told of an end."""
        self.dry_at: float = -1
        """What ``changes`` was before a read that took all there was: while it still is, there is no more."""
        self.loop: Loop | None = None
        """The loop that it is armed in."""
        self.outputs = False
        """Whether it is armed for output too."""
        self.reader: Worker | None = None
        self.writer: Worker | None = None

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
        if type(me) is not Worker:
            self._wait_in_thread(selectors.EVENT_READ, deadline)
            return deadline
        if self.reader is not None and self.reader is not me and not self.reader.dead:
            raise RuntimeError("another greenlet already waits for this socket's input")
        self.reader = me
        me.awaits = self
        hub = me.hub
        if self.loop is not hub.loop:
            self.rearm(hub.loop)
        if deadline is None:
            # As pause() does: for a connection that waits for its next request every call counts.
            hub.switch()
        else:
            me.pause(deadline)
        self.reader = None
        if self.fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return deadline

    def wait_output(self, deadline: float | None = None) -> float | None:
        """Wait until it takes more output; else as ``wait_input()``."""
        me = getcurrent()
        if self.limit is not None:
            deadline = self._check_time(deadline)
        if type(me) is not Worker:
            self._wait_in_thread(selectors.EVENT_WRITE, deadline)
            return deadline
        if self.writer is not None and self.writer is not me and not self.writer.dead:
            raise RuntimeError("another greenlet already waits to send to this socket")
        self.writer = me
        me.awaits = self
        loop = me.hub.loop
        if self.loop is not loop or not self.outputs:
            self.rearm(loop)
        me.pause(deadline)
        self.writer = None
        if self.fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return deadline

    def close(self) -> None:
        """The descriptor is about to be closed: whoever waits gets an error. From any thread."""
        fd, self.fd = self.fd, -1
        if self.loop is not None:
            self.loop.forget(fd)
        for worker in (self.reader, self.writer):
            if worker is not None:
                worker.hub.resume(worker)

    def release(self) -> int:
        """As ``close()``, of a descriptor that stays open; return it."""
        fd, loop = self.fd, self.loop
        if loop is not None:
            loop.unwatch(fd)
        self.close()
        return fd

    def rearm(self, loop: Loop | None) -> None:
        """Be told by this loop from now on."""
        if self.fd < 0 or loop is None:
            return
        self.loop = loop
        self.outputs = self.writer is not None
        wanted = (INPUT if self.reader is not None else 0) | (OUTPUT if self.outputs else 0)
        if wanted:
            loop.arm(self.fd, self._on_change if loop.stays_armed else self._on_single_change, wanted)
        else:
            self.loop = None

    def _on_change(self, events: int) -> None:
        if events == INPUT:
            self.changes += 1
            reader = self.reader
            if reader is not None:
                reader.switch()
            return
        if events != OUTPUT:
            self.changes = self.changes + 1 if events == INPUT | OUTPUT else math.nan
            if self.reader is not None:
                self.reader.switch()
        if self.writer is not None:
            self.writer.switch()

    def _on_single_change(self, events: int) -> None:
        loop, self.loop = self.loop, None
        self._on_change(events)
        if self.loop is not loop and (self.reader is not None or self.writer is not None):
            self.rearm(loop)

    def _check_time(self, deadline: float | None) -> float:
        now = time.monotonic()
        if deadline is None:
            return now + (self.limit or 0.0)
        if deadline <= now:
            raise TimeoutError("timed out")
        return deadline

    def _wait_in_thread(self, event: int, deadline: float | None) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.fd, event)
            selector.select(None if deadline is None else max(0.0, deadline - time.monotonic()))
