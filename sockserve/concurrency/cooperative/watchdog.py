"""Logs a handler that keeps the loop, and so all other handlers, from going on."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from sockserve.core import loop as loop_module
from sockserve.core.loop import Loop
from sockserve.core.one_shot import OneShot
from sockserve.log import Lines, log

__all__ = ["Watchdog"]


class Watchdog:
    """A thread that watches a loop while the loop is busy, and sleeps while the loop sleeps.

    If the loop ends no turn for ``limit()`` seconds, it logs a warning with the stack of the loop's thread, once until
    the next turn. None: never. ``limit`` is called in the watchdog's thread, at each turn that it watches.
    """

    def __init__(self, name: Any, loop: Loop, limit: Callable[[], float | None]) -> None:
        self._name = name
        self._loop = loop
        self._limit = limit
        self._stopped = OneShot()
        self._turned = OneShot()

    def start(self) -> None:
        """Start the thread. If the system refuses one, slow handlers are not logged."""
        self._expect_turn()
        try:
            threading.Thread(target=self._watch, name="sockserve-watchdog", daemon=True).start()
        except RuntimeError as error:
            log.debug("%s: slow handlers will not be reported: %s", self._name, error)

    def stop(self) -> None:
        """Let the thread end soon. In any thread; idempotent."""
        self._stopped.set()
        self._turned.set()

    def _expect_turn(self) -> OneShot:
        self._turned = OneShot()
        self._loop.after_next_wait(self._turned.set)
        if self._stopped.is_set():
            self._turned.set()
        return self._turned

    def _watch(self) -> None:
        while True:
            self._turned.wait()
            limit = self._limit()
            if limit is not None and not 0 <= limit <= threading.TIMEOUT_MAX:
                # Longer than a lock can wait, negative or NaN: never.
                limit = None
            # The loop has left its wait: from here to the next wait a handler may run.
            turned = self._expect_turn()
            if self._stopped.wait(limit):
                return
            if limit is not None and not turned.is_set():
                self._tell(limit)

    def _tell(self, limit: float) -> None:
        frame = sys._current_frames().get(self._loop.thread or 0)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        if frame is not None and frame.f_globals.get("__name__") != loop_module.__name__:
            log.warning(
                "%s: a handler has let no other go on for more than %g s; it is here:\n%s",
                self._name,
                limit,
                Lines("".join(traceback.format_stack(frame))),
            )
