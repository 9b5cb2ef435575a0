"""Connections that stay open for a moment after their end, so that no reset overtakes the answer.

Rule 1. What is kept is a duplicate of the descriptor: the hooks of a request's life close the request as always.
Rule 2. Only ``finish()`` waits. What is kept has bounds: number, seconds, bytes.
"""

from __future__ import annotations

import collections
import os
import socket
import sys
import threading
import time

if sys.platform != "win32":
    import fcntl
    import termios

__all__ = ["LINGER_BYTES", "LINGER_SECONDS", "MOST", "MOST_FAREWELLS", "SWEEP_SECONDS", "Farewells", "Lingering"]

LINGER_SECONDS = 2.0
"""Seconds that a connection is kept at most: gunicorn's and nginx's lingering close wait 2 to 5."""

LINGER_BYTES = 65536
"""Bytes of input that are thrown away at most: what a well-behaved peer had under way, not an upload."""

MOST = 256
"""Connections that a server keeps at the same time; beyond that the oldest is closed."""

MOST_FAREWELLS = 64
FAREWELL_SECONDS = 1.0
"""The same for connections that were refused with a few words: a flood of them must not cost many descriptors."""

SWEEP_SECONDS = 0.05
"""Seconds between two sweeps. What the peers send meanwhile waits in the kernel and causes no reset."""

FINISH_SECONDS = 0.01
"""Seconds between two sweeps while the end of a server waits for them."""

_DONT_WAIT: int = getattr(socket, "MSG_DONTWAIT", 0)


class _Kept:
    """A connection whose sending half is shut down."""

    def __init__(self, sock: socket.socket, seconds: float, *, holds: bool = False) -> None:
        self.sock = sock
        self.deadline = time.monotonic() + seconds
        self.holds = holds
        """Whether the peer gets all that time, unless it ends the connection."""
        self.room = LINGER_BYTES
        self.has_taken = False

    def is_over(self, *, in_haste: bool = False) -> bool:
        """Whether it may be closed. In haste: also if the peer gets a reset, but only after the whole answer."""
        if time.monotonic() >= self.deadline:
            return True
        try:
            while self.room > 0:
                data = self.sock.recv(self.room, _DONT_WAIT)
                if not data:
                    # A drain may have ended the input: the peer may not have ended, and the answer may be under way.
                    return _is_acknowledged(self.sock)
                self.has_taken = True
                self.room -= len(data)
        except BlockingIOError:
            pass
        except OSError:
            # The connection is reset: the answer is lost or has arrived.
            return True
        # A peer that still sends would get a reset: it has time to see end-of-file and to stop.
        waits_for_peer = (self.has_taken or self.holds) and self.room > 0 and not in_haste
        return not waits_for_peer and _is_acknowledged(self.sock)


def _is_acknowledged(sock: socket.socket) -> bool:
    if sys.platform == "win32":
        return True
    count = bytearray(4)
    try:
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, count)
    except OSError:
        return True
    # The FIN counts as 1 (tcp(7), SIOCOUTQ).
    return int.from_bytes(count, sys.byteorder) <= 1


class Lingering:
    """The connections of one server that linger. Any thread may call any method."""

    def __init__(self) -> None:
        # append() and popleft() are atomic: the thread that took a connection out is the only one that has it.
        self._kept: collections.deque[_Kept] = collections.deque()
        self._process = os.getpid()
        self.host: object = None
        """The object that sweeps them at present; None: there is none."""

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, connection: socket.socket) -> bool:
        """Keep a half-closed connection open by a duplicate descriptor; the caller closes the original.

        False: there was no descriptor for that (EMFILE). The input that has arrived is thrown away, nothing is kept.
        """
        if self._process != os.getpid():
            self.abandon()
        try:
            fd = socket.dup(connection.fileno())
        except OSError:
            _Kept(connection, LINGER_SECONDS).is_over()
            return False
        sock = socket.socket(connection.family, connection.type, connection.proto, fd)
        if sock.gettimeout() is not None or not _DONT_WAIT:
            # socket.setdefaulttimeout() gave it a time-out, with which recv() would wait.
            sock.setblocking(False)
        self._keep(sock)
        return True

    def _keep(self, sock: socket.socket) -> None:
        self._kept.append(_Kept(sock, LINGER_SECONDS))
        while len(self._kept) > MOST:
            self._close_next()

    def sweep(self, *, in_haste: bool = False) -> bool:
        """Close the connections that need not be kept any longer; say whether any are left. Never waits."""
        for _ in range(len(self._kept)):
            try:
                kept = self._kept.popleft()
            except IndexError:
                break
            if kept.is_over(in_haste=in_haste):
                kept.sock.close()
            else:
                self._kept.append(kept)
        return bool(self._kept)

    def finish(self, *, in_haste: bool = False) -> None:
        """Return when none is left, after ``LINGER_SECONDS`` at most. In haste: as soon as each answer has arrived."""
        if not self._kept:
            return
        if self._process != os.getpid():
            self.abandon()
            return
        try:
            # perf: no event without a wait, 11 pages fewer of a forked child, NOTEBOOK.md#a-child-for-each-request
            while self.sweep(in_haste=in_haste):
                threading.Event().wait(FINISH_SECONDS)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close all now. In a forked child this closes the child's copies only."""
        while self._kept:
            self._close_next()
        self._process = os.getpid()

    def _close_next(self) -> None:
        try:
            self._kept.popleft().sock.close()
        except IndexError:
            pass


class Farewells(Lingering):
    """The same of connections that were refused with a few words: a client that talks first is to get to read them."""

    def _keep(self, sock: socket.socket) -> None:
        self._kept.append(_Kept(sock, FAREWELL_SECONDS, holds=True))
        while len(self._kept) > MOST_FAREWELLS:
            self._close_next()
