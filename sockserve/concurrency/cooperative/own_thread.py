"""Which thread something belongs to: the number that a thread is known by may be a later one's."""

from __future__ import annotations

import threading
import weakref

__all__ = ["OwnThread"]


class _Mark:
    """Stands for one thread, and is gone with it."""

    __slots__ = ("__weakref__",)


class _Here(threading.local):
    def __init__(self) -> None:
        self.mark = _Mark()


_here = _Here()


class OwnThread:
    """A thread, as long as it lives: the one that makes this object."""

    __slots__ = ("_mark",)

    def __init__(self) -> None:
        self._mark = weakref.ref(_here.mark)

    def is_here(self) -> bool:
        """Whether it is the caller's."""
        return self._mark() is _here.mark

    def has_ended(self) -> bool:
        """Whether it is no more."""
        return self._mark() is None
