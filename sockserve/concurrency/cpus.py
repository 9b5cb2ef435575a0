"""How many CPUs there are for this process."""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["cpu_count"]


def cpu_count() -> int:
    """How many CPUs this process may use (sched_getaffinity(2))."""
    counted: Callable[[], int | None] | None = getattr(os, "process_cpu_count", None)
    if counted is not None:
        # Since Python 3.13; obeys -X cpu_count too.
        return counted() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
