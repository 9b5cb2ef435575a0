"""Multicast groups as text, and how a socket joins one: ``239.1.2.3%eth0``, ``ff02::114%eth0``, ``group@source%eth0``.

By interface, and for both IP versions alike (MCAST_JOIN_GROUP, RFC 3678 section 5): an address of the interface may
change, and IPv6 has no call that takes one.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import sys
from typing import NamedTuple

from sockserve.errors import AddressError

__all__ = ["Membership", "join", "parse_membership"]

# RFC 3678 gives the names; the numbers are each system's, and CPython knows none of them.
_JOIN_GROUP, _JOIN_SOURCE_GROUP = {"linux": (42, 46), "darwin": (80, 82)}.get(sys.platform, (None, None))

# ip(7), ipv6(7): without these a socket also gets what other sockets of the host have joined.
_ALL_OF_IPV4 = {"linux": 49}.get(sys.platform)
_ALL_OF_IPV6 = {"linux": 29}.get(sys.platform)

_STORAGE = 128
"""Bytes of a struct sockaddr_storage (RFC 3493, section 3.10)."""

_HAS_LENGTH = sys.platform == "darwin"
"""Whether a socket address begins with its length, as on the BSDs."""


class Membership(NamedTuple):
    """A group that a socket is to join."""

    group: ipaddress.IPv4Address | ipaddress.IPv6Address
    source: ipaddress.IPv4Address | ipaddress.IPv6Address | None
    """Only what this host sends is to come (RFC 4607); None: what anything sends."""
    interface: str | None
    """None: the one that the system's routes say."""


def parse_membership(text: str) -> Membership:
    """Read ``group[@source][%interface]``. Raises AddressError, which says what is wrong with it."""
    addresses, _, interface = text.partition("%")
    group_text, at, source_text = addresses.partition("@")
    try:
        group = ipaddress.ip_address(group_text)
        source = ipaddress.ip_address(source_text) if at else None
    except ValueError as error:
        raise AddressError(f"multicast {text!r}: {error}") from None
    if not group.is_multicast:
        raise AddressError(f"multicast {text!r}: {group} is no group (224.0.0.0/4, ff00::/8)")
    if source is not None and (source.version != group.version or source.is_multicast):
        raise AddressError(f"multicast {text!r}: {source} cannot send to that group")
    if "%" in text and not interface:
        raise AddressError(f"multicast {text!r}: the interface is missing after %")
    return Membership(group, source, interface or None)


def join(sock: socket.socket, membership: Membership) -> None:
    """Join a group on a datagram socket, which from then on gets only the groups that were joined on itself.

    The kernel leaves the group when the socket is closed. Raises AddressError for an interface that is not there and
    for a group of the other IP version; OSError as setsockopt(2), for example EADDRINUSE: joined twice.
    """
    is_ipv6 = sock.family == socket.AF_INET6
    if is_ipv6 != (membership.group.version == 6) or sock.family not in (socket.AF_INET, socket.AF_INET6):
        raise AddressError(f"a socket of {sock.family.name} cannot join {membership.group}")
    if _JOIN_GROUP is None or _JOIN_SOURCE_GROUP is None:
        raise AddressError("multicast groups are not supported on this system")
    level = socket.IPPROTO_IPV6 if is_ipv6 else socket.IPPROTO_IP
    index = 0
    if membership.interface is not None:
        try:
            index = socket.if_nametoindex(membership.interface)
        except OSError:
            raise AddressError(f"there is no network interface {membership.interface!r} here") from None
    request = struct.pack("@I0L", index) + _address(membership.group)
    if membership.source is None:
        sock.setsockopt(level, _JOIN_GROUP, request)
    else:
        sock.setsockopt(level, _JOIN_SOURCE_GROUP, request + _address(membership.source))
    only_own = _ALL_OF_IPV6 if is_ipv6 else _ALL_OF_IPV4
    if only_own is not None:
        with contextlib.suppress(OSError):
            # ENOPROTOOPT: IPv6 has it from Linux 4.20 on.
            sock.setsockopt(level, only_own, 0)


def _address(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
    """A struct sockaddr_storage."""
    is_ipv6 = address.version == 6
    family = int(socket.AF_INET6 if is_ipv6 else socket.AF_INET)
    size = 28 if is_ipv6 else 16
    head = struct.pack("=BB", size, family) if _HAS_LENGTH else struct.pack("=H", family)
    # Port, then for IPv6 the flow label.
    middle = bytes(6) if is_ipv6 else bytes(2)
    return (head + middle + address.packed).ljust(_STORAGE, b"\0")
