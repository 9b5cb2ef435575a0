"""Which peers are meant by a list of networks: ``("10.0.0.0/8", "2001:db8::/32", "unix")``."""

from __future__ import annotations

import functools
import socket
from collections.abc import Sequence
from typing import Any, TypeAlias

from sockserve.errors import AddressError

__all__ = ["Networks", "networks_of"]

_Network: TypeAlias = tuple[int, int, int, int]
"""Bits of an address of the family, length of the prefix, bits behind it, and the number that the prefix is."""

UNIX = "unix"


class Networks:
    """Networks in CIDR notation (RFC 4632), addresses, and "unix" for every Unix socket. Raises AddressError."""

    def __init__(self, texts: Sequence[str]) -> None:
        if isinstance(texts, str):
            raise AddressError(f"{texts!r} is one text, not a list of networks")
        self.has_unix = UNIX in texts
        found = [_read(text) for text in texts if text != UNIX]
        # The longest prefix first: it is the one that counts.
        self._networks = sorted(found, key=lambda network: -network[1])

    def prefix_of(self, address: Any) -> int:
        """The length of the longest prefix that an address from ``accept()`` has in common with one; -1: with none.

        An IPv4 address in the form that an IPv6 socket gives it ("::ffff:192.0.2.1") is that IPv4 address.
        """
        if not isinstance(address, tuple):
            return 0 if self.has_unix else -1
        packed = _pack(str(address[0]))  # pyright: ignore[reportUnknownArgumentType]
        if packed is not None:
            bits, number = len(packed) * 8, int.from_bytes(packed, "big")
            for each_bits, prefix, behind, network in self._networks:
                if bits == each_bits and number >> behind == network:
                    return prefix
        return -1


@functools.lru_cache(maxsize=64)
def _networks(texts: tuple[str, ...]) -> Networks:
    return Networks(texts)


def networks_of(texts: Sequence[str]) -> Networks:
    """As ``Networks(texts)``, made once for each list. Raises AddressError."""
    return Networks(texts) if isinstance(texts, str) else _networks(tuple(texts))


_MAPPED = bytes(10) + b"\xff\xff"


def _pack(host: str) -> bytes | None:
    # A zone belongs to this host, and not to the address.
    literal = host.partition("%")[0]
    try:
        if ":" not in literal:
            return socket.inet_pton(socket.AF_INET, literal)
        packed = socket.inet_pton(socket.AF_INET6, literal)
    except (OSError, ValueError):
        return None
    return packed.removeprefix(_MAPPED) if packed.startswith(_MAPPED) else packed


def _read(text: str) -> _Network:
    host, slash, length = text.partition("/")
    packed = None if "%" in host else _pack(host)
    if packed is not None:
        bits = len(packed) * 8
        prefix = int(length) if length.isascii() and length.isdigit() else -1 if slash else bits
        if ":" in host and bits == 32 and slash:
            # ::ffff:10.0.0.0/104 is 10.0.0.0/8.
            prefix -= 96
        if 0 <= prefix <= bits:
            number = int.from_bytes(packed, "big")
            if not number & ((1 << (bits - prefix)) - 1):
                return bits, prefix, bits - prefix, number >> (bits - prefix)
            raise AddressError(f"{text!r} has bits set behind its prefix of {prefix}")
    raise AddressError(f'{text!r} is not a network, as "10.0.0.0/8" or "2001:db8::/32", nor "unix"')
