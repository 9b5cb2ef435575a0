"""Where a person is: standard input and standard output, as bytes."""

from __future__ import annotations

import codecs
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator

from sockserve.log import printable

__all__ = ["READ_SIZE", "OutputError", "TerminalText", "input_as_socket", "input_lines", "write_out"]

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


class TerminalText:
    """Makes what a server says safe to show: no escape sequence moves the cursor, sets a title or types a command.

    Pieces may end anywhere, within a character too.
    """

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode
        self._held = ""

    def feed(self, data: bytes, *, is_all: bool = False) -> str:
        """The text of the next piece, with control characters as backslash escapes; lines end as they did."""
        text = self._held + self._decode(data, is_all)
        # Alone, a carriage return begins the line anew, over what stands there; its other half may come next.
        self._held = "\r" if text.endswith("\r") and not is_all else ""
        lines = text[: len(text) - len(self._held)].split("\r\n")
        return "\r\n".join(printable(line, keep="\n\t") for line in lines)


_shown = TerminalText()


def write_out(data: bytes, *, is_all: bool = False) -> None:
    """Write to standard output, at once; to a terminal without its control sequences. Raises OutputError.

    ``is_all``: nothing more will come.
    """
    if sys.stdout is not None and sys.stdout.isatty():  # pyright: ignore[reportUnnecessaryComparison]
        data = _shown.feed(data, is_all=is_all).encode(sys.stdout.encoding, "backslashreplace")
    unwritten = memoryview(data)
    while unwritten and sys.stdout is not None:
        try:
            # Not through sys.stdout: what it could not write it would try to write again at the end.
            unwritten = unwritten[os.write(sys.stdout.fileno(), unwritten) :]
        except OSError as error:
            # EPIPE is head(1), and others who take the first lines only.
            raise OutputError("" if isinstance(error, BrokenPipeError) else error.strerror) from None
