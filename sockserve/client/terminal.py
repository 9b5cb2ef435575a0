"""Standard input and standard output of the client program, as bytes."""

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
    """Standard output takes no more. The text says why; it is empty if the reader of a pipe has closed it."""


def input_as_socket() -> socket.socket:
    """Return a socket from which the bytes of standard input can be read; end-of-file when that ends.

    A daemon thread copies them: a selector cannot wait for a file or for a Windows console. The caller closes the
    socket, whereupon the thread ends with its next input.
    """
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        # Against socket.setdefaulttimeout(): the time between two lines that are typed has no limit.
        each.setblocking(True)

    def copy() -> None:
        # OSError: standard input is a directory, or the other socket is closed.
        with theirs, contextlib.suppress(OSError):
            while sys.stdin is not None and (data := os.read(sys.stdin.fileno(), READ_SIZE)):
                theirs.sendall(data)

    threading.Thread(target=copy, name="standard input", daemon=True).start()
    return ours


def input_lines() -> Iterator[bytes]:
    """Yield the lines of standard input without their ends; a line above ``LONGEST_LINE`` comes in pieces."""
    while sys.stdin is not None and (line := sys.stdin.buffer.readline(LONGEST_LINE)):
        yield line.removesuffix(b"\n")


class TerminalText:
    """Makes what a server sends safe to show: no escape sequence moves the cursor, sets a title or types a command.

    The text comes in pieces, which may end anywhere, also inside a character.
    """

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode
        self._held = ""

    def feed(self, data: bytes, *, is_all: bool = False) -> str:
        """Return the next piece as text; control characters become backslash escapes, line ends stay.

        ``is_all``: this was the last piece. Never raises for any bytes.
        """
        text = self._held + self._decode(data, is_all)
        # A carriage return without a newline would let the server overwrite the line. The newline may come next.
        self._held = "\r" if text.endswith("\r") and not is_all else ""
        lines = text[: len(text) - len(self._held)].split("\r\n")
        return "\r\n".join(printable(line, keep="\n\t") for line in lines)


_shown = TerminalText()


def write_out(data: bytes, *, is_all: bool = False) -> None:
    """Write to standard output at once; to a terminal without control sequences.

    ``is_all``: these are the last bytes. OutputError: standard output takes no more.
    """
    if sys.stdout is not None and sys.stdout.isatty():  # pyright: ignore[reportUnnecessaryComparison]
        data = _shown.feed(data, is_all=is_all).encode(sys.stdout.encoding, "backslashreplace")
    unwritten = memoryview(data)
    while unwritten and sys.stdout is not None:
        try:
            # Not sys.stdout.write(): its buffer would be written, and fail, once more at the end of the process.
            unwritten = unwritten[os.write(sys.stdout.fileno(), unwritten) :]
        except OSError as error:
            # EPIPE: the reader, head(1) for example, wanted the first lines only.
            raise OutputError("" if isinstance(error, BrokenPipeError) else error.strerror) from None
