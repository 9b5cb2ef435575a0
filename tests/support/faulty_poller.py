"""An epoll that refuses what the kernel refuses only when its limits are reached: epoll_ctl(2), ENOSPC and ENOMEM."""

from __future__ import annotations

import errno
import os
import select
from typing import Any

import pytest

__all__ = ["FaultyPoller"]


class FaultyPoller:
    """Puts itself in the place of ``select.epoll``; refuses nothing until it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refused: list[tuple[str, int]] = []
        """What was refused: "register" or "modify", and the descriptor."""
        self._verb = ""
        self._fd: int | None = None
        self._errno = errno.ENOSPC
        self._left = 0
        self._real = select.epoll
        monkeypatch.setattr(select, "epoll", self._open)

    def refuse(self, verb: str, *, times: int = 1, fd: int | None = None, number: int = errno.ENOSPC) -> None:
        """Refuse the next calls of a verb, for one descriptor or for any."""
        self._errno = number
        self._verb, self._fd = verb, fd
        self._left = times

    def check(self, verb: str, fd: int) -> None:
        """Raise if it is refused."""
        if self._left > 0 and verb == self._verb and self._fd in (None, fd):
            self._left -= 1
            self.refused.append((verb, fd))
            raise OSError(self._errno, os.strerror(self._errno))

    def _open(self, *args: Any) -> Any:
        return _Epoll(self, self._real(*args))


class _Epoll:
    def __init__(self, faults: FaultyPoller, real: Any) -> None:
        self._faults = faults
        self._real = real
        self.poll = real.poll
        self.unregister = real.unregister
        self.fileno = real.fileno
        self.close = real.close

    def register(self, fd: int, events: int) -> None:
        self._faults.check("register", fd)
        self._real.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        self._faults.check("modify", fd)
        self._real.modify(fd, events)
