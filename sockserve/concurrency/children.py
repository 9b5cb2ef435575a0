"""A forked process: its parent's hold on it, and its own end."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from sockserve.core.taken_signals import raw_signal

__all__ = [
    "DRAIN_AGAIN",
    "HELD_BACK",
    "POLL_WITHOUT_PIDFD",
    "Child",
    "flush_log_handlers",
    "flush_standard_streams",
    "ignore",
    "leave_process",
    "open_pidfd",
]

HELD_BACK = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGTTIN", "SIGTTOU", "SIGQUIT", "SIGXCPU")
    if hasattr(signal, name)
)
"""Signals whose handlers must not run between fork(2) and what each side has to do at once after it."""

POLL_WITHOUT_PIDFD = 0.02
"""Seconds between two looks at the children where the kernel cannot signal their end by a descriptor."""

DRAIN_AGAIN = 0.1
"""Seconds after which a child that is to drain is told once more. A signal that comes just before recv(2) does not
interrupt it, and its Python handler would run only when the client has spoken; the next signal does interrupt it."""

WRITE_AT_ONCE = {type(logging.lastResort), logging.StreamHandler, logging.FileHandler, logging.NullHandler}
"""Log handlers that flush after each record. To flush them once more is not free in a process that has just forked, or
was just forked: what either touches first, the kernel copies."""

FLUSH_LIMIT = 10.0
"""Seconds in which a child's output has to get out at its end, if its parent had other threads: one of them may have
held the lock of a stream at the fork, and in the child nobody releases it."""


class Child:
    """A process that serves one request."""

    def __init__(self, pid: int, ended: Callable[[int], None]) -> None:
        self.pid = pid
        self.pidfd = open_pidfd(pid)
        self._ended = ended
        self._drain_again: float | None = None
        self._is_reaped = False
        self._reaping = threading.Lock()

    def drain(self) -> None:
        """SIGTERM: the child makes its client's input end."""
        self._drain_again = time.monotonic() + DRAIN_AGAIN
        self.send(signal.SIGTERM)

    @property
    def drains(self) -> bool:
        """Whether it was told to drain, and ``remind()`` is to be called until it has ended."""
        return self._drain_again is not None

    def remind(self) -> None:
        """Tell it once more to drain, if it was told and some time has passed since."""
        if self._drain_again is not None and time.monotonic() >= self._drain_again:
            self.drain()

    def cut(self) -> None:
        """SIGKILL."""
        self.send(signal.SIGKILL)

    def send(self, signum: int) -> None:
        """Send it a signal. No effect once it was reaped."""
        pidfd = self.pidfd
        try:
            if pidfd is not None:
                # Unlike the process id it can never mean another process.
                signal.pidfd_send_signal(pidfd, signum)
            elif not self._is_reaped:
                os.kill(self.pid, signum)
        except OSError:
            # Reaped in this moment: ESRCH, or EBADF of its descriptor.
            pass

    def reap(self) -> bool:
        """Whether the process has ended and this call reaped it; then its exit status was passed on."""
        # Not to be waited for: a signal handler may have interrupted whoever holds it.
        if not self._reaping.acquire(blocking=False):
            return False
        try:
            if self._is_reaped:
                return False
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                # Somebody else's waitpid(-1), or an ignored SIGCHLD, took the status away.
                pid, status = self.pid, 0
            self._is_reaped = pid != 0
        finally:
            self._reaping.release()
        if not self._is_reaped:
            return False
        ended = self._ended
        # It knows the request, which knows this object: a circle that only the garbage collector would find.
        del self._ended
        ended(os.waitstatus_to_exitcode(status))
        return True

    def close(self) -> None:
        """Close the descriptor."""
        pidfd, self.pidfd = self.pidfd, None
        if pidfd is not None:
            os.close(pidfd)


def leave_process(status: int, *, is_alone: bool = False) -> NoReturn:
    """End a forked process: what it wrote is flushed, if that is possible in a moment, and nothing else runs.

    ``is_alone``: there was no other thread at the fork, nor since; then it takes as long as it takes.
    """
    try:
        if not is_alone:
            # In this order: a timer of the handler's own must not kill the child.
            signal.setitimer(signal.ITIMER_REAL, FLUSH_LIMIT)
            raw_signal.signal(signal.SIGALRM, raw_signal.SIG_DFL)
            raw_signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        flush_standard_streams()
        if _handlers_that_hold_back():
            logging.shutdown()
    finally:
        os._exit(status)


def open_pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends (pidfd_open(2)); None where there is none to be had."""
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        # ENOSYS before Linux 5.3; EPERM in some sandboxes; EMFILE.
        return None


def flush_log_handlers() -> None:
    """Write what log handlers hold back: a child must not write it a second time."""
    for handler in _handlers_that_hold_back():
        try:
            handler.flush()
        except (OSError, ValueError):
            # A broken pipe, or closed: as logging.shutdown().
            pass


def _handlers_that_hold_back() -> list[logging.Handler]:
    # As logging.shutdown() finds them.
    references: list[Callable[[], logging.Handler | None]] = list(logging._handlerList)  # type: ignore[attr-defined]  # noqa: SLF001
    handlers = [reference() for reference in references]
    return [handler for handler in handlers if handler is not None and type(handler) not in WRITE_AT_ONCE]


def flush_standard_streams() -> None:
    """Write what this process has printed, or a child would write it again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            # None without a console, a broken pipe, or closed.
            pass


def ignore(_signum: int) -> None:
    """A handler that does nothing. Not SIG_IGN, which programs that a handler starts would inherit."""
