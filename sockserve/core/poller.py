"""What a loop needs of the system to wait."""

# ruff: noqa: D102 - as in selectors and epoll(7)

from __future__ import annotations

import select
from typing import Protocol

from sockserve.seconds import limit_of, socket_limit_of

__all__ = ["Poller", "wait_readable"]


class Poller(Protocol):
    """What a loop waits with."""

    stays_armed: bool
    """Whether what is armed is told of again and again."""

    def register(self, fd: int, *, shared: bool = False) -> None: ...

    def arm(self, fd: int, events: int) -> None: ...

    def unregister(self, fd: int) -> None: ...

    def poll(self, timeout: float | None) -> list[tuple[int, int]]: ...

    def close(self) -> None: ...


def wait_readable(fd: int, timeout: float | None) -> bool:
    """Wait until a descriptor is readable, at most ``timeout`` seconds (None: without limit); say whether it is.

    A signal does not shorten or lengthen the wait (PEP 475); an exception of its Python handler propagates.
    """
    limit = socket_limit_of(limit_of(timeout))
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(None if limit is None else limit * 1000))
    readable, _, _ = select.select([fd], [], [], limit)
    return bool(readable)
