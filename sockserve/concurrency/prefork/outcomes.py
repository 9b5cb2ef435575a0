"""What the end of a worker means for its place and for the supervisor: a table."""

from __future__ import annotations

import enum
import signal
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["Outcome", "Stage", "outcome_of"]


class Stage(enum.Enum):
    """How far a worker has come in its life."""

    STARTS = enum.auto()
    READY = enum.auto()
    """It serves."""
    SETTLED = enum.auto()
    """It has served for ``SETTLED`` seconds: what ends it now has nothing to do with its start."""


class Outcome(enum.Enum):
    """What the supervisor does about a worker that has ended."""

    EXPECTED = enum.auto()
    """It was told to end, or ended by itself in order. Nothing is to be done."""
    REPLACED = enum.auto()
    """It has done its work. The next worker begins at once."""
    EARLY = enum.auto()
    """It was killed from outside, or by the kernel for want of memory. The next worker begins, later each time if it
    comes in a row; that is no reason to give up."""
    NOT_STARTED = enum.auto()
    """Its start failed: of its place, of this rolling restart, or of all."""
    SHORT_LIVED = enum.auto()
    """It failed as soon as it served. It counts as a failed start until a worker has settled."""


OUTCOMES: Mapping[tuple[Stage, bool], Outcome] = MappingProxyType(
    {
        # stage, and whether a SIGKILL ended it that is none of the supervisor's
        (Stage.STARTS, False): Outcome.NOT_STARTED,
        (Stage.STARTS, True): Outcome.EARLY,
        (Stage.READY, False): Outcome.SHORT_LIVED,
        (Stage.READY, True): Outcome.EARLY,
        (Stage.SETTLED, False): Outcome.REPLACED,
        (Stage.SETTLED, True): Outcome.REPLACED,
    }
)


def outcome_of(stage: Stage, status: int, *, is_expected: bool, was_hung: bool) -> Outcome:
    """What the end of a worker means that had come so far.

    ``status``: its exit status, or the negative number of the signal. ``was_hung``: the supervisor itself killed it.
    """
    if is_expected:
        return Outcome.EXPECTED
    return OUTCOMES[stage, status == -signal.SIGKILL and not was_hung]
