"""Where a person is: standard input and standard output, as bytes."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator

__all__ = ["READ_SIZE", "OutputError", "input_as_socket", "input_lines", "write_out"]

READ_SIZE = 65536
"""Bytes asked for in one read."""

LONGEST_LINE = 65535
"""Bytes of the longest line that is read as one: no UDP datagram is longer (RFC 768)."""


class OutputError(Exception):
    """Standard output takes no more; the text says why, and is empty if somebody has just read enough."""


def input_as_socket() -> socket.socket:
    """What arrives on standard input: a thread copies it, because a file or a Windows console cannot be waited for."""
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        # Whatever socket.setdefaulttimeout() says: a person thinks as long as they like.
        each.setblocking(True)

    def copy() -> None:
        # OSError: a directory as input; or nobody wants more.
        with theirs, contextlib.suppress(OSError):
            while sys.stdin is not None and (data := os.read(sys.stdin.fileno(), READ_SIZE)):
                theirs.sendall(data)

    threading.Thread(target=copy, name="standard input", daemon=True).start()
    return ours


def input_lines() -> Iterator[bytes]:
    """The lines of standard input without their ends; one that is too long comes in pieces."""
    while sys.stdin is not None and (line := sys.stdin.buffer.readline(LONGEST_LINE)):
        yield line.removesuffix(b"\n")


def write_out(data: bytes) -> None:
    """Write to standard output, at once. Raises OutputError."""
    unwritten = memoryview(data)
    while unwritten and sys.stdout is not None:
        try:
            # Not through sys.stdout: what it could not write it would try to write again at the end.
            unwritten = unwritten[os.write(sys.stdout.fileno(), unwritten) :]
        except OSError as error:
            # EPIPE is head(1), and others who take the first lines only.
            raise OutputError("" if isinstance(error, BrokenPipeError) else error.strerror) from None
