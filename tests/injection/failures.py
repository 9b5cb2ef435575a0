"""The k-th system call of the package fails.

Calls are replaced in the modules that have them: the package names those where it uses them. EINTR is not raised: since
PEP 475 Python retries such a call, after it has run the handlers of the signals that came. So a signal comes.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import pathlib
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from typing import Any

import sockserve

__all__ = ["ERRORS", "Failure"]

PACKAGE = str(pathlib.Path(sockserve.__file__).parent)

ERRORS = {name: getattr(errno, name) for name in ("EMFILE", "ENOMEM", "ENOSPC", "EINTR")}

NEVER = {
    "poll": ("EMFILE", "ENOMEM", "ENOSPC"),
    "unregister": ("EMFILE", "ENOSPC"),
    "recv": ("EMFILE", "ENOSPC"),
    "send": ("EMFILE", "ENOSPC"),
    "start": ("EMFILE", "ENOSPC"),
    "fork": ("EMFILE", "ENOSPC"),
}
"""What a call cannot fail with, by its page of section 2: epoll_wait, epoll_ctl, recv, send, clone, fork."""

BETWEEN = (socket.__file__, threading.__file__, __file__)
"""Files whose frames stand between the package and a call of it."""


class Failure:
    """Lets the k-th call fail; 0: only counts them. In every thread of this process, and in no forked one."""

    def __init__(self, number: int, error: str) -> None:
        self.number = number
        self.error = error
        self.count = 0
        self.place = ""
        """Which call failed, and where; empty: none did."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._is_active = False

    @contextlib.contextmanager
    def active(self) -> Generator[None]:
        """Count in the body, in whatever thread."""
        self._is_active = True
        try:
            yield
        finally:
            self._is_active = False

    def pass_or_fail(self, name: str) -> None:
        """Count a call that is about to be made. Raises what it fails with."""
        if not self._is_active or os.getpid() != self._pid or self.error in NEVER.get(name, ()):
            return
        frame = sys._getframe(2)
        while frame.f_back is not None and frame.f_code.co_filename in BETWEEN:
            frame = frame.f_back
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return
        with self._lock:
            self.count += 1
            if self.count != self.number:
                return
        file = pathlib.Path(frame.f_code.co_filename).name
        self.place = f"{name} in {frame.f_code.co_qualname} ({file}:{frame.f_lineno}): {self.error}"
        if self.error == "EINTR":
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
        elif name == "start":
            raise RuntimeError("can't start new thread")
        else:
            code = ERRORS[self.error]
            raise OSError(code, os.strerror(code))

    def install(self) -> None:
        """Replace the calls, for the rest of this process's life."""
        signal.signal(signal.SIGUSR2, lambda *_: None)
        if hasattr(select, "epoll"):
            select.epoll = functools.partial(_Epoll, self, select.epoll)  # type: ignore[assignment, misc]
        self._replace(socket, "socketpair")
        self._replace(os, "fork")
        self._replace(os, "pidfd_open")
        self._replace(mmap, "mmap")
        self._replace(threading.Thread, "start")
        for name in ("_accept", "recv", "recv_into", "send", "sendall", "detach", "listen", "bind"):
            self._replace(socket.socket, name, name.removesuffix("_into").removesuffix("all"))
        make = socket.socket.__init__

        def create(sock: Any, family: int = -1, type: int = -1, proto: int = -1, fileno: Any = None) -> None:  # noqa: A002
            if fileno is None:
                self.pass_or_fail("socket")
            make(sock, family, type, proto, fileno)

        socket.socket.__init__ = create  # type: ignore[method-assign]

    def _replace(self, place: Any, attribute: str, name: str = "") -> None:
        call = getattr(place, attribute, None)
        if call is not None:
            setattr(place, attribute, self.failing(call, name or attribute))

    def failing(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Give a function that calls, or fails."""

        def replaced(*args: Any, **kwargs: Any) -> Any:
            self.pass_or_fail(name)
            return call(*args, **kwargs)

        return replaced


class _Epoll:
    """What ``select.epoll()`` makes, which cannot be subclassed."""

    def __init__(self, failure: Failure, make: Callable[[], Any]) -> None:
        failure.pass_or_fail("epoll")
        self._epoll = make()
        for name in ("register", "modify", "unregister", "poll"):
            setattr(self, name, failure.failing(getattr(self._epoll, name), name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)
