"""What a loop needs of the system to wait."""

# ruff: noqa: D102 - as in selectors and epoll(7)

from __future__ import annotations

from typing import Protocol

__all__ = ["Poller"]


class Poller(Protocol):
    """What a loop waits with."""

    stays_armed: bool
    """Whether what is armed is told of again and again."""

    def register(self, fd: int, *, shared: bool = False) -> None: ...

    def arm(self, fd: int, events: int) -> None: ...

    def unregister(self, fd: int) -> None: ...

    def poll(self, timeout: float | None) -> list[tuple[int, int]]: ...

    def close(self) -> None: ...
