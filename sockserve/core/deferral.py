"""Defers signals, so that no exception of a signal handler tears apart what begins or ends a stay in a loop.

CPython runs signal handlers in the main thread, between any two instructions: after a claim and before the ``try`` that
would give it back, or inside of its ``finally``. No order of statements covers both.

Rule 1. While signals are deferred their Python handlers do not run; it is noted which came. They run at the end.
Rule 2. A second one of the same number runs its handler at once: Ctrl-C twice ends whatever takes too long.
Rule 3. What may block runs outside of it (``lifted()``).
"""

from __future__ import annotations

import importlib
import threading
import types
from collections.abc import Callable
from typing import Any, Self, TypeAlias, TypeVar

__all__ = ["Deferral", "Handler", "end_in_child", "get_handler", "raw_signal", "set_handler"]

Result = TypeVar("Result")

Handler: TypeAlias = Callable[[int, types.FrameType | None], object] | int | None
"""What a signal means: a function, SIG_DFL or SIG_IGN, or None for what Python did not install."""

# ``signal`` without its enums, whose making writes to dozens of pages that parent and child share after the fork: the
# kernel copies each of them.
raw_signal: Any = importlib.import_module("_signal")


class Deferral:
    """Defers signals for the length of a ``with`` block. Inside another such block it changes nothing.

    The end of the block raises what the handlers raise of signals that came. In other threads than the main one there
    is nothing to defer.
    """

    current: Deferral | None = None
    """The block that defers now; None: none does."""

    def __init__(self) -> None:
        self._applies = threading.get_ident() == threading.main_thread().ident and Deferral.current is None
        self._handlers: dict[int, Handler] = {}
        """The handler that each deferred signal gets back at the end."""
        self._came: list[int] = []
        # Kept, because each look-up of a method makes a new object, and handlers are compared by identity.
        self._note = self._take_note

    def __enter__(self) -> Self:
        try:
            self._defer()
        except BaseException:
            self._put_back()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end()

    def lifted(self, call: Callable[[], Result]) -> Result:
        """Return what ``call()`` returns; meanwhile signals have their handlers, and first those of what came run."""
        try:
            self._end()
            return call()
        finally:
            try:
                self._defer()
            except BaseException:
                # One that came a moment before: what follows is to be deferred all the same.
                self._defer()
                raise

    def handler_of(self, signum: int) -> Handler:
        """What a signal means from the end on."""
        return self._handlers[signum] if signum in self._handlers else raw_signal.getsignal(signum)

    def exchange(self, signum: int, handler: Handler) -> None:
        """Give a signal another meaning from the end on; if it came, its old handler runs now."""
        while callable(before := self._handlers.get(signum)) and handler is not before and self._takes(signum):
            before(signum, None)
        is_deferred = signum in self._handlers
        self._handlers[signum] = handler
        if not is_deferred:
            raw_signal.signal(signum, self._note)

    def forget(self) -> None:
        """Defer no longer, and run nothing."""
        self._came.clear()
        self._put_back()

    def _take_note(self, signum: int, frame: types.FrameType | None) -> None:
        handler = self._handlers.get(signum)
        if callable(handler) and self._takes(signum):
            handler(signum, frame)
        else:
            self._came.append(signum)

    def _takes(self, signum: int) -> bool:
        """Take the note of a signal away, if there is one. In one step: another signal in between may take it too."""
        try:
            self._came.remove(signum)
        except ValueError:
            return False
        return True

    def _defer(self) -> None:
        if not self._applies:
            return
        for signum in range(1, raw_signal.NSIG):
            try:
                handler = raw_signal.getsignal(signum)
                if callable(handler) and handler is not self._note:
                    # In this order, or the handler is lost if another signal's raises between the two.
                    self._handlers[signum] = handler
                    raw_signal.signal(signum, self._note)
            except ValueError:
                # A number that is no signal's; or the main thread of a subinterpreter, where no signal handler runs.
                self._handlers.pop(signum, None)
        Deferral.current = self

    def _end(self) -> None:
        if not self._applies:
            return
        try:
            self._put_back()
        except BaseException:
            # The first that was put back came at once.
            self._put_back()
            raise
        finally:
            self._deliver()

    def _put_back(self) -> None:
        Deferral.current = None
        for signum, handler in list(self._handlers.items()):
            # Unless the program gave it another one meanwhile.
            if raw_signal.getsignal(signum) == self._note:
                raw_signal.signal(signum, raw_signal.SIG_DFL if handler is None else handler)
        self._handlers.clear()

    def _deliver(self) -> None:
        try:
            while self._came:
                raw_signal.raise_signal(self._came.pop())
        finally:
            if self._came:
                self._deliver()


def get_handler(signum: int) -> Handler:
    """``signal.getsignal()``, whether or not signals are deferred."""
    deferral = Deferral.current
    return raw_signal.getsignal(signum) if deferral is None else deferral.handler_of(signum)


def set_handler(signum: int, handler: Handler) -> None:
    """``signal.signal()``, whether or not signals are deferred; one that came meanwhile is for the handler before."""
    deferral = Deferral.current
    if deferral is None or threading.get_ident() != threading.main_thread().ident:
        raw_signal.signal(signum, handler)
    else:
        deferral.exchange(signum, handler)


def end_in_child() -> None:
    """In a forked child: defer nothing, and forget what came, which was for the parent."""
    if Deferral.current is not None:
        Deferral.current.forget()
