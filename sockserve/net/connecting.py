"""A client's connection to whatever names a server: the server itself, its address text, or its sockaddr."""

from __future__ import annotations

import os
import re
import socket
from typing import Any, NamedTuple

from sockserve.net.address import parse_address
from sockserve.seconds import socket_limit_of

__all__ = ["connect"]


class _Candidate(NamedTuple):
    family: int
    kind: int
    sockaddr: Any


# Linux connects to 0.0.0.0 and ::, other systems do not.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "localhost", "*": "localhost"}  # noqa: S104 - compared with, not bound to


def connect(address: Any, *, timeout: float = 10.0) -> socket.socket:
    """Return a socket connected to ``address``; each operation on it may take ``timeout`` seconds.

    ``address`` is a server, an address text (``"udp://127.0.0.1:53"``), or what ``socket.connect`` takes for a stream.
    A host name with several addresses is tried one address after the other, each within ``timeout``; the resolver has
    a limit of its own (resolv.conf(5)). A server bound to all interfaces is reached on the loopback interface.

    Raises OSError: no address accepts the connection (ConnectionRefusedError, TimeoutError), or the name is not known
    (``socket.gaierror``). AddressError: the text is no address. ValueError: it is a descriptor (``"fd:3"``), or
    ``timeout`` is negative or NaN. From any thread.
    """
    error = OSError(f"no address for {address!r}")
    for family, kind, sockaddr in _candidates(address):
        client = socket.socket(family, kind)
        try:
            client.settimeout(socket_limit_of(timeout))
            client.connect(sockaddr)
        except OSError as refused:
            client.close()
            error = refused
        except BaseException:
            client.close()
            raise
        else:
            return client
    raise error


def _candidates(address: Any) -> list[_Candidate]:
    listener = getattr(address, "socket", None)
    sockaddr: Any
    if isinstance(listener, socket.socket):
        sockaddr = listener.getsockname()
        if isinstance(sockaddr, tuple):
            sockaddr = (_reachable(sockaddr[0]), *sockaddr[1:])
        return [_Candidate(listener.family, listener.type, sockaddr)]
    if isinstance(address, str) and re.match(r"[a-z-]+:", address):
        parsed = parse_address(address)
        if parsed.type is None:
            raise ValueError(f"{address!r} says nothing that a client could connect to")
        family, kind, sockaddr = parsed.family, parsed.type, parsed.sockaddr
    elif isinstance(address, tuple):
        family, kind, sockaddr = socket.AF_UNSPEC, socket.SOCK_STREAM, address  # pyright: ignore[reportUnknownVariableType]
    else:
        family, kind, sockaddr = socket.AF_UNIX, socket.SOCK_STREAM, os.fspath(address)
    if family == getattr(socket, "AF_UNIX", None):
        return [_Candidate(family, kind, sockaddr)]
    if len(sockaddr) == 4:
        # An IPv6 address with its flow and zone, which a resolver would lose.
        return [_Candidate(socket.AF_INET6, kind, sockaddr)]
    found = socket.getaddrinfo(_reachable(sockaddr[0]), sockaddr[1], family, kind)
    return [_Candidate(each[0], each[1], each[4]) for each in found]


def _reachable(host: Any) -> Any:
    return _LOOPBACK.get(host, host)
