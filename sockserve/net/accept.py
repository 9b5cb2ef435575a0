"""accept() and recvfrom() for a loop: they never wait, and what stays the same is looked up once for all calls."""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

from sockserve.net.tls import defer_handshake
from sockserve.net.watched_socket import class_of

__all__ = ["Receiver", "accept_of", "careful_accept_of", "counter_of", "has_ended"]

_STATE_AND_UNACKED = struct.Struct("B23xI")
"""tcp_info of linux/tcp.h up to tcpi_unacked, which for a listener is the length of its queue (inet_diag(7), ss(8))."""

_LISTENS = 10
"""TCP_LISTEN of linux/tcp_states.h."""

_DONT_WAIT: int = getattr(socket, "MSG_DONTWAIT", 0)

_END = getattr(select, "POLLHUP", 0) | getattr(select, "POLLRDHUP", 0) | getattr(select, "POLLNVAL", 0)


def accept_of(
    listener: socket.socket, connection_class: type[socket.socket] | None = None
) -> Callable[[], tuple[socket.socket, Any]]:
    """Return a function that does what ``listener.accept()`` does, without a TLS handshake.

    ``connection_class`` makes a plain connection from family, type, protocol and descriptor; None: ``socket.socket``.
    The function serves for the listener's whole life, in any number of threads. It raises what ``accept()`` raises, and
    then no descriptor is left open.

    ``socket.accept()`` turns the family and the type of the listener into enums and back for every connection, which
    is a fifth of what a short request costs. A listener with an ``accept()`` of its own keeps it.
    """
    defer_handshake(listener)
    bare_accept: Callable[[], tuple[int, Any]] | None = getattr(listener, "_accept", None)
    make: Any = socket.socket if connection_class is None else connection_class
    if bare_accept is None or class_of(listener).accept.__module__ != "socket" or not isinstance(make, type):
        return listener.accept
    family, kind, proto = int(listener.family), int(listener.type), listener.proto
    new: Any = make.__new__
    init: Any = getattr(make, "__init__")  # noqa: B009 - mypy takes it for an instance's

    # CPython runs signal handlers after a call, not after a step of an iteration. After a call the descriptor is in no
    # variable yet: an exception of a signal handler would leave it open.
    each_accepted = iter(bare_accept, None)

    def accept() -> tuple[socket.socket, Any]:
        # Before there is a descriptor: what this raises loses no client.
        connection = new(make)
        fd, address = -1, None
        try:
            for fd, address in each_accepted:  # noqa: B007 - address is
                init(connection, family, kind, proto, fd)
                break
        except BaseException:
            # An exception of a signal handler, or no memory: the object may have the descriptor, and then closes it.
            if fd >= 0:
                if connection.fileno() == fd:
                    # Not the close() of the class: its __init__() may not have set its attributes yet.
                    _socket.socket.close(connection)
                else:
                    socket.close(fd)
            raise
        return connection, address

    return accept


def careful_accept_of(listener: Any) -> Callable[[], tuple[Any, Any]]:
    """Return a function that accepts from an object which has ``accept()`` and ``fileno()``, whatever else it is.

    Its ``accept()`` may wait while no client is there. So one thread at a time calls it, and only when it is readable;
    the function raises BlockingIOError otherwise. Any number of threads may call the function.
    """
    one_at_a_time = threading.Lock()

    def accept() -> tuple[Any, Any]:
        with one_at_a_time:
            if not _is_readable(listener):
                raise BlockingIOError(errno.EAGAIN, "no connection")
            taken: tuple[Any, Any] = listener.accept()
            return taken

    return accept


