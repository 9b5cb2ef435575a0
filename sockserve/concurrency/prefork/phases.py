"""The phases of a supervisor's ``run()``: what it does about its workers, and what leads from one phase to the next.

Rule 1. A phase is changed by one of the changes below and by nothing else. What a change does not name stays.
Rule 2. A stop is final: no ``drain()`` that comes later, and no ``resume()``, makes workers again.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

from sockserve.concurrency.prefork.worker_handle import Step, cut_now, drain_within
from sockserve.core.one_shot import OneShot
from sockserve.errors import CrashLoopError

__all__ = ["DRAIN", "END", "GIVE_UP", "RESUME", "SHUTDOWN", "STOP", "Phase", "Run"]


class Phase(enum.Enum):
    """What a supervisor does about its workers."""

    KEEPS = enum.auto()
    """Workers that end are replaced."""
    STOPS = enum.auto()
    """No worker shall accept any more; ``run()`` returns when none does, and leaves those that still serve to end()."""
    EMPTIES = enum.auto()
    """All were told to end. Then there is no worker until a ``resume()``."""
    ENDS = enum.auto()
    """All were told to end. ``run()`` returns when none is left."""
    DRAINS = enum.auto()
    """As ENDS, by ``stop()``: the next ``stop()`` cuts."""


Change: TypeAlias = Mapping[Phase, Phase]

SHUTDOWN: Change = MappingProxyType({Phase.KEEPS: Phase.STOPS})
"""``shutdown()`` of the server: ``is_to_stop()`` is true."""

STOP: Change = MappingProxyType(dict.fromkeys(Phase, Phase.DRAINS))
"""``stop()``, which is what SIGTERM calls."""

DRAIN: Change = MappingProxyType({Phase.KEEPS: Phase.EMPTIES, Phase.STOPS: Phase.EMPTIES})
"""``drain()`` of the server."""

RESUME: Change = MappingProxyType({Phase.EMPTIES: Phase.KEEPS})
"""It is not suspended any more."""

END: Change = MappingProxyType({Phase.KEEPS: Phase.ENDS, Phase.STOPS: Phase.ENDS})
"""``end()``, which is what ``server_close()`` calls."""

GIVE_UP: Change = MappingProxyType({**END, Phase.EMPTIES: Phase.ENDS})
"""Workers end as soon as they begin, again and again."""

ENDING = frozenset({Phase.EMPTIES, Phase.ENDS, Phase.DRAINS})
"""The phases in which every worker was told to end."""


class Run:
    """One ``run()`` of a supervisor: its phase, and what it was asked for. Used in the supervisor's thread alone."""

    def __init__(
        self, wanted: int, is_to_stop: Callable[[], bool] = bool, is_suspended: Callable[[], bool] = bool
    ) -> None:
        self.phase = Phase.KEEPS
        self.wanted = wanted
        """How many workers there shall be."""
        self.is_to_stop = is_to_stop
        self.is_suspended = is_suspended
        self.steps: Sequence[Step] | None = None
        """How all workers shall end, from the next turn on."""
        self.waiting: list[OneShot] = []
        """What is set when no worker is left."""
        self.is_lame = False
        """Whether a stop was announced that is to come later."""
        self.until_empty = False
        """Whether the innermost loop was run by ``end()``: it is left when no worker is left, in any phase."""
        self.error: CrashLoopError | None = None

    @property
    def is_ending(self) -> bool:
        """Whether every worker was told to end: its end is no news."""
        return self.phase in ENDING

    def want(self, more: int) -> None:
        """Let there be so many workers more, or less, but always one."""
        self.wanted = max(1, self.wanted + more)

    def change(self, by: Change) -> bool:
        """Go to the phase that this change leads to; say whether that is another one."""
        before, self.phase = self.phase, by.get(self.phase, self.phase)
        return self.phase is not before

    def stop(self, drain_timeout: float | None) -> None:
        """Drain the workers; asked for once more, cut them."""
        self.steps = drain_within(drain_timeout) if self.change(STOP) else cut_now()

    def end(self, by: Change, steps: Sequence[Step]) -> None:
        """Let all workers end in these steps."""
        self.change(by)
        self.steps = steps

    def has_emptied(self) -> bool:
        """No worker is left: tell it to what waits for that, and say whether the loop is to be left."""
        while self.waiting:
            self.waiting.pop().set()
        return self.until_empty or self.phase is not Phase.EMPTIES or self.is_to_stop()
