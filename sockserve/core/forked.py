"""After a fork(2): objects let go of what the kernel shares between parent and child.

An epoll and a socket pair are the same ones in the child; threads are not there, and a lock may be held by one of them.
Each object that has any of these is told in the child, before the program's own code runs there: no later call in the
child can then reach the parent, or wait for ever.
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
