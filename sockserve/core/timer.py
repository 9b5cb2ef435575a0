"""A call that a loop makes later, and that can be cancelled."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Timer"]


class Timer:
    """A call that the loop makes once, not before its time. Made by ``Loop.call_later()``, in the loop's thread."""

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Never call back. No effect once called."""
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when
