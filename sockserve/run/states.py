"""The states of a program that serves, and what each means to those that ask from outside: one table.

Rule 1. A state is followed by one of those that the table names. A change to any other is none: a program that stops is
not ready again because a rolling restart ends meanwhile.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Generator, Mapping
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["STATES", "State", "States", "Words"]


class State(enum.Enum):
    """What a program that serves is doing."""

    STARTING = "starting"
    READY = "ready"
    RELOADING = "reloading"
    UPGRADING = "upgrading"
    LAME = "lame"
    """It still serves, and says that no new client should come."""
    DRAINING = "draining"
    STOPPED = "stopped"


class Words(NamedTuple):
    """What a state means to those that ask."""

    notify: Mapping[str, str]
    """The report to systemd (sd_notify(3)), beside STATUS."""
    health: int
    """The HTTP status of ``/ready``."""
    agent: str
    """HAProxy's agent-check: "ready" ends an earlier "drain", as nothing else does."""
    next: frozenset[State]
    """The states that may follow."""


_END = frozenset({State.DRAINING, State.STOPPED})
_SERVES = frozenset({State.RELOADING, State.UPGRADING, State.LAME}) | _END

STATES: Mapping[State, Words] = MappingProxyType(
    {
        State.STARTING: Words({}, 503, "down", frozenset({State.READY}) | _END),
        State.READY: Words({"READY": "1"}, 200, "up ready", _SERVES),
        # Itself too: what asks for a second reload waits for its own answer.
        State.RELOADING: Words({"RELOADING": "1"}, 200, "up ready", _SERVES | {State.READY}),
        State.UPGRADING: Words({"RELOADING": "1"}, 200, "up ready", _SERVES | {State.READY}),
        State.LAME: Words({}, 503, "drain", frozenset({State.READY}) | _END),
        State.DRAINING: Words({"STOPPING": "1"}, 503, "drain", frozenset({State.STOPPED})),
        State.STOPPED: Words({}, 503, "down", frozenset()),
    }
)


class States:
    """The present state of a program, and what hears of each change. In one thread."""

    def __init__(self) -> None:
        self.present = State.STARTING
        self.hears: list[Callable[[State], object]] = []
        """Called with the new state, after each change."""

    def change(self, state: State) -> bool:
        """Go to this state, if the table lets it follow; say whether."""
        if state not in STATES[self.present].next:
            return False
        self.present = state
        for hear in tuple(self.hears):
            hear(state)
        return True

    @contextlib.contextmanager
    def reloading(self) -> Generator[None]:
        """Reload in this block; afterwards it is ready again, whether that succeeded or not."""
        self.change(State.RELOADING)
        try:
            yield
        finally:
            self.change(State.READY)
