"""What an object does in a forked child with the kernel's objects that it holds: they are the parent's too.

An epoll, a socket pair, a set of threads and a lock are copied by fork(2) as numbers and memory, and mean in the child
what they mean in the parent. Each object that holds one lets go of its copy before anything of the program's runs in
the child, so that nothing which is called there later can reach the parent.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["tell_when_forked"]


class _Holder(Protocol):
    def forked(self) -> None:
        """In the child, in the thread that forked, the only one there. Takes no lock that another may have held."""


# Sets of weak references and no WeakSet: add() and discard() are atomic, also in the moment of a fork.
_first: set[weakref.ref[_Holder]] = set()
_then: set[weakref.ref[_Holder]] = set()


def tell_when_forked(holder: _Holder, *, first: bool = False) -> None:
    """Call ``holder.forked()`` in each process that is forked from now on, as long as the object lives.

    ``first``: before those that are told without it. From any thread.
    """
    holders = _first if first else _then
    holders.add(weakref.ref(holder, holders.discard))


def _tell() -> None:
    for holders in (_first, _then):
        for reference in holders.copy():
            holder = reference()
            if holder is not None:
                holder.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell)
