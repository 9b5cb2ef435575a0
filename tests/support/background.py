"""Something that happens in another thread, at a step of a call."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from support.stepping import Step
from support.under_test import LIMIT
from support.waiting import is_asleep, wait_until

__all__ = ["Background"]


class Background(threading.Thread):
    """Calls something in another thread; keeps what kind of error that raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.call = call
        self.error: type[BaseException] | None = None
        self.start()

    def run(self) -> None:
        """Call."""
        try:
            self.call()
        except BaseException as error:
            # Not the error itself: its traceback would keep open what the frames that it went through hold.
            self.error = type(error)

    def settle(self) -> None:
        """Return when it has ended or waits for somebody else."""
        wait_until(lambda: not self.is_alive() or self.is_asleep())

    def end(self, step: Step) -> None:
        """Return when it has ended."""
        self.join(LIMIT)
        assert not self.is_alive(), f"hangs after {step}"

    def is_asleep(self) -> bool:
        """Say whether it waits for somebody else."""
        return is_asleep(sys._current_frames().get(self.ident or 0))
