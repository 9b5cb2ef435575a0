"""A listener does not block while a loop accepts from it, and has its own mode again afterwards.

Rule 1. The mode belongs to the open file description (fcntl(2), O_NONBLOCK): other sockets, loops and processes may
share it. The last user restores it. A user that leaves earlier never makes it block: the others would hang in accept().
Rule 2. A listener that was non-blocking before stays so: another program may depend on it.
Rule 3. The time-out belongs to the socket object: the last loop of this process that uses the object restores it.

Theory of operation. The kernel does not tell a process which others have a descriptor. So each process that uses a
listener holds a shared record lock on it (fcntl(2), F_SETLK). Such a lock belongs to the process, is not inherited by a
fork, and ends with the process in whatever way that ends. The process that gets an exclusive lock is the last user.
Where a socket cannot have such a lock, a process counts only its own loops.

Any thread may call ``lend()`` and ``give_back()``; ``_guard`` protects ``_lent`` and ``_modes``.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import socket
import sys
import threading
import time
from typing import Any

if sys.platform != "win32":
    import fcntl

__all__ = ["give_back", "lend"]

PATIENCE = 0.1
"""Seconds to wait for a process that is just restoring the mode, which takes microseconds."""

PAUSE = 0.001
"""Seconds between two attempts to get the lock meanwhile."""

_LOCK_BYTE = 1


# Without the enums that listener.family and listener.type make of the numbers.
_family_of: Any = _socket.socket.family.__get__
_type_of: Any = _socket.socket.type.__get__


class _Mode:
    """The mode of an open file description that loops of this process use."""

    def __init__(self) -> None:
        self.users = 0
        self.is_ours = False
        """Whether loops made it non-blocking, here or in another process: the last of them restores it then."""


class _Lent:
    """A socket object that loops of this process use."""

    def __init__(self, listener: Any, file: object) -> None:
        self.listener = listener
        self.file = file
        self.fd: int = listener.fileno()
        self.timeout: float | None = listener.gettimeout()
        self.users = 0


_lent: dict[int, _Lent] = {}
_modes: dict[object, _Mode] = {}
_guard = threading.RLock()


def lend(listener: Any) -> None:
    """Make a listener non-blocking. Each call needs its ``give_back()``. OSError: the listener is closed."""
    with _guard:
        lent = _lent.get(id(listener))
        if lent is None:
            lent = _Lent(listener, _file_of(listener))
            mode = _modes.get(lent.file)
            if mode is None:
                mode = _Mode()
                mode.is_ours = _begin(lent)
            listener.settimeout(0)
            _modes[lent.file] = mode
            mode.users += 1
            _lent[id(listener)] = lent
        lent.users += 1


def give_back(listener: Any) -> None:
    """End one ``lend()``; the last one restores mode and time-out. The listener may be closed. Never raises OSError.

    No effect on a listener that was not lent, nor in a forked child.
    """
    with _guard:
        lent = _lent.get(id(listener))
        if lent is None:
            return
        lent.users -= 1
        if lent.users:
            return
        del _lent[id(listener)]
        mode = _modes[lent.file]
        mode.users -= 1
        is_last = not mode.users
        if is_last:
            del _modes[lent.file]
        if listener.fileno() != lent.fd:
            # Closed, which has released its lock.
            return
        with contextlib.suppress(OSError):
            # OSError: another thread closes it now.
            is_last = is_last and mode.is_ours and _end(lent.fd)
            _set_timeout(lent, is_last)
        if is_last:
            _lock(lent.fd, "none")


def _file_of(listener: Any) -> object:
    """Return a key that is the same for all descriptors of one socket."""
    try:
        status = os.fstat(listener.fileno())
    except OSError:
        # Windows.
        return id(listener)
    return status.st_dev, status.st_ino


def _set_timeout(lent: _Lent, may_block: bool) -> None:
    listener = lent.listener
    if lent.timeout is not None or may_block:
        listener.settimeout(lent.timeout)
    elif isinstance(listener, _socket.socket) and socket.getdefaulttimeout() is None:
        # settimeout(None) would make the description block for a moment. This sets only the time-out of the object.
        # perf: not listener.family, 11 pages fewer in each forked child, NOTEBOOK.md#a-child-for-each-request
        _socket.socket.__init__(listener, _family_of(listener), _type_of(listener), listener.proto, lent.fd)
    else:
        listener.settimeout(None)
        os.set_blocking(lent.fd, False)


if sys.platform == "win32":

    def _begin(_lent: _Lent) -> bool:
        return True

    def _end(_fd: int) -> bool:
        return True

    def _lock(_fd: int, _kind: str) -> bool | None:
        return None

else:
    _KINDS = {"none": fcntl.LOCK_UN, "shared": fcntl.LOCK_SH | fcntl.LOCK_NB, "alone": fcntl.LOCK_EX | fcntl.LOCK_NB}

    def _begin(lent: _Lent) -> bool:
        """Join the users of a mode; say whether loops have set the mode, so that the last of them restores it."""
        deadline = time.monotonic() + PATIENCE
        while _lock(lent.fd, "shared") is False and time.monotonic() < deadline:
            threading.Event().wait(PAUSE)
        if os.get_blocking(lent.fd):
            return True
        # Non-blocking: either loops of another process use it, or the program has made it so.
        if _lock(lent.fd, "alone") is False:
            return True
        _lock(lent.fd, "none")
        return False

    def _end(fd: int) -> bool:
        """Leave the users of a mode. True: this was the last user, and the exclusive lock keeps new ones waiting."""
        is_last = _lock(fd, "alone")
        if is_last is False:
            # Two processes that leave at once block each other. After the unlock the slower one gets the lock.
            _lock(fd, "none")
            is_last = _lock(fd, "alone")
        return is_last is not False

    def _lock(fd: int, kind: str) -> bool | None:
        """Set or release the lock. False: another process holds it; None: this socket cannot have locks."""
        try:
            fcntl.lockf(fd, _KINDS[kind], _LOCK_BYTE)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return None
        return True

    def _begin_anew() -> None:
        # A forked child uses no listener yet. Those of the parent stay non-blocking until the parent restores them.
        global _guard  # noqa: PLW0603 - another thread may have held it at the fork
        if _guard.acquire(blocking=False):
            _guard.release()
        else:
            _guard = threading.RLock()
        for lent in _lent.values():
            try:
                if lent.listener.fileno() == lent.fd:
                    _set_timeout(lent, False)
            except Exception:  # noqa: S110 - suppress() would touch 5 pages more, which the kernel copies for each fork
                pass
        _lent.clear()
        _modes.clear()

    os.register_at_fork(after_in_child=_begin_anew)
