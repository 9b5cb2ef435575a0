"""accept() and recvfrom() for a loop: without ever waiting, and what each call would ask anew is asked once."""

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
    """Give a function that does what ``listener.accept()`` does, without a TLS handshake; for a listener's whole life.

    ``connection_class`` makes a plain connection from family, type, protocol and descriptor; None: ``socket.socket``.

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

    # CPython runs signal handlers after a call, when the descriptor would be in no variable yet, and not after a step
    # of an iteration.
    each_accepted = iter(bare_accept, None)

    def accept() -> tuple[socket.socket, Any]:
        # Before the descriptor is there: what this raises costs no client.
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
                    # Beneath the class, whose __init__() may not have come to its own attributes.
                    _socket.socket.close(connection)
                else:
                    socket.close(fd)
            raise
        return connection, address

    return accept


def careful_accept_of(listener: Any) -> Callable[[], tuple[Any, Any]]:
    """The same for an object of which nothing is known but that it has ``accept()`` and ``fileno()``.

    It may wait in ``accept()`` if no client is there: one thread at a time asks it, and only if it is readable.
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
    """Receives the datagrams of a socket, whatever its time-out and its class, without ever waiting."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self.is_plain = bool(_DONT_WAIT) and getattr(class_of(sock), "recvfrom", None) is _socket.socket.recvfrom
        """Whether nothing can make it wait, also if another process takes what this one was told of."""
        self._recvfrom: Callable[..., tuple[bytes, Any]] = sock.recvfrom
        if self.is_plain:
            self._recvfrom = _socket.socket.recvfrom.__get__(sock)
        self._one_at_a_time = threading.Lock()
        self._same: _socket.socket | None = None

    def receive(self, size: int) -> tuple[bytes, Any]:
        """As ``recvfrom(size)``; raises BlockingIOError if there is no datagram. From any thread."""
        if self.is_plain:
            # One with a time-out waits so long, whatever the flags say: sock_call_ex() of CPython's socketmodule.c.
            return (self._without_timeout() if self._sock.gettimeout() else self._recvfrom)(size, _DONT_WAIT)
        # Another class may do in recvfrom() what it likes: it is asked if a datagram is there, and by one thread.
        with self._one_at_a_time:
            if not _is_readable(self._sock):
                raise BlockingIOError(errno.EAGAIN, "no datagram")
            return self._recvfrom(size, _DONT_WAIT) if _DONT_WAIT else self._recvfrom(size)

    def _without_timeout(self) -> Callable[[int, int], tuple[bytes, Any]]:
        with self._one_at_a_time:
            if self._same is None:
                sock = self._sock
                is_blocking = os.get_blocking(sock.fileno())
                # A time-out belongs to the object, not to the socket; the duplicate is so that each can be closed.
                fd = socket.dup(sock.fileno())
                self._same = _socket.socket(int(sock.family), int(sock.type), sock.proto, fd)
                if self._same.gettimeout() is not None:
                    # The default for new sockets.
                    self._same.settimeout(None)
                    os.set_blocking(fd, is_blocking)
            return self._same.recvfrom

    def close(self) -> None:
        """Give back what this took. The socket stays open."""
        # Without the lock: in a forked child another thread may hold it for ever.
        same, self._same = self._same, None
        if same is not None:
            same.close()


def has_ended(sock: Any) -> bool:
    """Whether a socket that never has a peer was shut down, from whichever process: nothing comes there any more."""
    if not _END:
        return False
    poll = select.poll()
    with contextlib.suppress(OSError, ValueError):
        poll.register(sock, select.POLLIN | _END)
        return any(events & _END for _, events in poll.poll(0))
    return False


def counter_of(listener: socket.socket) -> Callable[[], int]:
    """Give a function that says how many connections wait to be accepted: 1 for "some" where the kernel does not count.

    On Linux a TCP listener counts them, and asking it does not let other threads have the interpreter meanwhile.
    A closed listener, or one that another thread closes now, has none. One that was shut down has some: accept() tells.
    """
    ask = _length_of_queue(listener)
    try:
        # Elsewhere TCP_INFO may exist, and have another layout.
        can_count = sys.platform == "linux" and ask() >= 0
    except (OSError, struct.error):
        # Another protocol, or a sandbox whose kernel tells less.
        can_count = False
    if not can_count:
        try:
            ask = _readiness_of(listener)
        except ValueError:
            # Closed.
            return lambda: 0

    def count() -> int:
        try:
            return ask()
        except (OSError, ValueError):
            return 0

    return count


def _length_of_queue(listener: socket.socket) -> Callable[[], int]:
    # Once for nearly every request: what does not change is looked up here.
    getsockopt, unpack, size = listener.getsockopt, _STATE_AND_UNACKED.unpack, _STATE_AND_UNACKED.size
    level, option = int(socket.IPPROTO_TCP), getattr(socket, "TCP_INFO", -1)

    def ask() -> int:
        length: int
        state, length = unpack(getsockopt(level, option, size))
        return length if state == _LISTENS else 1

    return ask


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
