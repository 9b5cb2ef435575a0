"""Which host a TLS client asks for, seen before its connection is wrapped (RFC 8446, 4.1.2 and 5.1; RFC 6066, 3).

Not by OpenSSL: the ssl module gives the name to a callback only, and one that is not ASCII makes it write a traceback
to standard error, as often as a peer likes. What is misread here costs its sender the handshake, which OpenSSL judges.
"""

from __future__ import annotations

import re

__all__ = ["LONGEST_HELLO", "look_at_hello"]

LONGEST_HELLO = 16384
"""Bytes looked at. A longer hello names no host."""

HANDSHAKE = 22
CLIENT_HELLO = 1
SERVER_NAME = 0
HOST_NAME = 0

RECORD_HEADER = 5
LONGEST_RECORD = 16384 + 256
"""RFC 5246, 6.2.1: what OpenSSL accepts of one that is not encrypted."""

_NAME = re.compile(rb"[A-Za-z0-9_.-]{1,255}")


def look_at_hello(data: bytes) -> tuple[str | None, int]:
    """Give the name of the host that the client asks for, or None, and 0; or None and how many bytes are to be there.

    What is no hello, or longer than LONGEST_HELLO, names no host. Never raises, and never asks for more than that.
    """
    message = bytearray()
    start = 0
    while True:
        if len(data) < start + RECORD_HEADER:
            return None, _needed(data, start + RECORD_HEADER)
        length = int.from_bytes(data[start + 3 : start + 5], "big")
        if data[start] != HANDSHAKE or not 0 < length <= LONGEST_RECORD:
            return None, 0
        end = start + RECORD_HEADER + length
        message += data[start + RECORD_HEADER : end]
        if message and message[0] != CLIENT_HELLO:
            return None, 0
        size = 4 + int.from_bytes(message[1:4], "big")
        if len(message) >= 4 and len(message) >= size:
            return _name_in(bytes(message[4:size])), 0
        if len(data) < end:
            return None, _needed(data, end)
        start = end


def _needed(data: bytes, size: int) -> int:
    # A record that ends behind the limit may have the end of the hello before it.
    return min(size, LONGEST_HELLO) if len(data) < LONGEST_HELLO else 0


def _name_in(hello: bytes) -> str | None:
    try:
        # Version and random; then session, cipher suites and compression methods, each after its length.
        at = 34
        for width in (1, 2, 1):
            at += width + _number(hello, at, width)
        end = at + 2 + _number(hello, at, 2)
        at += 2
        while at < end:
            kind, size = _number(hello, at, 2), _number(hello, at + 2, 2)
            at += 4
            if kind == SERVER_NAME:
                return _first_name(hello[at : at + size])
            at += size
    except IndexError:
        pass
    return None


def _first_name(extension: bytes) -> str | None:
    # A list of one: of a kind that is no host name there has never been any, and no second name either.
    size = _number(extension, 3, 2)
    if _number(extension, 2, 1) != HOST_NAME or len(extension) != 5 + size:
        return None
    name = extension[5:]
    return name.decode("ascii") if _NAME.fullmatch(name) else None


def _number(data: bytes, at: int, width: int) -> int:
    """The number of ``width`` bytes at a place. Raises IndexError behind the end."""
    if len(data) < at + width:
        raise IndexError
    return int.from_bytes(data[at : at + width], "big")
