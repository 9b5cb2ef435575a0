"""A listener does not block while a loop accepts from it, and has its own mode again afterwards.

Rule 1. The mode belongs to the open file description (fcntl(2), O_NONBLOCK): other sockets, loops and processes may
share it. The last of them gives it back; one that leaves before never makes it block under the others.
Rule 2. What was handed in as non-blocking stays so: another program may wait for it.
Rule 3. The time-out belongs to the socket object: the last loop of this process that has the object gives it back.

No process can ask the kernel which others have a descriptor. So each that has taken a listener's mode holds a shared
record lock on it (fcntl(2), F_SETLK): such a lock is the process's own, is not inherited by a fork, and ends with the
process however that ends. The one that gets an exclusive lock is the last. Where a socket bears no such lock, a process
counts only its own loops.
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
"""Seconds to wait for a process that is just giving the mode back, which takes microseconds."""

PAUSE = 0.001
"""Seconds between two looks whether it has."""

_LOCK_BYTE = 1


class _Mode:
    """The mode of one open file description, lent in this process."""

    def __init__(self) -> None:
        self.users = 0
        self.is_ours = False
        """Whether loops have made it non-blocking, here or in another process, so that the last of them undoes it."""


class _Lent:
    """One socket object, lent in this process."""

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
    """Make a listener non-blocking; ``give_back()`` as often as this. From any thread.

    Raises OSError if it is closed.
    """
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
    """Let go of a listener that was lent, closed or not; no effect on any other, nor in a forked child.

    Never raises OSError.
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
            # Closed, and its lock gone with it.
            return
        with contextlib.suppress(OSError):
            # OSError: closed in this moment.
            is_last = is_last and mode.is_ours and _end(lent.fd)
            _set_timeout(lent, is_last)
        if is_last:
            _lock(lent.fd, "none")


def _file_of(listener: Any) -> object:
    """What is the same for all descriptors of one socket."""
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
        # settimeout(None) would make the description block, if only for a moment. This sets what the object knows.
        _socket.socket.__init__(listener, int(listener.family), int(listener.type), listener.proto, lent.fd)
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
        """Join the users of a mode; say whether the mode is the loops' own."""
        deadline = time.monotonic() + PATIENCE
        while _lock(lent.fd, "shared") is False and time.monotonic() < deadline:
            threading.Event().wait(PAUSE)
        if os.get_blocking(lent.fd):
            return True
        # Another process has lent it, or it came so.
        if _lock(lent.fd, "alone") is False:
            return True
        _lock(lent.fd, "none")
        return False

    def _end(fd: int) -> bool:
        """Leave the users of a mode; true, with none able to join, if there is none left."""
        is_last = _lock(fd, "alone")
        if is_last is False:
            # Of two that leave at once, the one that lets go last finds no other.
            _lock(fd, "none")
            is_last = _lock(fd, "alone")
        return is_last is not False

    def _lock(fd: int, kind: str) -> bool | None:
        """False: another process's lock is in the way; None: this socket bears no locks."""
        try:
            fcntl.lockf(fd, _KINDS[kind], _LOCK_BYTE)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return None
        return True

    def _begin_anew() -> None:
        # In a forked child nothing is lent: what the parent lent stays non-blocking, and only there it is given back.
        global _guard  # noqa: PLW0603 - another thread may have held it in the moment of the fork
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
