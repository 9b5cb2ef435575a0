"""Threads for calls that block, so that the greenlets of a loop go on meanwhile."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

__all__ = ["BlockingCalls"]

Result = TypeVar("Result")


class _Call(Generic[Result]):
    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function
        self.is_revoked = False

    def make(self) -> Result:
        if self.is_revoked:
            raise RuntimeError("revoked")
        return self._function()


class BlockingCalls:
    """A pool of threads that is made when the first call needs it."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None

    def start(self, function: Callable[[], Result]) -> Future[Result]:
        """Call it in a thread, in a copy of the caller's context. Raises RuntimeError if no thread can start."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(thread_name_prefix="sockserve-greenlets")
        call = _Call(function)
        try:
            return self._executor.submit(contextvars.copy_context().run, call.make)
        except BaseException:
            # The executor keeps the call, and a thread that starts later would make it, after we said that it failed.
            call.is_revoked = True
            raise

    def end(self) -> None:
        """Let the threads end when they have nothing to do."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)
