"""Whether the peer left, or an error is ours."""

from __future__ import annotations

import select
import socket
import sys

from sockserve.errors import PeerError

__all__ = ["has_left"]


def has_left(request: object, error: BaseException) -> bool:
    """Say whether an exception only tells that this request's own peer went away or fell silent.

    A ``ConnectionError`` may as well come from a database or an upstream server that the handler talks to, and that one
    must not be hushed up: it counts only if the request's socket is dead itself (poll(2): POLLHUP, POLLERR).
    """
    if isinstance(error, PeerError):
        return True
    if not isinstance(request, socket.socket):
        return False
    ssl = sys.modules.get("ssl")
    if ssl is not None and isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return isinstance(request, ssl.SSLSocket) and _is_dead(request, getattr(select, "POLLRDHUP", 0))
    return isinstance(error, ConnectionError) and _is_dead(request)


def _is_dead(connection: socket.socket, signs: int = 0) -> bool:
    fd = connection.fileno()
    if fd < 0 or not hasattr(select, "poll"):
        # Closed by the handler after the error, or a platform that cannot tell: believe the error.
        return True
    poll = select.poll()
    poll.register(fd, signs)
    return bool(poll.poll(0))
