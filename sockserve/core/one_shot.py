"""An event that is set once, and that a signal handler can wait for."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

from sockserve.seconds import limit_of

__all__ = ["OneShot"]


class OneShot:
    """Set once, waited for by any number of threads, without a lock that two of them share. Every method: any thread.

    ``threading.Event`` takes a lock in ``wait()`` and in ``set()``: a signal handler that waits for an event which the
    thread it interrupted was about to wait for can block for ever. Here every waiter blocks on a lock of its own.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._waiters: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        """Whether ``set()`` was called."""
        return self._is_set

    def set(self) -> None:
        """End all waits, those to come too. Idempotent. From any thread, and in a signal handler."""
        self._is_set = True
        waiters = self._waiters
        while waiters:
            try:
                waiter = waiters[-1]
            except IndexError:
                # Another thread is at it too.
                return
            # Forgotten second: what a signal handler raises between the two makes it be called twice, and not never.
            waiter()
            try:
                waiters.remove(waiter)
            except ValueError:
                pass

    def then(self, callback: Callable[[], object]) -> None:
        """Call back when it is set, in whichever thread sets it; now, if it is. Perhaps more than once."""
        self._waiters.append(callback)
        if self._is_set:
            self.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is set, at most ``timeout`` seconds (None: without limit); say whether it is.

        Raises ValueError for NaN.
        """
        limit = limit_of(timeout, "timeout")
        if self._is_set:
            return True
        waiter = threading.Lock()
        waiter.acquire()
        release = functools.partial(_release, waiter)
        self._waiters.append(release)
        # Again, because set() may have come between the look above and the append.
        if self.is_set():
            return True
        if waiter.acquire(timeout=-1 if limit is None else limit):
            return True
        try:
            self._waiters.remove(release)
        except ValueError:
            # set() came at the last moment.
            return True
        return False


def _release(waiter: threading.Lock) -> None:
    try:
        waiter.release()
    except RuntimeError:
        # Called again.
        pass
