"""Where workers sit that would only fight for the interpreter's lock."""

from __future__ import annotations

import contextlib
import threading

__all__ = ["Bench", "Seat"]


class Seat:
    """One worker's. Taken when it is made, so that the next to take it waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, limit: float) -> bool:
        """Wait until ``free()``, at most ``limit`` seconds (-1: without limit); false: the time is up."""
        return self._lock.acquire(timeout=limit)

    def free(self) -> None:
        """Let the worker go on; if it does not wait, it will not wait the next time."""
        with contextlib.suppress(RuntimeError):
            # RuntimeError: it is free already.
            self._lock.release()


class Bench:
    """Workers that the coordinator asked to sit down, until it calls them."""

    # Lists and not numbers: append(), pop() and remove() are atomic, with and without the GIL.

    def __init__(self) -> None:
        self.seated: list[Seat] = []
        self.asked: list[None] = []
        """As many as are to sit down, and have not done so."""
        self._is_closed = False

    # for the coordinator

    def ask(self, count: int) -> None:
        """Ask so many workers, whichever are done first, to sit down."""
        self.asked += [None] * count

    def call(self, count: int) -> None:
        """Let so many get up. Those that were asked, and still stand, need not sit down."""
        # In this order: a worker sits down first, and looks whether it is to second.
        for _ in range(min(count, len(self.asked))):
            try:
                self.asked.pop()
            except IndexError:
                break
            count -= 1
        for _ in range(count):
            try:
                seat = self.seated.pop()
            except IndexError:
                return
            seat.free()

    def call_all(self) -> None:
        """Let all get up. From any thread."""
        self.asked.clear()
        while self.seated:
            self.call(1)

    def close(self) -> None:
        """Let all get up, and none sit down from now on. From any thread."""
        self._is_closed = True
        self.call_all()

    # for workers

    def sit(self, seat: Seat, limit: float) -> bool:
        """Sit for as long as the coordinator wants, if it has asked; false: for ``limit`` seconds, in vain."""
        self.seated.append(seat)
        was_called = False
        try:
            was_called = not self._is_asked() or seat.wait(limit)
        finally:
            try:
                self.seated.remove(seat)
            except ValueError:
                # If it was called in the moment in which it got up by itself, that is over.
                if seat.wait(0):
                    was_called = True
        return was_called

    def _is_asked(self) -> bool:
        if self._is_closed:
            return False
        try:
            self.asked.pop()
        except IndexError:
            return False
        return True
