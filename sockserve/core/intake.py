"""How requests are taken from a server's socket while a loop has it.

Rule 1. What was borrowed is given back: the listener's blocking mode is the caller's again after ``give_back()``.
Rule 2. A socket that does not listen is left as it is: handlers send on a datagram socket.

``open()`` and ``give_back()`` are called in the loop's thread; ``accept()`` and ``receive()`` in the loop's thread or,
in a pool, in its workers, several at once; ``stop_receiving()`` in any thread.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import TypeVar

from sockserve.core.servable import Address, AnyServer, Request
from sockserve.net.accept import Receiver, accept_of, careful_accept_of, counter_of, has_ended
from sockserve.net.blocking_mode import give_back, lend
from sockserve.net.listen import listens, unix_name
from sockserve.net.watched_socket import remembering

__all__ = ["BY_INTAKE", "Intake", "by_intake", "finishing", "is_unix"]

Hook = TypeVar("Hook", bound=Callable[..., object])

# Linux hands out blocking sockets whatever the listener is; the BSDs, macOS and Windows pass the listener's mode on.
_ACCEPTED_INHERITS_MODE = not sys.platform.startswith("linux")

BY_INTAKE: set[object] = set()
"""Functions that are marked: the loop need not call them."""


def by_intake(get_request: Hook) -> Hook:
    """Mark a ``get_request()`` that does no more in a loop than ``Intake.accept()``."""
    BY_INTAKE.add(get_request)
    return get_request


def is_unix(server: AnyServer) -> bool:
    """Whether a server's addresses are names of Unix sockets."""
    return hasattr(socket, "AF_UNIX") and getattr(server, "address_family", None) == socket.AF_UNIX


def finishing(
    accept: Callable[[], tuple[Request, Address]], *, has_names: bool
) -> Callable[[], tuple[Request, Address]]:
    """Make an ``accept()`` return what ``get_request()`` promises: a blocking connection, and a name that is text."""
    if not has_names and not _ACCEPTED_INHERITS_MODE:
        return accept

    def accept_and_finish() -> tuple[Request, Address]:
        request, client_address = accept()
        if _ACCEPTED_INHERITS_MODE and socket.getdefaulttimeout() is None:
            request.setblocking(True)
        return request, unix_name(client_address) if has_names else client_address

    return accept_and_finish


class Intake:
    """One socket's, for one stay of its server in a loop."""

    def __init__(self, listener: Request, *, remembers: bool, has_names: bool) -> None:
        self.listener = listener
        self._has_names = has_names
        self.remembers = remembers
        """Whether ``take_taken()`` tells what ``get_request()`` took: for an override that may fail with it."""
        self.accept: Callable[[], tuple[socket.socket, Address]] | None = None
        """Accepts one connection, if the socket can do that. Raises BlockingIOError if none is there."""
        self.receive: Callable[[int], tuple[bytes, Address]] | None = None
        """Receives one datagram, if the socket does not listen. Raises BlockingIOError if none is there."""
        self.count_waiting: Callable[[], int] | None = None
        """How many connections wait, where the kernel tells."""
        self.can_block = True
        """Whether a call may wait although the socket was ready: another process may have taken what was there."""
        self.is_lent = False
        """Whether the listener's blocking mode is to be given back."""
        self._receiver: Receiver | None = None
        self._never_has_peer = False

    def open(self, connection_class: type[socket.socket] | None) -> None:
        """Choose how to take, and make a listener non-blocking. Raises OSError and ValueError if it is closed.

        ``connection_class`` makes the connections; None: ``socket.socket``.
        """
        if listens(self.listener):
            self._open_listener(connection_class)
        else:
            self._open_other()
        if self.remembers:
            if self.accept is not None:
                self.accept = remembering(self.accept)
            if self.receive is not None:
                self.receive = remembering(self.receive, of=self.listener)
        if self.accept is not None:
            self.accept = finishing(self.accept, has_names=self._has_names)
        self.can_block = self.count_waiting is None and (self._receiver is None or not self._receiver.is_plain)

    def _open_listener(self, connection_class: type[socket.socket] | None) -> None:
        listener = self.listener
        self._never_has_peer = True
        if isinstance(listener, socket.socket):
            self.accept = accept_of(listener, connection_class)
            # Cheaper by far than an accept() in vain, for which Linux makes a socket and throws it away.
            self.count_waiting = counter_of(listener)
        else:
            self.accept = careful_accept_of(listener)
        # Of two processes that wake for one connection the loser would block in accept(), where PEP 475 even retries
        # through a signal.
        if hasattr(listener, "settimeout"):
            lend(listener)
            self.is_lent = True

    def _open_other(self) -> None:
        # Its mode stays: handlers send on a datagram socket, and idlelib connects in server_activate().
        listener = self.listener
        if hasattr(listener, "recvfrom"):
            self._receiver = Receiver(listener)
            self._never_has_peer = getattr(listener, "type", None) == socket.SOCK_DGRAM
            self.receive = self._receiver.receive
        if not isinstance(listener, socket.socket) and hasattr(listener, "accept"):
            # Only the server knows which of the two its object can do.
            self.accept = careful_accept_of(listener)

    def has_ended(self) -> bool:
        """Whether the socket was shut down, and stays ready for ever with nothing to take.

        Of all listeners only TCP's say this in accept(), too.
        """
        return self._never_has_peer and has_ended(self.listener)

    def stop_receiving(self) -> None:
        """Close what was opened beside the socket. From any thread; idempotent."""
        if self._receiver is not None:
            self._receiver.close()

    def give_back(self) -> None:
        """Leave the socket as it was found. Idempotent."""
        self.stop_receiving()
        if self.is_lent:
            self.is_lent = False
            give_back(self.listener)
