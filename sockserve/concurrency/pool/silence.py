"""How long parked connections may be silent: queues in which only the first has to be looked at."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

from sockserve.concurrency.pool.record import ParkingRecord
from sockserve.core.active_requests import LiveRequest
from sockserve.core.poller import wait_readable
from sockserve.net.tls import is_tls

__all__ = ["LIMITS_PER_SECOND", "MOST_LIMITS", "Silences", "first", "has_spoken"]

LIMITS_PER_SECOND = 16
"""A limit of silence is rounded up to a multiple of this part of a second."""

MOST_LIMITS = 16
"""Limits whose queues stay when they are empty: to make one anew for each wait costs a microsecond."""


class Silences:
    """The parked connections that have a limit. Any thread may call its methods."""

    def __init__(self) -> None:
        self.queues: dict[float, dict[int, LiveRequest]] = {}
        """For each limit those parked with it, by descriptor, the longest parked first."""
        # Held while a connection is entered or taken out: a queue that is empty may be thrown away.
        self._changing = threading.Lock()

    def enter(self, live: LiveRequest, limit: float) -> float:
        """Count its silence from now on; return when the limit is reached, in seconds of ``time.monotonic()``."""
        record: ParkingRecord = live.parking_record
        # Rounded up, or a program that computes its time-outs would make a queue for each.
        limit = record.limit = math.ceil(limit * LIMITS_PER_SECOND) / LIMITS_PER_SECOND
        record.parked_at = time.monotonic()
        with self._changing:
            try:
                self.queues[limit][record.fd] = live
            except KeyError:
                self.queues[limit] = {record.fd: live}
        return record.parked_at + limit

    def forget(self, record: ParkingRecord) -> None:
        """Count it no longer."""
        with self._changing:
            queue = self.queues.get(record.limit)
            if queue is not None:
                queue.pop(record.fd, None)
                if not queue and len(self.queues) > MOST_LIMITS:
                    # A handler that computes its time-outs may never ask for this one again.
                    del self.queues[record.limit]

    def forked(self) -> None:
        """In a forked child: all of them are the parent's, and one of its threads may hold the lock."""
        self.queues.clear()
        self._changing = threading.Lock()


def first(connections: dict[int, LiveRequest]) -> LiveRequest | None:
    """The one that was entered first, though other threads enter and take out others."""
    while True:
        try:
            return next(iter(connections.values()), None)
        except RuntimeError:
            # Another thread changed it between the two calls.
            continue


def has_spoken(request: Any) -> bool:
    """Whether there is unread input, or the end of it."""
    try:
        if is_tls(request) and request.pending():
            return True
        return wait_readable(request.fileno(), 0)
    except (OSError, ValueError):
        # It cannot be asked: as if it had been silent.
        return False
