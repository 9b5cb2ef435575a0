"""The connection of a request whose handler put another socket object into its place.

``SSLContext.wrap_socket()`` and ``detach()`` leave the object that was accepted without its descriptor, which goes on
in another object: TLS that a handler begins in ``setup()``, or after STARTTLS.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from sockserve.core.active_requests import LiveRequest
from sockserve.core.servable import Address, Request

__all__ = ["reach", "successor"]


def reach(live: LiveRequest, act: Callable[[Request], object]) -> None:
    """Call ``act`` with the connection as it is now: the request, or what took its place."""
    request = live.request
    if not isinstance(request, socket.socket) or request.fileno() >= 0:
        act(request)
    elif (taken := successor(live)) is not None:
        act(taken)
    else:
        # Its handler closed it, or has it where only its peer tells which it is.
        info = live.connection_info
        _reach_by_peer(live.client_address if info is None else info.peer_address, act)


def successor(live: LiveRequest) -> socket.socket | None:
    """The socket that the handler has as its ``connection`` or ``request`` instead of the one that was accepted."""
    for name in ("connection", "request"):
        taken = getattr(live.handler, name, None)
        if isinstance(taken, socket.socket) and taken.fileno() >= 0:
            return taken
    return None


def _reach_by_peer(peer: Address, act: Callable[[Request], object]) -> None:
    # The number that the descriptor had may be another's by now. An address and port are one connection's.
    if not isinstance(peer, tuple) or not hasattr(socket, "dup"):
        return
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return
    for number in numbers:
        try:
            # Looked at only when it cannot become another one any more.
            fd = socket.dup(number)
        except OSError:
            # Closed meanwhile, or there is no descriptor to be had.
            continue
        try:
            copy = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            continue
        with copy:
            try:
                is_it = copy.getpeername() == peer
            except OSError:
                continue
            if is_it:
                act(copy)
