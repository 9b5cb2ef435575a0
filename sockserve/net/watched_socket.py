"""Tells a loop that its socket object is closed, and remembers what a thread last took from it.

Theory of operation. Closing a descriptor wakes no thread that waits for it: epoll(7) forgets it silently. So while a
loop has a socket object, the object's class is a subclass that tells the loop before it closes or detaches. A close of
the number without the object (``os.close()``) is not seen.

Any thread may call any function here; ``_guard`` protects ``_listeners`` and ``_watched_classes``.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, cast

__all__ = ["class_of", "forget_taken", "remembering", "take_taken", "tell_when_closed"]

_FLAGS_AT = {
    "accept": None,
    "recv": 1,
    "recv_into": 2,
    "recvfrom": 1,
    "recvfrom_into": 2,
    "recvmsg": 2,
    "recvmsg_into": 2,
}
"""The methods that take something from a socket, and the place of the flags among their arguments."""

_PEEK: int = getattr(socket, "MSG_PEEK", 0)

_listeners: dict[int, tuple[Any, tuple[Callable[[], object], ...]]] = {}
"""The sockets that are watched, by id, each with the functions to call."""

_guard = threading.RLock()


class _Here(threading.local):
    """What this thread has taken last."""

    taken: tuple[Any, Any] | None = None


_here = _Here()


def forget_taken() -> None:
    """Record that this thread has taken nothing."""
    _here.taken = None


def take_taken() -> tuple[Any, Any] | None:
    """Return, once, the request and the address that this thread took last; None: its last attempt failed."""
    taken, _here.taken = _here.taken, None
    return taken


def remembering(receive: Callable[..., Any], of: Any = None) -> Callable[..., Any]:
    """Return a function that does what ``receive()`` does and remembers the outcome for ``take_taken()``.

    ``of``: the socket of a datagram, the second half of its request.
    """

    @functools.wraps(receive)
    def receive_and_remember(*args: Any, **kwargs: Any) -> Any:
        _here.taken = None
        taken = receive(*args, **kwargs)
        _here.taken = taken if of is None else ((taken[0], of), taken[1])
        return taken

    return receive_and_remember


def tell_when_closed(listener: Any, tell: Callable[[], object]) -> Callable[[], None] | None:
    """Call ``tell()`` before a socket is closed or detached in this process, in the thread that does it.

    Returns the function that undoes this, for any thread; None: the object's class cannot be watched.
    """
    if not isinstance(listener, socket.socket) or "close" in getattr(listener, "__dict__", ()):
        # No socket, or an object with a close() of its own, as those of eventlet.
        return None
    with _guard:
        if type(listener) not in _watched_classes.values():
            try:
                # A subclass with the same name: isinstance() stays true, and no other object changes.
                listener.__class__ = _watched(type(listener))
            except TypeError:
                # A class without subclasses, or with another layout of its objects.
                return None
        _, told = _listeners.get(id(listener), (listener, ()))
        _listeners[id(listener)] = listener, (*told, tell)
    return functools.partial(_tell_no_more, listener, tell)


def _tell_no_more(listener: Any, tell: Callable[[], object]) -> None:
    with _guard:
        if id(listener) not in _listeners:
            # In a forked child nothing is watched.
            return
        _, told = _listeners[id(listener)]
        # One entry only: the same function may be there twice.
        remaining = list(told)
        if tell in remaining:
            remaining.remove(tell)
        if remaining:
            _listeners[id(listener)] = listener, tuple(remaining)
        else:
            del _listeners[id(listener)]
            listener.__class__ = class_of(listener)


def class_of(sock: Any) -> type[Any]:
    """Return the class that a socket has when it is not watched."""
    kind: type[Any] = sock.__class__
    return next((base for base, watched in _watched_classes.items() if watched is kind), kind)


_watched_classes: dict[type[Any], type[Any]] = {}


def _watched(base: type[Any]) -> type[Any]:
    if base not in _watched_classes:
        namespace: dict[str, Any] = {
            "__slots__": (),
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "__reduce_ex__": functools.partialmethod(_reduce, base),
            "dup": _dup(base),
        }
        for name in ("close", "detach"):
            namespace[name] = _telling(getattr(base, name))
        for name, flags_at in _FLAGS_AT.items():
            if hasattr(base, name):
                namespace[name] = _remembered(getattr(base, name), flags_at)
        _watched_classes[base] = cast("Any", type(base))(base.__name__, (base,), namespace)
    return _watched_classes[base]


def _telling(end: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(end)
    def tell_and_end(self: Any) -> Any:
        # Before: another thread may get the number for a new socket as soon as it is free.
        for tell in _listeners.get(id(self), (None, ()))[1]:
            tell()
        return end(self)

    return tell_and_end


def _remembered(receive: Callable[..., Any], flags_at: int | None) -> Callable[..., Any]:
    @functools.wraps(receive)
    def receive_and_remember(self: Any, *args: Any, **kwargs: Any) -> Any:
        if id(self) not in _listeners:
            return receive(self, *args, **kwargs)
        _here.taken = None
        taken = receive(self, *args, **kwargs)
        if flags_at is None:
            _here.taken = taken
        else:
            flags = kwargs.get("flags", args[flags_at] if len(args) > flags_at else 0)
            if not flags & _PEEK:
                # A datagram: there is nothing to close.
                _here.taken = (None, None)
        return taken

    return receive_and_remember


def _dup(base: type[Any]) -> Callable[[Any], Any]:
    def dup(self: Any) -> Any:
        """Return a duplicate that is not watched."""
        copy = base.dup(self)
        if type(copy) is _watched_classes[base]:
            copy.__class__ = base
        return copy

    return dup


def _reduce(sock: Any, base: type[Any], protocol: Any) -> Any:
    # multiprocessing finds the reducer of a socket by its exact class.
    reduction: Any = sys.modules.get("multiprocessing.reduction")
    reduce = None if reduction is None else reduction.ForkingPickler._extra_reducers.get(base)  # noqa: SLF001 - it has no other place
    return cast("Any", base).__reduce_ex__(sock, protocol) if reduce is None else reduce(sock)


def _begin_anew() -> None:
    # A forked child closes its own copies: the parent's loop goes on.
    global _guard  # noqa: PLW0603 - another thread may have held it at the fork
    if _guard.acquire(blocking=False):
        _guard.release()
    else:
        _guard = threading.RLock()
    _listeners.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
