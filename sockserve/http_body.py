"""Where the body of an HTTP/1.1 request ends, and how far its handler has read it (RFC 9112, 6 and 7.1).

A body that is not read to its end must not be taken for the next request, which its sender may have chosen.
"""

from __future__ import annotations

import select
from typing import Any

from sockserve.core.streams import SocketReader, StreamReader
from sockserve.net.tls import is_tls

__all__ = ["MOST_REST", "Body", "CountingReader"]

MOST_REST = 65536
"""Bytes that are thrown away at most so that a connection can be kept: as many as a lingering close takes."""

LONGEST_LINE = 4096
"""Bytes of a chunk's size with its extension, or of a trailer."""


class Chunks:
    """Finds the end of a body in chunks, from what arrives of it."""

    def __init__(self) -> None:
        self.end: int | None = None
        """Offset of what comes after the body; None: it is not known yet, or never will be."""
        self._is_bad = False
        self._offset = 0
        self._rest = 0
        self._line = b""
        self._in_trailers = False

    def feed(self, data: bytes) -> None:
        """Look at what has arrived next."""
        position = 0
        while position < len(data) and self.end is None and not self._is_bad:
            if self._rest:
                step = min(self._rest, len(data) - position)
                self._rest -= step
            else:
                line_end = data.find(b"\n", position) + 1
                step = (line_end or len(data)) - position
                self._line += data[position : position + step]
                self._is_bad = len(self._line) > LONGEST_LINE
                if line_end:
                    self._take_line(self._offset + step)
            position += step
            self._offset += step

    def _take_line(self, offset: int) -> None:
        line, self._line = self._line, b""
        if not line.endswith(b"\r\n"):
            # What counts such a line differently would see another end.
            self._is_bad = True
        elif self._in_trailers:
            if line == b"\r\n":
                self.end = offset
        else:
            digits = line[:-2].partition(b";")[0].rstrip(b" \t")
            self._is_bad = not digits or bool(digits.strip(b"0123456789abcdefABCDEF"))
            if not self._is_bad:
                size = int(digits, 16)
                self._in_trailers = not size
                # With the line end after it.
                self._rest = size + 2 if size else 0


class CountingReader(SocketReader):
    """Counts the bytes that arrive, and shows them to what looks for the end of a body."""

    received = 0
    chunks: Chunks | None = None

    def readinto(self, b: Any) -> int | None:
        """As that of a SocketReader."""
        is_new = not self._unread
        count = super().readinto(b)
        if count and is_new:
            self.received += count
            if self.chunks is not None:
                self.chunks.feed(bytes(memoryview(b)[:count]))
        return count

    def put_back(self) -> bytes:
        """What was put back, and has not been read again."""
        return self._unread


class Body:
    """The body of the request whose headers were just read; made before any of it is."""

    def __init__(self, headers: Any, rfile: Any) -> None:
        self._rfile = rfile
        raw = getattr(rfile, "raw", None)
        self._raw = raw if isinstance(raw, CountingReader) and isinstance(rfile, StreamReader) else None
        lengths = {each.strip() for each in ",".join(headers.get_all("Content-Length", ())).split(",")} - {""}
        codings = headers.get_all("Transfer-Encoding", ())
        self._chunks: Chunks | None = None
        self._length: int | None = None
        if headers.defects or any(name != name.strip() for name in headers):
            # What stands behind such a line is no header to Python's parser, and may be one to others.
            pass
        elif codings:
            if [each.strip().lower() for each in codings] == ["chunked"] and not lengths:
                self._chunks = Chunks()
        elif not lengths:
            self._length = 0
        elif len(lengths) == 1 and (length := lengths.pop()).isascii() and length.isdigit():
            self._length = int(length)
        if self._raw is not None:
            ahead = self._ahead()
            self._begin = self._raw.received - len(ahead)
            self._raw.chunks = self._chunks
            if self._chunks is not None:
                self._chunks.feed(ahead)

    def _ahead(self) -> bytes:
        ahead: bytes = self._rfile.buffered()
        return ahead if self._raw is None else ahead + self._raw.put_back()

    def rest(self) -> int | None:
        """How many bytes of it have not been read; None: that cannot be told."""
        end = self._length if self._chunks is None else self._chunks.end
        if not end and self._chunks is None:
            return end
        if end is None or self._raw is None:
            return None
        return max(0, end - (self._raw.received - len(self._ahead()) - self._begin))

    def is_here(self) -> bool:
        """Whether all of it was read from the connection, by its handler or ahead of it."""
        rest = self.rest()
        return rest is not None and (rest == 0 or rest <= len(self._ahead()))

    def skip(self, connection: Any) -> bool:
        """Throw away what was not read of it, as far as that has arrived; false: it did not get to the end."""
        taken = 0
        while (rest := self.rest()) != 0:
            ahead = len(self._ahead())
            if ahead:
                size = ahead if rest is None else min(ahead, rest)
                taken += size
                if taken > MOST_REST or (rest is None and self._chunks is None):
                    return False
                self._rfile.read(size)
            elif not self._raw or not _has_arrived(connection) or not self._rfile.peek(1):
                return False
        return True


def _has_arrived(connection: Any) -> bool:
    if is_tls(connection):
        # What can be read may be a part of a record.
        return bool(connection.pending())
    if not hasattr(select, "poll"):
        return bool(select.select([connection], [], [], 0)[0])
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))
