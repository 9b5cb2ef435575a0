"""Keeps a loop running until a change has happened."""

from __future__ import annotations

from sockserve.core.loop import Loop, Source
from sockserve.core.one_shot import OneShot

__all__ = ["Errand"]


class Errand(Source):
    """A source of a loop that leaves it once ``change`` is set."""

    max_wait: float | None = None

    def __init__(self, loop: Loop, change: OneShot) -> None:
        self._loop = loop
        self._change = change
        loop.add(self)
        change.then(loop.wake)

    def before_wait(self) -> None:
        """Leave if the change has happened."""
        if self._change.is_set():
            self.leave()

    def leave(self) -> None:
        """Let the loop end."""
        self._loop.remove(self)
