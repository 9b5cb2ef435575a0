"""A supervisor as its workers watch it: each has to notice that it has ended, whatever else lives on.

Rule 1. It is watched itself, by a descriptor that means this one process (pidfd_open(2)). The end-of-file of a socket
comes only when every copy of the other end is closed, and each process that the supervisor forks has one.
"""

from __future__ import annotations

import os
import select
import socket

from sockserve.concurrency.children import open_pidfd
from sockserve.core.poller import wait_readable
from sockserve.seconds import socket_limit_of

__all__ = ["ParentProcess"]

POLL_WITHOUT_PIDFD = 1.0
"""Seconds between two looks at getppid(2) where the kernel has no such descriptor, or none to spare."""


class ParentProcess:
    """The process that makes this object, for the children that it forks afterwards.

    The descriptor is opened by the parent itself: opened in the child it could come too late and mean another process,
    or, in another PID namespace, none.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._pidfd = open_pidfd(self._pid)

    def wait_for(self, control: socket.socket, limit: float | None = None) -> bool:
        """In a child: wait until the socket is readable, or the parent has ended; say whether the parent lives.

        ``limit``: at most so many seconds; None: without limit.
        """
        while True:
            if self._pidfd is not None:
                return self._wait_for_either(control.fileno(), self._pidfd, limit)
            step = POLL_WITHOUT_PIDFD if limit is None else min(limit, POLL_WITHOUT_PIDFD)
            is_readable = wait_readable(control.fileno(), step)
            # 0: the parent is in another PID namespace.
            if os.getppid() not in (self._pid, 0):
                return False
            limit = None if limit is None else limit - step
            if is_readable or limit == 0:
                return True

    def _wait_for_either(self, control: int, pidfd: int, limit: float | None) -> bool:
        limit = socket_limit_of(limit)
        # There is poll(2) wherever there is a pidfd, unless gevent or eventlet has taken it away.
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(control, select.POLLIN)
            poll.register(pidfd, select.POLLIN)
            ready = [fd for fd, _ in poll.poll(None if limit is None else limit * 1000)]
        else:
            ready, _, _ = select.select([control, pidfd], [], [], limit)
        return pidfd not in ready

    def close(self) -> None:
        """Close this process's descriptor. Idempotent."""
        pidfd, self._pidfd = self._pidfd, None
        if pidfd is not None:
            os.close(pidfd)
