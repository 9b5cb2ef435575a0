"""One poller that several threads wait on: whichever wakes takes one ready descriptor.

Rule 1. What is *watched* is reported to one or more waiting threads for as long as it is ready; what is *armed* is
reported once, to one thread.
Rule 2. Everything but ``close()`` may be called from any thread while others wait.
"""

from __future__ import annotations

import collections
import select
import selectors
import socket
import threading
import time
from typing import Protocol

from sockserve.core.wake_up import send_wake_up

__all__ = ["INPUT", "SharedPoller", "open_shared_poller"]

INPUT = getattr(select, "EPOLLIN", 1)
"""Of an armed descriptor: there is input. Any other event means: look whether it is input or the end."""


class SharedPoller(Protocol):
    """What the threads of a pool wait on."""

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        """Wait for a ready descriptor, at most ``timeout`` seconds (-1: without limit); ``maxevents`` must be 1.

        Return it with what happened, or nothing when the time is up. A descriptor that is neither watched nor armed
        any more may be among them.
        """
        ...

    def watch(self, fd: int, *, shared: bool = False) -> None:
        """Report that a descriptor is readable, whenever it is; ``shared``: as for ``Loop.watch()``."""

    def unwatch(self, fd: int) -> None:
        """Undo ``watch()`` or ``arm()``. No effect on any other descriptor."""

    once: int
    """What ``rearm()`` is given."""

    def arm(self, fd: int) -> None:
        """Report once that a descriptor is readable or its peer is gone."""

    def rearm(self, fd: int, once: int, /) -> None:
        """The same, for one that was armed before and that nobody unwatched since."""

    def end(self) -> None:
        """Make every ``poll()`` return something at once, from now on. Idempotent."""

    def close(self) -> None:
        """Close the poller's own descriptors. Nobody may be waiting."""


class _EpollPoller:
    """epoll(7) hands each event to one of the threads that wait, the one that began last first."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        try:
            self._end_reader, self._end_writer = socket.socketpair()
        except BaseException:
            self._epoll.close()
            raise
        self._end_writer.setblocking(False)
        self.once = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT
        self.poll = self._epoll.poll
        self.rearm = self._epoll.modify
        try:
            self.watch(self._end_reader.fileno())
        except BaseException:
            self.close()
            raise

    def watch(self, fd: int, *, shared: bool = False) -> None:
        self._epoll.register(fd, select.EPOLLIN | (select.EPOLLEXCLUSIVE if shared else 0))

    def unwatch(self, fd: int) -> None:
        try:
            self._epoll.unregister(fd)
        except (OSError, ValueError):
            # Closed: the kernel forgot it then, or the pool has ended.
            pass

    def arm(self, fd: int) -> None:
        self._epoll.register(fd, self.once)

    def end(self) -> None:
        # Never read: level-triggered, it wakes each thread that waits, and each one that comes later.
        send_wake_up(self._end_writer)

    def close(self) -> None:
        self._epoll.close()
        self._end_reader.close()
        self._end_writer.close()


class _LeaderPoller:
    """Where the platform has no poller to share: one thread waits in a selector, the others for its place."""

    once = 0

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._leading = threading.Lock()
        # What other threads want of the selector: the leader does it, because not every selector bears two threads.
        self._changes: collections.deque[tuple[int, bool]] = collections.deque()
        self._is_armed: dict[int, bool] = {}
        self._ready: collections.deque[int] = collections.deque()
        self._has_ended = False
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        deadline = time.monotonic() + timeout
        if not self._leading.acquire(timeout=timeout if timeout >= 0 else -1):
            return []
        has_looked = False
        try:
            while True:
                self._make_changes()
                if self._has_ended:
                    return [(self._wake_reader.fileno(), 0)]
                while self._ready:
                    fd = self._ready.popleft()
                    is_armed = self._is_armed.get(fd)
                    if is_armed is None:
                        continue
                    if is_armed:
                        self._forget(fd)
                    return [(fd, 0)]
                remaining = None if timeout < 0 else max(0.0, deadline - time.monotonic())
                if has_looked and remaining == 0:
                    return []
                has_looked = True
                for key, _ in self._selector.select(remaining):
                    if key.fileobj is self._wake_reader:
                        self._drain_wake_ups()
                    else:
                        self._ready.append(key.fd)
        finally:
            self._leading.release()

    def _drain_wake_ups(self) -> None:
        try:
            self._wake_reader.recv(4096)
        except OSError:
            # No memory just now (ENOMEM): the next wait tells again.
            pass

    def _make_changes(self) -> None:
        while self._changes:
            fd, is_armed = self._changes.popleft()
            if fd < 0:
                self._forget(~fd)
            elif fd not in self._is_armed:
                self._is_armed[fd] = is_armed
                try:
                    self._selector.register(fd, selectors.EVENT_READ)
                except (OSError, ValueError):
                    # Closed meanwhile.
                    del self._is_armed[fd]

    def _forget(self, fd: int) -> None:
        if self._is_armed.pop(fd, None) is not None:
            try:
                self._selector.unregister(fd)
            except (OSError, KeyError, ValueError):
                pass

    def watch(self, fd: int, *, shared: bool = False) -> None:
        self._change(fd, False)

    def unwatch(self, fd: int) -> None:
        self._change(~fd, False)

    def arm(self, fd: int) -> None:
        self._change(fd, True)

    def rearm(self, fd: int, once: int, /) -> None:
        self._change(fd, True)

    def _change(self, fd: int, is_armed: bool) -> None:
        self._changes.append((fd, is_armed))
        self._wake()

    def end(self) -> None:
        self._has_ended = True
        self._wake()

    def _wake(self) -> None:
        send_wake_up(self._wake_writer)

    def close(self) -> None:
        self._selector.close()
        self._wake_reader.close()
        self._wake_writer.close()


def open_shared_poller() -> SharedPoller:
    """The best that the platform has, looked up now: gevent and eventlet take epoll away, early or late."""
    return _EpollPoller() if hasattr(select, "epoll") else _LeaderPoller()
