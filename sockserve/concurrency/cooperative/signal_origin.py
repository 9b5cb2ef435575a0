"""Tells an exception of a signal handler, which is about the whole program, from one of a request's handler."""

from __future__ import annotations

import threading
import types
from typing import cast

__all__ = ["came_from_signal_handler"]


def came_from_signal_handler(error: BaseException) -> bool:
    """Return whether a Python signal handler raised it, or raised its cause, its context or a member of its group.

    Each KeyboardInterrupt of the main thread counts, because the handler that raises it is written in C and leaves
    nothing in the traceback. In other threads no signal handler runs (signal(7), and Python's module of that name).
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    seen: set[int] = set()
    remaining = [error]
    while remaining:
        each = remaining.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, KeyboardInterrupt) or _has_passed_handler(each.__traceback__):
            return True
        if isinstance(each, BaseExceptionGroup):
            remaining += cast("BaseExceptionGroup[BaseException]", each).exceptions
        # An earlier Exception was handled where it was caught.
        remaining += [
            earlier
            for earlier in (each.__cause__, each.__context__)
            if earlier is not None and not isinstance(earlier, Exception)
        ]
    return False


def _has_passed_handler(traceback: types.TracebackType | None) -> bool:
    """Whether a function on its way was called with its own caller's frame: only a signal handler is."""
    interrupted: types.FrameType | None = None
    while traceback is not None:
        frame = traceback.tb_frame
        if interrupted is not None and any(value is interrupted for value in _arguments(frame)):
            return True
        interrupted = frame
        traceback = traceback.tb_next
    return False


def _arguments(frame: types.FrameType) -> list[object]:
    code, values = frame.f_code, frame.f_locals
    count = code.co_argcount + code.co_kwonlyargcount
    found: list[object] = [values.get(name) for name in code.co_varnames[:count]]
    if code.co_flags & 0x04:  # CO_VARARGS
        found += values.get(code.co_varnames[count], ())
    return found
