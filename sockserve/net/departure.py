"""Tells errors that a peer caused by leaving from errors of the program. Any thread may call these functions."""

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
        # A Unix client has closed its socket, or removed, replaced or protected its path.
        "ECONNREFUSED",
        "ENOENT",
        "ENOTDIR",
        "ELOOP",
        "EPROTOTYPE",
        "EACCES",
        # A firewall or the network refuses. ECONNRESET: Windows says so of a port where nothing listens.
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
"""Errors of sendto(2) for an address that nothing can be sent to at present. EMSGSIZE is not among them: too long an
answer is a mistake of the handler."""


def cannot_be_answered(error: BaseException, client_address: object) -> bool:
    """Say whether sending a datagram failed because of its destination, which a client may choose. Never raises.

    Source port 0 is valid (RFC 768) and can be forged; an answer to it fails with EINVAL.
    """
    if not isinstance(error, OSError):
        return False
    return error.errno in _NO_WAY_BACK or (error.errno == errno.EINVAL and _has_no_port(client_address))


def _has_no_port(client_address: object) -> bool:
    return isinstance(client_address, tuple) and len(client_address) > 1 and client_address[1] == 0  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]


def has_left(request: object, error: BaseException, client_address: object = None) -> bool:
    """Say whether an exception only means that the peer of this request has left or fallen silent. Never raises.

    A ``ConnectionError`` may as well come from a database that the handler talks to, and must then be reported: it
    counts only if the request's own socket is dead (poll(2): POLLHUP, POLLERR). The error of an answer to a datagram
    without a source port counts, too, in whatever way the handler sends it.
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
        # The handler has closed the socket, or the platform cannot tell: believe the error.
        return True
    poll = select.poll()
    poll.register(fd, signs)
    return bool(poll.poll(0))
