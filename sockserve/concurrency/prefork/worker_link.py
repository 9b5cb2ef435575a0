"""A worker's end of the line to its supervisor: what it tells, and how it shows that its loop turns.

Rule 1. Telling never blocks: a supervisor that does not listen must not keep a worker from its clients.
Rule 2. It shows that its loop turns in memory that both share, so that a thread which holds the interpreter's lock for
ever is found out too. Nothing is shown, and the loop not woken for it, while it waits for a request and nothing is in
progress.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable

from sockserve.concurrency.prefork.parent_process import ParentProcess
from sockserve.concurrency.prefork.protocol import ACTIVE, ASLEEP, AWAKE, READY, STOPPED, Orders, Page, told_since
from sockserve.core.loop import Loop, Source
from sockserve.core.poller import wait_readable
from sockserve.core.taken_signals import take_for_stacks
from sockserve.core.wake_up import send_wake_up

__all__ = ["Link"]


class _Rest(Source):
    """In a loop until its next wait: the last that happens before that."""

    max_wait: float | None = None

    def __init__(self, link: Link, loop: Loop) -> None:
        self._link = link
        self._loop = loop

    def before_wait(self) -> None:
        """Now."""
        self._loop.remove(self)
        self._link.rest_in(self._loop)

    def leave(self) -> None:
        """Let the loop end."""
        self._loop.remove(self)


class Link:
    """A worker's end of the line to its supervisor."""

    def __init__(self, control: socket.socket, page: Page, orders: Orders, parent: ParentProcess | None = None) -> None:
        self.page = page
        self.orders = orders
        self.control = control
        """Where it hears what it is told."""
        self.when_called_off: Callable[[], object] | None = None
        """What the worker does if it is about to begin and may not any more."""
        self.when_let_go: Callable[[], object] | None = None
        """What else has to let go of the memory that both share."""
        self._parent = parent
        self._heard: dict[int, int] = {}
        self._loop: Loop | None = None
        self._is_ready = False

    def beat_in(self, loop: Loop) -> None:
        """Show from now on that this loop turns; the first time makes the worker ready."""
        self._loop = loop
        self.beat()
        if self.orders.worker_timeout is not None:
            loop.call_later(self.orders.worker_timeout / 2, lambda: loop.add(_Rest(self, loop)))

    def rest_in(self, loop: Loop) -> None:
        """Its next wait may be without limit."""
        self.page.sleep()
        # In this order: see Duties.begin_one().
        if self.page.numbers[ACTIVE]:
            self.beat_in(loop)
            return

        def wakes() -> None:
            self.beat_in(loop)
            self.tell(AWAKE)

        loop.after_next_wait(wakes)
        self.tell(ASLEEP)

    def stir(self) -> None:
        """Something is in progress beside the loop that sleeps. From any thread."""
        self.page.beat()
        if self._loop is not None:
            self._loop.wake()

    def beat_between_requests(self) -> None:
        """One turn of the loop may serve many: each has the whole time. No effect in another thread than the loop's."""
        if self._loop is not None and self._loop.thread == threading.get_ident():
            self.page.beat()

    def beat(self) -> None:
        """The loop turns now."""
        self.page.beat()
        if not self._is_ready:
            self._is_ready = True
            if self.page.begin():
                self.tell(READY)
            elif self.when_called_off is not None:
                self.when_called_off()

    def has_stopped(self) -> None:
        """The loop has ended: nothing more is accepted."""
        self.tell(STOPPED)

    def tell(self, message: bytes) -> None:
        """Tell the supervisor; from any thread."""
        self.page.say(message)
        send_wake_up(self.control, message)

    def loop_thread(self) -> int | None:
        """The identity of the thread whose loop beats; None: there is none."""
        return None if self._loop is None else self._loop.thread

    def next_orders(self, limit: float | None = None) -> bytes | None:
        """Wait for what the supervisor orders, at most ``limit`` seconds; None: it has ended. In one thread."""
        if self._parent is None:
            wait_readable(self.control.fileno(), limit)
        elif not self._parent.wait_for(self.control, limit):
            return None
        try:
            if not self.control.recv(4096, socket.MSG_DONTWAIT):
                return None
        except BlockingIOError:
            # The time is over.
            pass
        except OSError:
            # Reset: as end-of-file.
            return None
        return told_since(self.page.orders(), self._heard)

    def write_stacks_on(self, signum: signal.Signals) -> None:
        """Make a signal tell the supervisor the stacks of all threads, whatever they are at."""
        take_for_stacks(signum, self.control.fileno())

    def let_go(self) -> None:
        """In a process that the worker has forked: what it does there is no matter of the supervisor's."""
        self.control.close()
        if self._parent is not None:
            self._parent.close()
        self.page.let_go()
        if self.when_let_go is not None:
            self.when_let_go()
