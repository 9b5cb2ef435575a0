"""The source of a connection, as limits count it: one that cannot be multiplied by choosing another address.

Any thread may call it.
"""

from __future__ import annotations

import socket
from typing import Any

from sockserve.net.peer_credentials import credentials_of

__all__ = ["source_of"]

_MAPPED = bytes(10) + b"\xff\xff"


def source_of(address: Any, connection: object, ipv4_prefix: int = 32, ipv6_prefix: int = 64) -> str:
    """Return the network of an address from ``accept()``, or the user at the other end of a Unix socket. Never raises.

    A client has a whole IPv6 network for itself, a /64 mostly (RFC 6177): its addresses are one source. An IPv4 address
    in the form that an IPv6 socket gives it ("::ffff:192.0.2.1") is that IPv4 address, and a zone belongs to this host.
    """
    if not isinstance(address, tuple) or not address:
        credentials = credentials_of(connection)
        return "unix" if credentials is None else f"uid {credentials.uid}"
    host = str(address[0])  # pyright: ignore[reportUnknownArgumentType]
    try:
        if ":" not in host:
            return host if ipv4_prefix == 32 else _cut(socket.AF_INET, socket.inet_aton(host), ipv4_prefix)
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except (OSError, ValueError):
        # An override of get_request() may have any names.
        return host
    if packed.startswith(_MAPPED):
        return _cut(socket.AF_INET, packed[12:], ipv4_prefix)
    return _cut(socket.AF_INET6, packed, ipv6_prefix)


def _cut(family: int, packed: bytes, prefix: int) -> str:
    bits = 8 * len(packed)
    if prefix >= bits:
        return socket.inet_ntop(family, packed)
    if prefix % 8:
        behind = bits - prefix
        packed = (int.from_bytes(packed, "big") >> behind << behind).to_bytes(len(packed), "big")
    else:
        packed = packed[: prefix // 8].ljust(len(packed), b"\0")
    return f"{socket.inet_ntop(family, packed)}/{prefix}"
