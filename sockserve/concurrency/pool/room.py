"""Descriptors for newcomers, when there are none left: the connections parked longest are closed for them."""

from __future__ import annotations

import math
import threading
import time

from sockserve.concurrency.pool.parking import Parking
from sockserve.log import log

__all__ = ["Room"]

ROOM = 16
"""Connections closed at once when descriptors have run out: a little more than the one that is asked for."""

ROOM_WAIT = 0.05
"""Seconds that a worker waits at most for another one's closing, before it tries to accept again."""

ROOM_LOG_INTERVAL = 60.0
"""Seconds between two lines in the log about that."""


class Room:
    """Makes room among the parked. For workers."""

    def __init__(self, parking: Parking) -> None:
        self._parking = parking
        self._making = threading.Lock()
        self._said_at = -math.inf

    def make(self) -> bool:
        """Close some of those that have been parked longest; say whether there were.

        If another worker is at it, what it closes is enough for both; then the answer is true as well.
        """
        if not self._making.acquire(blocking=False):
            if self._making.acquire(timeout=ROOM_WAIT):
                self._making.release()
            return True
        try:
            return self._close_longest_parked() > 0
        finally:
            self._making.release()

    def _close_longest_parked(self) -> int:
        parking = self._parking
        closed = 0
        while closed < ROOM and (live := parking.longest_parked()) is not None:
            if parking.claim(live):
                closed += 1
                parking.end(live)
        if closed and time.monotonic() - self._said_at > ROOM_LOG_INTERVAL:
            self._said_at = time.monotonic()
            text = "%s: out of descriptors: closing the connections that have been parked longest"
            log.warning(text, parking.server)
        return closed

    def forked(self) -> None:
        """In a forked child, where no thread of the parent's gives its lock back."""
        self._making = threading.Lock()