class Receiver:
    """Receives the datagrams of a socket without waiting, whatever its time-out and its class.

    Any number of threads may call ``receive()``; ``close()`` comes after the last of these calls.
    """

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self.is_plain = bool(_DONT_WAIT) and getattr(class_of(sock), "recvfrom", None) is _socket.socket.recvfrom
        """Whether ``receive()`` never waits, even if another process takes the datagram that made it readable."""
        self._recvfrom: Callable[..., tuple[bytes, Any]] = sock.recvfrom
        if self.is_plain:
            self._recvfrom = _socket.socket.recvfrom.__get__(sock)
        self._one_at_a_time = threading.Lock()
        self._same: _socket.socket | None = None

    def receive(self, size: int) -> tuple[bytes, Any]:
        """As ``recvfrom(size)``. BlockingIOError: there is no datagram."""
        if self.is_plain:
            # A socket with a time-out waits in spite of MSG_DONTWAIT: sock_call_ex() in CPython's socketmodule.c.
            return (self._without_timeout() if self._sock.gettimeout() else self._recvfrom)(size, _DONT_WAIT)
        # Another class may wait in its recvfrom(): one thread at a time calls it, and only if there is a datagram.
        with self._one_at_a_time:
            if not _is_readable(self._sock):
                raise BlockingIOError(errno.EAGAIN, "no datagram")
            return self._recvfrom(size, _DONT_WAIT) if _DONT_WAIT else self._recvfrom(size)

    def _without_timeout(self) -> Callable[[int, int], tuple[bytes, Any]]:
        with self._one_at_a_time:
            if self._same is None:
                sock = self._sock
                is_blocking = os.get_blocking(sock.fileno())
                # A time-out belongs to the object, not to the socket. A duplicate: each object closes its own number.
                fd = socket.dup(sock.fileno())
                self._same = _socket.socket(int(sock.family), int(sock.type), sock.proto, fd)
                if self._same.gettimeout() is not None:
                    # socket.setdefaulttimeout() gave it one.
                    self._same.settimeout(None)
                    os.set_blocking(fd, is_blocking)
            return self._same.recvfrom

    def close(self) -> None:
        """Close what this opened. The socket itself stays open. May be called again."""
        # Without the lock: in a forked child it may be held by a thread that does not exist there.
        same, self._same = self._same, None
        if same is not None:
            same.close()


def has_ended(sock: Any) -> bool:
    """Whether a listener or a datagram socket was shut down, by any process: nothing arrives there any more."""
    if not _END:
        return False
    poll = select.poll()
    with contextlib.suppress(OSError, ValueError):
        poll.register(sock, select.POLLIN | _END)
        return any(events & _END for _, events in poll.poll(0))
    return False


def counter_of(listener: socket.socket) -> Callable[[], int]:
    """Return a function that tells how many connections wait to be accepted; 1 is "some" if the kernel does not count.

    On Linux a TCP listener counts them; the call keeps the interpreter's lock. The number is 0 for a listener that is
    closed, also by another thread meanwhile. It is at least 1 for a listener that was shut down: accept() then raises.
    Any number of threads may call the function.
    """
    # Called once for nearly every request: what does not change is looked up here.
    getsockopt, unpack, size = listener.getsockopt, _STATE_AND_UNACKED.unpack, _STATE_AND_UNACKED.size
    level, option = int(socket.IPPROTO_TCP), getattr(socket, "TCP_INFO", -1)

    def count_queue() -> int:
        length: int
        try:
            state, length = unpack(getsockopt(level, option, size))
        except (OSError, ValueError):
            return 0
        return length if state == _LISTENS else 1

    try:
        # Elsewhere TCP_INFO may exist, and have another layout.
        can_count = sys.platform == "linux" and bool(unpack(getsockopt(level, option, size)))
    except (OSError, struct.error):
        # Another protocol, or a sandbox whose kernel tells less.
        can_count = False
    if can_count:
        return count_queue
    try:
        ask = _readiness_of(listener)
    except ValueError:
        # The listener is closed.
        return lambda: 0

    def count() -> int:
        try:
            return ask()
        except (OSError, ValueError):
            return 0

    return count


def _readiness_of(listener: socket.socket) -> Callable[[], int]:
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        ready = select.POLLIN | select.POLLHUP
        return lambda: sum(bool(events & ready) for _, events in poll.poll(0))
    return lambda: len(select.select([listener], [], [], 0)[0])


def _is_readable(sock: Any) -> bool:
    try:
        return bool(_readiness_of(sock)())
    except (OSError, ValueError):
        # Closed: the call that follows says so.
        return True
