"""Times in seconds: what a program may give, and what the system's waits can take.

Rule 1. A time means what it says: a negative one is over already, an infinite one never ends, and so does one that is
longer than the system can count. NaN is a mistake: ValueError, before anything has happened.
"""

from __future__ import annotations

import threading
from typing import Any

__all__ = ["LONGEST_WAIT", "check_times", "limit_of", "socket_limit_of"]

LONGEST_WAIT = 86400.0 * 24
"""Seconds of one wait at most: poll(2), epoll_wait(2) and ``socket.settimeout()`` take milliseconds as a C int."""


def limit_of(seconds: float | None, name: str = "a time") -> float | None:
    """Give what ``Lock.acquire()`` or ``Thread.join()`` can wait: at least 0, or None for no limit. ValueError: NaN."""
    if seconds is None or seconds > threading.TIMEOUT_MAX:
        return None
    if seconds != seconds:  # noqa: PLR0124 - NaN, of any class of numbers
        raise ValueError(f"{name} must be a number of seconds, or None: {seconds!r}")
    return max(0.0, seconds)


def socket_limit_of(seconds: float | None) -> float | None:
    """Give what ``settimeout()`` takes: the same number, or None from ``LONGEST_WAIT`` on, as for no limit."""
    return None if seconds is not None and seconds >= LONGEST_WAIT else seconds


ATTRIBUTES = ("timeout", "drain_timeout", "handshake_timeout", "idle_timeout", "slow_handler_warning", "worker_timeout")
"""The times of a server, attributes of its class or instance."""


def check_times(server: Any) -> None:
    """Raise ValueError if one of a server's times is NaN. Called when it begins to serve."""
    for name in ATTRIBUTES:
        seconds = getattr(server, name, None)
        # A program may mean something of its own by such a name.
        if isinstance(seconds, float):
            limit_of(seconds, f"{type(server).__name__}.{name}")
