"""One poller that several threads wait on: whichever wakes takes one ready descriptor.

Rule 1. What is *watched* is told to one or more waiting threads for as long as it is ready. What is *armed* is told
either once, to one thread, or like a watched one (*held*), as it is armed.
Rule 2. Everything but ``close()`` may be called from any thread while others wait.
"""

from __future__ import annotations

import collections
import os
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
        """Wait for ready descriptors, at most ``timeout`` seconds (-1: without limit) and ``maxevents`` of them.

        Return each with what happened, or nothing when the time is up. A descriptor that is neither watched nor armed
        any more may be among them. If ``can_hold`` is false ``maxevents`` must be 1.
        """
        ...

    def watch(self, fd: int, *, shared: bool = False) -> None:
        """Report that a descriptor is readable, whenever it is; ``shared``: as for ``Loop.watch()``."""

    def unwatch(self, fd: int) -> None:
        """Undo ``watch()`` or ``arm()``. No effect on any other descriptor."""

    can_hold: bool
    """Whether there is another way than ``once``."""

    once: int
    """How to arm what is to be told once."""

    held: int
    """How to arm what is to be told in each wait that finds it ready."""

    mute: int
    """How to arm what is not to be told, except, at most once more, that its peer is gone."""

    def arm(self, fd: int, how: int, /) -> None:
        """Tell that a descriptor is readable or its peer is gone. Raises OSError if the system cannot."""

    def rearm(self, fd: int, how: int, /) -> None:
        """The same, for one that was armed before and not unwatched since."""

    def end(self) -> None:
        """Make every ``poll()`` return something at once, from now on. Idempotent."""

    def nudge(self) -> None:
        """Make one thread that waits return, with a descriptor of no use. Nothing, if ``can_hold`` is false."""

    def close(self) -> None:
        """Close the poller's own descriptors. No thread may be waiting."""


class _EpollPoller:
    """epoll(7) hands each event to one of the threads that wait, the one that began last first."""

    can_hold = True

    def __init__(self) -> None:
        self._epoll = select.epoll()
        try:
            self._end_reader, self._end_writer = socket.socketpair()
        except BaseException:
            self._epoll.close()
            raise
        self._end_writer.setblocking(False)
        self.held = select.EPOLLIN | select.EPOLLRDHUP
        self.once = self.held | select.EPOLLONESHOT
        # EPOLLHUP and EPOLLERR cannot be left out, but they can be told once only.
        self.mute = select.EPOLLONESHOT
        self.poll = self._epoll.poll
        self.arm = self._epoll.register
        self.rearm = self._epoll.modify
        self._nudges = -1
        try:
            self.watch(self._end_reader.fileno())
            self._nudges = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            # Never read: edge-triggered, each write is told to one thread.
            self._epoll.register(self._nudges, select.EPOLLIN | select.EPOLLET)
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

    def end(self) -> None:
        # Never read: level-triggered, it wakes each thread that waits, and each one that comes later.
        send_wake_up(self._end_writer)

    def nudge(self) -> None:
        try:
            os.eventfd_write(self._nudges, 1)
        except OSError:
            # Closed.
            pass

    def close(self) -> None:
        self._epoll.close()
        if self._nudges >= 0:
            os.close(self._nudges)
            self._nudges = -1
        self._end_reader.close()
        self._end_writer.close()


class _LeaderPoller:
    """Where the platform has no poller to share: one thread waits in a selector, the others for its place."""

    can_hold = False
    once = held = mute = 0

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

    def arm(self, fd: int, how: int, /) -> None:
        self._change(fd, True)

    rearm = arm

    def _change(self, fd: int, is_armed: bool) -> None:
        self._changes.append((fd, is_armed))
        self._wake()

    def end(self) -> None:
        self._has_ended = True
        self._wake()

    def nudge(self) -> None:
        pass

    def _wake(self) -> None:
        send_wake_up(self._wake_writer)

    def close(self) -> None:
        self._selector.close()
        self._wake_reader.close()
        self._wake_writer.close()


def open_shared_poller() -> SharedPoller:
    """The best that the platform has, looked up now: gevent and eventlet take epoll away, early or late."""
    return _EpollPoller() if hasattr(select, "epoll") else _LeaderPoller()
