"""What a program that serves consists of, whether it serves itself or by worker processes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from sockserve.core.deferral import Deferral
from sockserve.core.events import Observer
from sockserve.core.loop import Loop
from sockserve.run.opening import AnyServer
from sockserve.run.states import States

__all__ = ["DESKS", "Desk", "Program"]

DESKS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {"health": {}, "agent": {}, "control": {"socket_mode": 0o600}}
)
"""The options that say where questions are answered, and what attributes such a server has."""


class Desk(NamedTuple):
    """Where questions of one kind are answered."""

    name: str
    """One of ``DESKS``."""
    servers: Sequence[AnyServer]
    """Whose sockets listen. They are not served as servers."""


class Program(NamedTuple):
    """One ``serve()``."""

    servers: Sequence[AnyServer]
    loop: Loop
    """Of the thread that called it: it hosts the servers, or the supervisor."""
    states: States
    desks: Sequence[Desk]
    """Only if worker processes serve."""
    observers: Sequence[Observer]
    ready: Callable[[], object]
    """Called once, when it serves."""
    signals: Deferral
    early: Sequence[signal.Signals]
    """Those that asked to stop before it served."""
    handles_signals: bool
