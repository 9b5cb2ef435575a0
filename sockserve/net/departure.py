"""Whether the peer left, or an error is ours."""

from __future__ import annotations

import errno
import select
import socket
import sys

from sockserve.errors import PeerError

__all__ = ["cannot_be_answered", "has_left"]

_NO_WAY_BACK = {
    getattr(errno, name)
    for name in (
        # The answer does not fit into the queue of a Unix client that does not read, or into a full device's.
        "EAGAIN",
        "ENOBUFS",
        # A Unix client closed its socket, or removed, replaced or protected its path.
        "ECONNREFUSED",
        "ENOENT",
        "ENOTDIR",
        "ELOOP",
        "EPROTOTYPE",
        "EACCES",
        # A firewall's word, or the network's. ECONNRESET is Windows' for a port where nothing listens.
        "EPERM",
        "ECONNRESET",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETDOWN",
        "ENETUNREACH",
        "EADDRNOTAVAIL",
    )
    if hasattr(errno, name)
}
"""What sendto(2) says of an address that nothing can be sent to at present. EMSGSIZE is missing: too long an answer is
its handler's mistake."""


def cannot_be_answered(error: BaseException, client_address: object) -> bool:
    """Say whether sending a datagram failed because of where it was to go: for reasons that a client may choose.

    Source port 0 is valid (RFC 768) and can be forged; an answer to it is EINVAL.
    """
    if not isinstance(error, OSError):
        return False
    return error.errno in _NO_WAY_BACK or (error.errno == errno.EINVAL and _has_no_port(client_address))


def _has_no_port(client_address: object) -> bool:
    return isinstance(client_address, tuple) and len(client_address) > 1 and client_address[1] == 0  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]


def has_left(request: object, error: BaseException, client_address: object = None) -> bool:
    """Say whether an exception only tells that this request's own peer went away or fell silent.

    So does an answer to a datagram without a source port, in whatever way its handler sends it.

    A ``ConnectionError`` may as well come from a database or an upstream server that the handler talks to, and that one
    must not be hushed up: it counts only if the request's socket is dead itself (poll(2): POLLHUP, POLLERR).
    """
    if isinstance(error, PeerError):
        return True
    if not isinstance(request, socket.socket):
        return isinstance(error, OSError) and error.errno == errno.EINVAL and _has_no_port(client_address)
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
