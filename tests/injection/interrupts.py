"""A signal at the k-th place where CPython may run its Python handler."""

from __future__ import annotations

import contextlib
import dis
import linecache
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

START = threading.Thread.start.__code__
"""The same, from the moment on in which the thread may run. An exception before that leaves it in a list of starting
threads for ever; in a Condition's methods one comes out as the RuntimeError of a lock that is not held."""

TURNS = 3
"""Of a loop only so many turns are tried."""

HANDLER = "take.<locals>.ours"
"""What the package gives to signal.signal()."""


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
        self._pid = os.getpid()
        self._is_active = False
        self._turns: dict[int, dict[int, int]] = {}
        """For each frame how often it came to each of its instructions."""
        self._looker: Any = _Monitor(self) if hasattr(sys, "monitoring") else _Tracer(self)

    def active(self) -> Self:
        """Count in the body of a ``with``, in the main thread."""
        return self

    def __enter__(self) -> None:
        self._is_active = True
        self._looker.begin()

    def __exit__(self, *exc_info: object) -> None:
        self._is_active = False
        self._looker.end()

    def reach(self, frame: types.FrameType, after: str) -> None:
        """Count a place, in a frame that is followed. Raises what the signal's handler raises."""
        if not self._is_active or os.getpid() != self._pid:
            # A forked process is not meant, nor the return of a call that began in the body: a greenlet's switch.
            return
        if frame.f_code is START:
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
            if "_start_" not in line and "_started.wait" not in line:
                return
        if self._within_handler and not _is_in_handler(frame):
            return
        if after == "RESUME":
            self._turns[id(frame)] = {}
        turns = self._turns.setdefault(id(frame), {})
        turns[frame.f_lasti] = turns.get(frame.f_lasti, 0) + 1
        if turns[frame.f_lasti] > TURNS:
            return
        self.count += 1
        if self.count == self.number:
            file = pathlib.Path(frame.f_code.co_filename).name
            self.place = f"{frame.f_code.co_qualname} ({file}:{frame.f_lineno}, after {after})"
            signal.raise_signal(self.signum)


def _is_in_handler(frame: types.FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_qualname == HANDLER:
            return True
        frame = frame.f_back
    return False


def _is_followed(code: types.CodeType) -> bool:
    return code is START or code.co_filename.startswith(FOLLOWED)


class _Tracer:
    """Looks for places by sys.settrace(), one instruction after the other."""

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self._before: dict[types.FrameType, str | None] = {}

    def begin(self) -> None:
        sys.settrace(self._trace)

    def end(self) -> None:
        sys.settrace(None)
        self._before.clear()

    def _trace(self, frame: types.FrameType, event: str, _: Any) -> Any:
        if event == "call":
            caller = frame.f_back
            if caller in self._before and frame.f_code.co_name != "__init__":
                self._before[caller] = None
            if not _is_followed(frame.f_code):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            self._before[frame] = "RESUME" if frame.f_lasti <= 6 else None
        elif event == "return":
            self._before.pop(frame, None)
        elif event == "opcode":
            before = self._before.get(frame)
            operation = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            looks = operation.startswith("CALL") or operation == "JUMP_BACKWARD"
            self._before[frame] = operation if looks else None
            if before:
                self._interrupt.reach(frame, before)
        return self._trace


class _Monitor:
    """Looks for places by sys.monitoring, which CPython has since 3.12; its settrace() misses first runs of code."""

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self._monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
        self._thread = threading.get_ident()
        self._tool: int = self._monitoring.PROFILER_ID

    def begin(self) -> None:
        monitoring, events = self._monitoring, self._monitoring.events
        monitoring.use_tool_id(self._tool, "injection")
        callbacks = {
            events.PY_START: lambda code, _: self._see(code, "RESUME"),
            events.CALL: lambda code, _offset, _call, _argument: self._see(code, ""),
            # CPython looks whatever came of the call.
            events.C_RETURN: lambda code, _offset, _call, _argument: self._see(code, "CALL"),
            events.JUMP: lambda code, offset, target: self._see(code, "JUMP_BACKWARD" if target < offset else ""),
        }
        for event, callback in callbacks.items():
            monitoring.register_callback(self._tool, event, callback)
        # Those of returns from C come with those of calls.
        monitoring.set_events(self._tool, events.PY_START | events.CALL | events.JUMP)

    def end(self) -> None:
        self._monitoring.set_events(self._tool, 0)
        self._monitoring.free_tool_id(self._tool)

    def _see(self, code: types.CodeType, after: str) -> Any:
        if not _is_followed(code):
            return None
        if after and threading.get_ident() == self._thread:
            self._interrupt.reach(sys._getframe(2), after)
        return None
