"""A worker process as its supervisor sees it: what it was told, what it tells, how it ended."""

from __future__ import annotations

import functools
import os
import signal
import socket
from collections.abc import Callable, Sequence

from sockserve.concurrency.children import Child, fork, ignore
from sockserve.concurrency.prefork.outcomes import Stage
from sockserve.concurrency.prefork.parent_process import ParentProcess
from sockserve.concurrency.prefork.protocol import (
    CUT,
    DRAIN,
    FREE,
    LEAVE,
    RETIRE,
    STALE,
    SUSPEND,
    SUSPENSIONS,
    Orders,
    Page,
    Reader,
    told_since,
)
from sockserve.concurrency.prefork.worker_link import Link
from sockserve.concurrency.prefork.worker_main import be_worker
from sockserve.core.lifecycle import CUT_GRACE
from sockserve.core.loop import Timer
from sockserve.core.taken_signals import is_ignored, take, take_wakeup
from sockserve.core.wake_up import send_wake_up

__all__ = ["KILL", "Step", "WorkerHandle", "cut_now", "drain_within", "leave_within", "retire_within"]

DRAIN_GRACE = 2.0
"""Seconds between the end of a request's input and its cut, for one that had all its time before."""

KILL = b""
"""What a worker cannot fail to hear: SIGKILL."""

Step = tuple[bytes, float | None]
"""What a worker is told, and after how many seconds the next thing; None: that was the last."""


def retire_within(timeout: float | None) -> Sequence[Step]:
    """A worker that others replace: its clients may go on until the time is up, and get an orderly end then."""
    return (RETIRE, timeout), (DRAIN, DRAIN_GRACE), *cut_now()


def leave_within(timeout: float | None) -> Sequence[Step]:
    """Its requests may end by themselves until the time is up."""
    return (LEAVE, timeout), *cut_now()


def drain_within(timeout: float | None) -> Sequence[Step]:
    """Its requests get end-of-file, and have that time for an answer."""
    return (DRAIN, timeout), *cut_now()


def cut_now() -> Sequence[Step]:
    """Its connections are cut; its handlers have a moment to notice."""
    return (CUT, CUT_GRACE), (KILL, None)


class WorkerHandle:
    """A process that serves."""

    child: Child
    stage = Stage.STARTS
    wants_out = False
    """Whether it has asked for a successor."""
    is_leaving = False
    """Whether it accepts no more, or was told so: then its end is expected."""
    has_stopped = False
    """Whether it accepts no more."""
    is_hung = False
    timer: Timer | None = None
    """The next step of its end."""
    step_time = 0.0
    """Seconds from one step to that."""

    def __init__(self, orders: Orders, generation: int, attempt: int, suspensions: int) -> None:
        self.orders = orders
        self.place = orders.worker_id
        self.generation = generation
        """How many rolling restarts came before it."""
        self.attempt = attempt
        """Which of the supervisor's attempts to have workers it belongs to."""
        self.page = Page()
        self.page.numbers[SUSPENSIONS] = suspensions
        self.control, self._theirs = socket.socketpair()
        self.control.setblocking(False)
        # Otherwise socket.setdefaulttimeout() is about the worker's end.
        self._theirs.setblocking(True)
        self._heard: dict[int, int] = {}
        self._reader = Reader()

    def __str__(self) -> str:
        return f"worker {self.place} (process {self.child.pid})"

    @property
    def is_ready(self) -> bool:
        """Whether it serves, or has served."""
        return self.stage is not Stage.STARTS

    @property
    def is_settled(self) -> bool:
        """Whether it has served for some time: what ends it then has nothing to do with its start."""
        return self.stage is Stage.SETTLED

    def start(
        self,
        work: Callable[[Link], None],
        abandon: Callable[[], None],
        began: Callable[[WorkerHandle], None],
        ended: Callable[[WorkerHandle, int], None],
    ) -> None:
        """Make the process, which does ``work()`` after ``abandon()`` has let go of what is its parent's.

        ``began`` is told of it before a signal handler can run, ``ended`` its exit status. Raises OSError.
        """
        parent = ParentProcess()

        def in_parent(pid: int) -> None:
            self.child = Child(pid, functools.partial(ended, self))
            began(self)

        try:
            fork(functools.partial(self._be_child, work, abandon, parent), in_parent)
        except OSError:
            self.control.close()
            raise
        finally:
            self._theirs.close()
            parent.close()

    def _be_child(
        self, work: Callable[[Link], None], abandon: Callable[[], None], parent: ParentProcess, blocked: set[int]
    ) -> None:
        # One of the program's would hear in the supervisor what this worker is told.
        take_wakeup(-1)
        abandon()
        self.control.close()
        for signum in (signal.SIGINT, signal.SIGHUP):
            # A terminal sends them to all at once, and the supervisor tells its workers what they mean.
            if not is_ignored(signum):
                take(signum, ignore)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        be_worker(Link(self._theirs, self.page, self.orders, parent), work)

    def tell(self, command: bytes) -> None:
        """Tell it something, or kill it. No effect on one that has ended."""
        if command == KILL:
            self.child.cut()
            return
        if command in (RETIRE, LEAVE, DRAIN, CUT):
            self.is_leaving = True
        self.page.order(command)
        send_wake_up(self.control, command)

    def free(self, beat: int) -> None:
        """Let it end what has kept its loop from turning since this beat, the last that was seen."""
        self.page.numbers[STALE] = beat
        self.tell(FREE)

    def suspend(self, number: int) -> None:
        """Let it pause, or go on: as the number is odd or even."""
        self.page.numbers[SUSPENSIONS] = number
        self.tell(SUSPEND)

    def has_ended(self, *, waits: bool = False) -> bool:
        """Say whether its process has, without reaping it; ``waits``: return as soon as it has."""
        options = os.WEXITED | os.WNOWAIT | (0 if waits else os.WNOHANG)
        try:
            return os.waitid(os.P_PID, self.child.pid, options) is not None
        except ChildProcessError:
            # Reaped already, or by the kernel, if SIGCHLD is ignored.
            return True

    def hear(self) -> tuple[bytes, bool]:
        """What it told since the last call, and whether it may tell more."""
        told = bytearray()
        while True:
            try:
                data = self.control.recv(4096)
            except BlockingIOError:
                return self._with_words(bytes(told)), True
            except OSError:
                data = b""
            if not data:
                return self._with_words(bytes(told)), False
            told += self._reader.feed(data)

    def _with_words(self, told: bytes) -> bytes:
        # After the socket was emptied: what is said from now on wakes anew.
        return told_since(self.page.words(), self._heard) + told

    def ask_for_stacks(self) -> None:
        """Let it write the stacks of its threads, for ``take_text()``."""
        self.child.send(self.orders.dump_signal)

    def take_text(self) -> str:
        """The stacks that it wrote, as far as they were heard; once."""
        return self._reader.take_text()

    def how_it_ended(self, status: int) -> str:
        """Its exit status, or its signal, in words, and what it said about it."""
        if status >= 0:
            how = f"ended with exit status {status}"
        else:
            names = {signum.value: signum.name for signum in signal.Signals}
            how = f"was killed by {names.get(-status, f'signal {-status}')}"
        cause = self._reader.cause
        return f"{self} {how}" + (f": {cause.decode(errors='replace')}" if cause else "")

    def close(self) -> None:
        """Close this process's descriptors of it."""
        self.control.close()
        self.child.close()

    def abandon(self) -> None:
        """In a process that was forked later: close its copies of the descriptors. Takes no lock."""
        self.control.close()
        self.child.abandon()
