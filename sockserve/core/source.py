"""What a loop hosts: a server's stay, a drain, a supervisor."""

from __future__ import annotations

__all__ = ["Source"]


class Source:
    """Is asked before each wait of its loop, and told after each turn. Subclass it.

    Everything is called in the thread that runs the loop; ``abandon()`` also in a forked child.
    """

    max_wait: float | None
    """The longest wait in seconds that it can bear; None: any. Read before each wait."""

    def before_wait(self) -> None:
        """Watch or unwatch what the coming wait shall be about. Does nothing here."""

    def after_turn(self) -> None:
        """Do what is due once per turn. Does nothing here."""

    def leave(self) -> None:
        """Call ``Loop.remove()``: the loop ends."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Close this process's copies of what it watches. Does nothing here."""
