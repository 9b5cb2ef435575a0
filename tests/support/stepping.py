"""Interleavings tried one by one: something else happens at each single step of a call.

What a thread switch or a signal makes happen once in a million runs is thus one of a few hundred tries.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sockserve

__all__ = ["steps"]

PACKAGE = str(pathlib.Path(sockserve.__file__).parent)


class Step:
    """One way to run a call: with ``interfere()`` before its n-th instruction, or line."""

    def __init__(self, number: int, event: str, within: tuple[str, ...]) -> None:
        self.number = number
        self.event = event
        self.within = within
        self.reached = False
        """Whether the call was long enough for this step to come."""
        self.place = ""
        """Where the step was, for the message of a test that fails."""

    def run(self, call: Callable[[], Any], interfere: Callable[[], Any]) -> Any:
        """Return what ``call()`` returns."""
        count = itertools.count()
        pid = os.getpid()

        def trace(frame: types.FrameType, event: str, _: Any) -> Any:
            if os.getpid() != pid:
                # A forked process is not meant.
                sys.settrace(None)
                return None
            if not frame.f_code.co_filename.startswith(PACKAGE):
                return None
            frame.f_trace_opcodes = self.event == "opcode"
            is_meant = event == self.event and frame.f_code.co_filename.startswith(self.within)
            if is_meant and next(count) == self.number:
                self.reached = True
                self.place = f"{frame.f_code.co_qualname}, line {frame.f_lineno}, instruction {frame.f_lasti}"
                interfere()
            return trace

        before = sys.gettrace()
        # CPython 3.12 looks at settrace() whether any frame wants to see instructions.
        sys._getframe().f_trace_opcodes = self.event == "opcode"
        sys.settrace(trace)
        try:
            return call()
        finally:
            sys.settrace(before)

    def __repr__(self) -> str:
        return f"step {self.number}: {self.place}"


def steps(event: str = "opcode", within: Sequence[str] = ("",)) -> Iterator[Step]:
    """Yield one step after the other until one was not reached.

    ``event`` "line" makes a long call quicker to try, and so does ``within``: the rooms of the package that are meant.
    """
    places = tuple(os.path.join(PACKAGE, room) for room in within)
    for number in itertools.count():
        step = Step(number, event, places)
        yield step
        if not step.reached:
            assert number, "not a single step of the package was seen"
            return
