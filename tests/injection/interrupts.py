"""A signal at the k-th place where CPython may run its Python handler."""

from __future__ import annotations

import contextlib
import dis
import os
import pathlib
import signal
import sys
import threading
import types
from typing import Any, Self

import sockserve

__all__ = ["Interrupt"]

PACKAGE = str(pathlib.Path(sockserve.__file__).parent)

FOLLOWED = (PACKAGE, contextlib.__file__)
"""Files in whose frames places are counted: the package's, and that of its ``with`` blocks."""

ALSO_FOLLOWED = (threading.Thread.start.__code__,)
"""The same. Not a Condition's methods: an exception there comes out as the RuntimeError of a lock that is not held."""


class Interrupt:
    """Raises a signal in the main thread at the k-th place; 0: only counts them.

    CPython looks for signals when a function begins, after a call of a C function, and when a loop jumps back. A call
    of a Python function looks when that one begins, and not once more after it.
    """

    def __init__(self, number: int, signum: signal.Signals = signal.SIGINT, *, within_handler: bool = False) -> None:
        self.number = number
        self.signum = signum
        self.count = 0
        self.place = ""
        """Where the signal came; empty: it did not."""
        self._within_handler = within_handler
        """Whether only places count while a handler of the package runs for an earlier signal."""
        self._handler: types.FrameType | None = None
        self._before: dict[types.FrameType, str | None] = {}
        self._pid = os.getpid()

    def active(self) -> Self:
        """Count in the body of a ``with``."""
        return self

    def __enter__(self) -> None:
        # CPython 3.12 looks at settrace() whether any frame wants to see instructions.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self._trace)

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(None)
        self._before.clear()

    def _trace(self, frame: types.FrameType, event: str, _: Any) -> Any:
        if os.getpid() != self._pid:
            # A forked process is not meant.
            sys.settrace(None)
            return None
        if event == "call":
            caller = frame.f_back
            if caller in self._before and frame.f_code.co_name != "__init__":
                self._before[caller] = None
            if not frame.f_code.co_filename.startswith(FOLLOWED) and frame.f_code not in ALSO_FOLLOWED:
                return None
            if self._within_handler and self._handler is None and _is_handler(frame.f_code):
                self._handler = frame
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            self._before[frame] = "RESUME" if frame.f_lasti <= 6 else None
        elif event == "return":
            self._before.pop(frame, None)
            if frame is self._handler:
                self._within_handler = self._handler = None
                self.number = -1
        elif event == "opcode":
            before = self._before.get(frame)
            operation = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            looks = operation.startswith("CALL") or operation == "JUMP_BACKWARD"
            self._before[frame] = operation if looks else None
            if before and (not self._within_handler or self._handler is not None):
                self._reach(frame, before)
        return self._trace

    def _reach(self, frame: types.FrameType, operation: str) -> None:
        self.count += 1
        if self.count == self.number:
            file = pathlib.Path(frame.f_code.co_filename).name
            self.place = f"{frame.f_code.co_qualname} ({file}:{frame.f_lineno}, after {operation})"
            signal.raise_signal(self.signum)


def _is_handler(code: types.CodeType) -> bool:
    """Whether it is what the package gives to signal.signal()."""
    return code.co_name == "<lambda>" and code.co_filename.endswith(("signals.py", "prefork.py"))
