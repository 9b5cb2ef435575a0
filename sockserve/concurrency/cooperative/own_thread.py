"""Tells threads apart also after their end: ``threading.get_ident()`` may give the number of an ended thread again."""

from __future__ import annotations

import threading
import weakref

__all__ = ["OwnThread"]


class _Mark:
    """Stands for one thread: it lives as long as the thread's own variables."""

    __slots__ = ("__weakref__",)


class _Here(threading.local):
    def __init__(self) -> None:
        self.mark = _Mark()


_here = _Here()


class OwnThread:
    """The thread that made this object. Its methods may be called in any thread."""

    __slots__ = ("_mark",)

    def __init__(self) -> None:
        self._mark = weakref.ref(_here.mark)

    def is_here(self) -> bool:
        """Whether the caller runs in it."""
        return self._mark() is _here.mark

    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self._mark() is None
