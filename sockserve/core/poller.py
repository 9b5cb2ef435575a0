"""The system's ways to wait for descriptors: epoll(7), or what ``selectors`` knows."""

# ruff: noqa: D102 - as in selectors and epoll(7)

from __future__ import annotations

import select
import selectors
from collections.abc import Callable
from typing import Protocol

from sockserve.seconds import limit_of, socket_limit_of

__all__ = ["INPUT", "OUTPUT", "EpollPoller", "Poller", "PollerToCome", "SelectorPoller", "open_poller", "wait_readable"]

INPUT = 1
OUTPUT = 4
"""What an armed descriptor may be ready for: EPOLLIN and EPOLLOUT of epoll(7), also where there is no epoll. Any other
number in a mask says that the connection ended or broke."""


class Poller(Protocol):
    """What a loop waits with."""

    stays_armed: bool
    """Whether what is armed is told of again and again."""

    def register(self, fd: int, *, shared: bool = False) -> None: ...

    def arm(self, fd: int, events: int) -> None: ...

    def unregister(self, fd: int) -> None: ...

    def poll(self, timeout: float | None) -> list[tuple[int, int]]: ...

    def close(self) -> None: ...


class EpollPoller:
    """epoll(7), without the objects that ``selectors`` builds for every event."""

    stays_armed = True

    def __init__(self) -> None:
        self._epoll = select.epoll()
        # Retried by the interpreter with the time that remains when a signal interrupts it (PEP 475).
        self.poll = self._epoll.poll

    def register(self, fd: int, *, shared: bool = False) -> None:
        self._epoll.register(fd, select.EPOLLIN | (select.EPOLLEXCLUSIVE if shared else 0))

    def arm(self, fd: int, events: int) -> None:
        mask = events | select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
        try:
            self._epoll.register(fd, mask)
        except FileExistsError:
            self._epoll.modify(fd, mask)

    def unregister(self, fd: int) -> None:
        try:
            self._epoll.unregister(fd)
        except (OSError, ValueError):
            # Closed already, so the kernel has forgotten it; or our own epoll is closed.
            pass

    def close(self) -> None:
        self._epoll.close()


_ONCE = object()


class SelectorPoller:
    """The best that ``selectors`` knows of on a platform without epoll."""

    stays_armed = False

    def __init__(self) -> None:
        self._selector = self.make_selector()

    def make_selector(self) -> selectors.BaseSelector:
        return selectors.DefaultSelector()

    def register(self, fd: int, *, shared: bool = False) -> None:
        self._selector.register(fd, selectors.EVENT_READ)

    def arm(self, fd: int, events: int) -> None:
        wanted = (selectors.EVENT_READ if events & INPUT else 0) | (selectors.EVENT_WRITE if events & OUTPUT else 0)
        try:
            self._selector.register(fd, wanted, _ONCE)
        except KeyError:
            self._selector.modify(fd, wanted, _ONCE)

    def unregister(self, fd: int) -> None:
        try:
            self._selector.unregister(fd)
        except (OSError, KeyError, ValueError):
            pass

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        ready: list[tuple[int, int]] = []
        for key, events in self._selector.select(timeout):
            if key.data is _ONCE:
                self.unregister(key.fd)
            mask = INPUT if events & selectors.EVENT_READ else 0
            ready.append((key.fd, mask | OUTPUT if events & selectors.EVENT_WRITE else mask))
        return ready

    def close(self) -> None:
        self._selector.close()


def open_poller() -> Poller:
    """The best that the platform has, looked up now: gevent and eventlet take epoll away, early or late."""
    return EpollPoller() if hasattr(select, "epoll") else SelectorPoller()


class PollerToCome:
    """Opens a poller on first use: most forked children never wait in their copy of a loop."""

    def __init__(self, open_it: Callable[[], Poller], *, stays_armed: bool) -> None:
        self.stays_armed = stays_armed
        self._open_it = open_it

    def register(self, fd: int, *, shared: bool = False) -> None:
        poller = self._open_it()
        # The loop may have registered it when the poller was opened. What register() raises is for the caller.
        poller.unregister(fd)
        poller.register(fd, shared=shared)

    def arm(self, fd: int, events: int) -> None:
        self._open_it().arm(fd, events)

    def unregister(self, fd: int) -> None:
        pass

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        return self._open_it().poll(timeout)

    def close(self) -> None:
        self._open_it = _refuse


def _refuse() -> Poller:
    raise ValueError("the loop is closed")


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
