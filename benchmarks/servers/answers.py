"""What every server answers, whatever it is written with, and how each of them begins."""

from __future__ import annotations

import os
import sys
import tempfile

BACKLOG = 4096
"""Of every listener: with a short one connections are dropped, and clients wait a second to try again."""

PONG = b"+PONG\r\n"
PAGE = b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
BODY = b"ok\n"

CPU_TURNS = 20_000
"""About a millisecond in pure Python."""


def dns_answer(query: bytes) -> bytes:
    """The query as its own answer: the same question, no records."""
    return query[:2] + b"\x81\x80" + query[4:]


HASHED = bytes(64 * 1024)
"""What a handler hashes that computes without the interpreter's lock."""

HELD = 0.05
"""Seconds for which a handler holds its worker, if its client does not say PING."""


def work_hard() -> int:
    """Keep a processor busy."""
    total = 0
    for each in range(CPU_TURNS):
        total += each & 7
    return total


def unix_path() -> str:
    """Where a Unix socket may be made; what kills this server removes it."""
    return f"{tempfile.gettempdir()}/sockserve-bench-{os.getpid()}.sock"


def announce(place: object) -> None:
    """Say where this server listens, its port or its path; from here on it is measured."""
    sys.stdout.write(f"{place}\n")
    sys.stdout.flush()
