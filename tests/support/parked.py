"""Pools whose clients are parked, and handlers whose steps a test can wait for."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import sockserve

__all__ = ["Steps", "pool", "with_own_steps"]

LOOPBACK = ("127.0.0.1", 0)


class Steps:
    """What a handler tells the test, and what it waits for."""

    begun: threading.Semaphore
    opened: threading.Event
    finished: threading.Semaphore


HandlerT = TypeVar("HandlerT", bound=type[Steps])


def with_own_steps(handler: HandlerT) -> HandlerT:
    """Derive a handler class whose events no other test has; set ``opened`` in the end, whatever happened."""
    steps = {"begun": threading.Semaphore(0), "opened": threading.Event(), "finished": threading.Semaphore(0)}
    derived: Any = type(handler.__name__, (handler,), steps)
    return derived  # type: ignore[no-any-return]


def pool(handler: Any, **attributes: Any) -> Any:
    """Make a server with these attributes."""
    return type("Server", (sockserve.ThreadPoolTCPServer,), attributes)(LOOPBACK, handler)
