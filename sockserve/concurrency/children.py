"""A forked process: its parent's hold on it, and its own end."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

from sockserve.core.deferral import Deferral
from sockserve.core.taken_signals import raw_signal

__all__ = [
    "DRAIN_AGAIN",
    "POLL_WITHOUT_PIDFD",
    "Child",
    "flush_standard_streams",
    "fork",
    "ignore",
    "leave_process",
    "open_pidfd",
]

Result = TypeVar("Result")

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
held the lock of a stream at the fork, and in the child no thread releases it."""


def fork(in_child: Callable[[set[int]], object], in_parent: Callable[[int], Result]) -> Result:
    """Fork, and return what ``in_parent(pid)`` returns; no signal handler runs before that has returned.

    ``in_child`` gets the signals that were blocked before. It has to unblock the others once they mean what they shall
    mean there; the process ends, with status 1, if it ever returns. What the standard streams and log handlers hold
    back is written before. From any thread. Raises OSError: EAGAIN, ENOMEM (fork(2)).
    """
    # Else the child would write it a second time.
    flush_standard_streams()
    _flush_log_handlers()
    # Blocked for the child; deferred for the parent, because another thread may get a signal whose handler runs here.
    with Deferral():
        blocked = raw_signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        try:
            pid = os.fork()
            if pid == 0:
                try:
                    in_child(blocked)
                finally:
                    os._exit(1)
            return in_parent(pid)
        finally:
            raw_signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class Child:
    """A process that was forked here. Every method may be called from any thread, and in a signal handler."""

    def __init__(self, pid: int, ended: Callable[[int], None]) -> None:
        self.pid = pid
        self.pidfd = open_pidfd(pid)
        self._parent = os.getpid()
        self._ended: Callable[[int], None] | None = ended
        self._drain_again: float | None = None
        self._status: int | None = None
        self._is_reaped = False
        self._tellers: dict[str, object] = {}
        # While it is held neither the process number nor the descriptor can come to mean another process. Held for
        # calls that do not block; a signal handler may interrupt the thread that holds it.
        self._hold = threading.RLock()

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
        """Send it a signal. No effect once it has ended, and in a process that is not its parent."""
        if self._parent != os.getpid():
            return
        with self._hold:
            try:
                if self._status is not None:
                    return
                if self.pidfd is not None:
                    # Unlike the process number it can never mean another process.
                    signal.pidfd_send_signal(self.pidfd, signum)
                elif not self._look():
                    # Another waitpid(-1) of the program may have freed the number: the look tells.
                    os.kill(self.pid, signum)
            except OSError:
                # It has just ended: ESRCH.
                pass

    def has_ended(self) -> bool:
        """Whether the process has ended."""
        with self._hold:
            return self._look()

    def _look(self) -> bool:
        # It stays a zombie, and the number its own, until the status is stored.
        if self._status is not None:
            return True
        try:
            if hasattr(os, "waitid"):
                found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is None:
                    return False
                self._status = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            else:
                # macOS before Python 3.13.
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid == 0:
                    return False
                self._status = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            # Another waitpid(-1), or an ignored SIGCHLD, took the status away.
            self._status = 0
        return True

    @property
    def is_over(self) -> bool:
        """Whether its exit status was passed on."""
        return self._ended is None

    def reap(self) -> bool:
        """Whether the process has ended and this call passed its exit status on.

        What a signal handler raises meanwhile is raised at the end. Each step may be taken again: look, store, reap,
        tell.
        """
        if self.is_over or not self.has_ended():
            return False
        with Deferral():
            return self._finish()

    def _finish(self) -> bool:
        with self._hold:
            if not self._is_reaped:
                try:
                    os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:
                    pass
                self._is_reaped = True
        me = object()
        try:
            # Not to be waited for: the one that tells may be what called this.
            if self._tellers.setdefault("teller", me) is not me or self._ended is None:
                return False
            try:
                self._ended(self._status or 0)
            except KeyboardInterrupt:
                # The second within the deferral: another call tells it.
                raise
            except BaseException:
                self._ended = None
                raise
            # It knows the request, which knows this object: a circle that only the garbage collector would find.
            self._ended = None
            return True
        finally:
            if self._tellers.get("teller") is me:
                self._tellers.clear()

    def close(self, before: Callable[[int], object] | None = None) -> None:
        """Call ``before`` with the descriptor, if there still is one, and close it."""
        with self._hold:
            if self.pidfd is not None:
                if before is not None:
                    before(self.pidfd)
                pidfd, self.pidfd = self.pidfd, None
                os.close(pidfd)

    def abandon(self) -> None:
        """In a process that was forked later: close its copy of the descriptor.

        Takes no lock: another thread of the parent may have held it at the fork, and no thread releases it here.
        """
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


def _flush_log_handlers() -> None:
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
