"""Connections that stay open for a moment after their end, so that no reset overtakes the answer.

Rule 1. What is kept is a descriptor of its own: the hooks of a request's life close the request when they always do.
Rule 2. Nothing here waits but ``finish()``, and nothing is kept beyond its bounds: number, seconds, bytes.
"""

from __future__ import annotations

import collections
import os
import socket
import sys
import threading
import time
from typing import Any

if sys.platform != "win32":
    import fcntl
    import termios

__all__ = ["LINGER_BYTES", "LINGER_SECONDS", "MOST", "SWEEP_SECONDS", "Lingering", "finish_lingering", "lingering_of"]

LINGER_SECONDS = 2.0
"""The longest that a connection is kept: gunicorn's and nginx's lingering close wait 2 to 5 s."""

LINGER_BYTES = 65536
"""The most input that is thrown away: what a well-behaved peer had under way, not an upload."""

MOST = 256
"""Connections that one server keeps at once; for one more the oldest is closed."""

SWEEP_SECONDS = 0.05
"""Seconds between two looks at them. What their peers send waits in the kernel meanwhile, and is no reset."""

FINISH_SECONDS = 0.01
"""The same while a server's end waits for them."""

_DONT_WAIT: int = getattr(socket, "MSG_DONTWAIT", 0)


class _Kept:
    """One connection whose sending half is shut down."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.deadline = time.monotonic() + LINGER_SECONDS
        self.room = LINGER_BYTES
        self.has_taken = False

    def is_over(self, *, in_haste: bool = False) -> bool:
        """Whether a close does no harm any more. In haste: also if its peer may see a reset, after the whole answer."""
        if time.monotonic() >= self.deadline:
            return True
        try:
            while self.room > 0:
                data = self.sock.recv(self.room, _DONT_WAIT)
                if not data:
                    # If it was a drain that ended the input, the peer may go on sending.
                    return _is_acknowledged(self.sock)
                self.has_taken = True
                self.room -= len(data)
        except BlockingIOError:
            pass
        except OSError:
            # Reset: there is nothing left to lose.
            return True
        # A peer that sends is one that may see a reset: it gets the time to see the end and to stop.
        waits_for_peer = self.has_taken and self.room > 0 and not in_haste
        return not waits_for_peer and _is_acknowledged(self.sock)


def _is_acknowledged(sock: socket.socket) -> bool:
    if sys.platform == "win32":
        return True
    count = bytearray(4)
    try:
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, count)
    except OSError:
        return True
    # One is the FIN's (tcp(7), SIOCOUTQ).
    return int.from_bytes(count, sys.byteorder) <= 1


class Lingering:
    """The connections of one server that linger. Every method may be called from any thread."""

    def __init__(self) -> None:
        # The thread that takes one out owns it: append() and popleft() are atomic.
        self._kept: collections.deque[_Kept] = collections.deque()
        self._process = os.getpid()
        self.host: object = None
        """What looks after them at present; None: nothing does."""

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, connection: socket.socket) -> bool:
        """Keep a half-closed connection open, whose own descriptor the caller closes.

        False: there is no descriptor to be had; what its peer had sent is thrown away, and that is all.
        """
        if self._process != os.getpid():
            self.abandon()
        try:
            fd = socket.dup(connection.fileno())
        except OSError:
            _Kept(connection).is_over()
            return False
        sock = socket.socket(connection.family, connection.type, connection.proto, fd)
        if sock.gettimeout() is not None or not _DONT_WAIT:
            # The default for new sockets: with it recv() would wait first.
            sock.setblocking(False)
        self._kept.append(_Kept(sock))
        while len(self._kept) > MOST:
            self._close_next()
        return True

    def sweep(self, *, in_haste: bool = False) -> bool:
        """Close those that need not be kept any longer; say whether any are left."""
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
        """Wait until none is left: ``LINGER_SECONDS`` at most. In haste: only until each answer has arrived."""
        if self._process != os.getpid():
            self.abandon()
            return
        try:
            pause = threading.Event()
            while self.sweep(in_haste=in_haste):
                pause.wait(FINISH_SECONDS)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close this process's descriptors of them, as they are."""
        while self._kept:
            self._close_next()
        self._process = os.getpid()

    def _close_next(self) -> None:
        try:
            self._kept.popleft().sock.close()
        except IndexError:
            pass


def lingering_of(server: Any) -> Lingering:
    """Those of any server; made on first use."""
    try:
        lingering: Lingering = server.__dict__["_serving_lingering"]
    except KeyError:
        lingering = server.__dict__.setdefault("_serving_lingering", Lingering())
    return lingering


def finish_lingering(server: Any, *, in_haste: bool = True) -> None:
    """As ``finish()`` of a server that may have none."""
    lingering: Lingering | None = server.__dict__.get("_serving_lingering")
    if lingering is not None:
        lingering.finish(in_haste=in_haste)
