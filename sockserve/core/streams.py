"""The files over a connection: a reader that survives a time-out, and a writer without a buffer."""

# ruff: noqa: D102 - the readers' methods promise what io.BufferedReader's do

from __future__ import annotations

import io
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from sockserve.core.servable import Request
from sockserve.errors import PeerTimeoutError, SlowPeerError
from sockserve.net.aborting import why_aborted

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "SocketReader",
    "SocketWriter",
    "StreamReader",
    "UnbufferedReader",
    "give_up_buffers",
    "mark_waits",
    "open_reader",
    "open_writer",
    "take_buffers",
]


class SocketWriter(io.BufferedIOBase):
    """Writes to a socket at once and whole; holds no data, and closing it leaves the socket as it is."""

    def __init__(self, connection: socket.socket) -> None:
        self._sock = connection

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Buffer, /) -> int:
        """Send all of ``data``; return its length in bytes.

        Raises PeerTimeoutError, a TimeoutError, or another OSError; then how much was sent is unknown.
        """
        try:
            self._sock.sendall(data)
        except TimeoutError as error:
            raise PeerTimeoutError(*error.args) from error
        except OSError as error:
            _tell_slow(self._sock, error)
            raise
        if type(data) is bytes:
            return len(data)
        with memoryview(data) as view:
            return view.nbytes

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()


class RawWriter(socket.SocketIO):
    """What a buffered writer writes to."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection, "w")
        _hold(connection)

    def write(self, b: Buffer) -> int | None:
        """Send as much of ``b`` as the socket takes; None if it takes nothing now and does not block."""
        try:
            return super().write(b)
        except TimeoutError as error:
            raise PeerTimeoutError(*error.args) from error
        except OSError as error:
            _tell_slow(self._sock, error)  # type: ignore[attr-defined]
            raise


class SocketReader(io.RawIOBase):
    """The bytes of a connection, to be buffered by a StreamReader. To others it is what ``socket.SocketIO`` is.

    A time-out is "no bytes yet" to the buffer above, which then hands over what it has collected, and the StreamReader
    brings that back here with ``unread()`` before it raises.
    """

    # A file is made for each connection: what it begins with costs nothing here.
    mode = "rb"
    timed_out = False
    is_dry = False
    """Whether to leave the connection alone, and give only what was put back."""
    waits_since = 0.0
    """Since when it waits for the peer, in seconds of ``time.monotonic()``, if ``mark_waits()`` was called; 0: not."""
    waited = 0.0
    """Seconds of the waits that are over, likewise."""
    taken = 0
    """Bytes that came from the connection, likewise."""
    _unread = b""

    def __init__(self, connection: socket.socket) -> None:
        self._sock = connection
        _hold(connection)

    def readable(self) -> bool:
        """Yes."""
        return True

    # 0. A buffer asks for it once, and an exception that said no would cost as much as all else that it does. Not a
    # function of Python's: the buffer swallows what is raised there, also by a signal handler that runs as it begins.
    if TYPE_CHECKING:

        def tell(self) -> int: ...
    else:
        tell = staticmethod(int)

    def fileno(self) -> int:
        """The socket's descriptor."""
        if self.closed:
            raise ValueError("I/O operation on closed socket.")
        return self._sock.fileno()

    @property
    def name(self) -> int:
        """The socket's descriptor; -1 once it is closed."""
        return -1 if self.closed else self._sock.fileno()

    def readinto(self, b: Any) -> int | None:
        """Read at most ``len(b)`` bytes; None if there are none yet, 0 at end-of-file."""
        if self._unread:
            count = min(len(self._unread), len(b))
            b[:count] = self._unread[:count]
            self._unread = self._unread[count:]
            return count
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        if self.is_dry:
            return None
        try:
            return self._sock.recv_into(b)
        except TimeoutError:
            self.timed_out = True
            return None
        except BlockingIOError:
            return None

    def _read_marked(self, b: Any) -> int | None:
        """As ``readinto()``, with the marks; and what ``abort()`` has ended is no end-of-file."""
        if self._unread or self.is_dry:
            return _read_unmarked(self, b)
        began = self.waits_since = time.monotonic()
        try:
            count = _read_unmarked(self, b)
        except OSError as error:
            _tell_slow(self._sock, error)
            raise
        finally:
            self.waited += time.monotonic() - began
            self.waits_since = 0.0
        if count:
            self.taken += count
        elif not self.timed_out:
            _tell_slow(self._sock)
        return count

    def close(self) -> None:
        """Let go of the socket, which is closed now if its owner closed it before. Idempotent."""
        if not self.closed:
            super().close()
            self._sock._decref_socketios()  # type: ignore[attr-defined]  # noqa: SLF001 - what SocketIO does

    def unread(self, data: bytes) -> None:
        """Put back what was read last, to be read again first."""
        self._unread = data + self._unread


_read_unmarked = SocketReader.readinto


def mark_waits() -> None:
    """Let all readers of this process tell from now on how long they wait: for the first server that has deadlines.

    Exchanged in the class, so that the programs that have none do not pay for the question.
    """
    SocketReader.readinto = SocketReader._read_marked  # type: ignore[method-assign]  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def _tell_slow(connection: object, error: OSError | None = None) -> None:
    """Raise SlowPeerError if that is why the connection has ended."""
    reason = why_aborted(connection)
    if reason is not None:
        raise SlowPeerError(f"cut: {reason}") from error


class StreamReader(io.BufferedReader):
    """Buffers a connection. What a time-out interrupts can be tried again, and nothing is lost between.

    Raises PeerTimeoutError, which is a TimeoutError, after the connection's time-out without a byte; else OSError.
    """

    raw: SocketReader  # pyright: ignore[reportIncompatibleVariableOverride]

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        if self.raw.timed_out:
            self._time_out(line)
        return line

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if self.raw.timed_out:
            self._time_out(data)
        return data

    def read1(self, size: int = -1, /) -> bytes:
        data = super().read1(size)
        if self.raw.timed_out:
            self._time_out(data)
        return data

    def peek(self, size: int = 0, /) -> bytes:
        data = super().peek(size)
        if self.raw.timed_out:
            self._time_out(b"")
        return data

    def readinto(self, buffer: Buffer, /) -> int:
        count = super().readinto(buffer)
        if self.raw.timed_out:
            self._time_out(bytes(memoryview(buffer).cast("B")[: count or 0]))
        return count

    def readinto1(self, buffer: Buffer, /) -> int:
        count = super().readinto1(buffer)
        if self.raw.timed_out:
            self._time_out(bytes(memoryview(buffer).cast("B")[: count or 0]))
        return count

    def tell(self) -> int:
        raise io.UnsupportedOperation("seek")

    def buffered(self) -> bytes:
        """What was read ahead of the reader of this file; it stays there. Does not touch the connection."""
        self.raw.is_dry = True
        try:
            return super().peek()
        finally:
            self.raw.is_dry = False

    def _time_out(self, data: bytes | None) -> None:
        # The buffer is empty now: it asked for more only because all that it had was not enough.
        self.raw.timed_out = False
        if data:
            self.raw.unread(data)
        raise PeerTimeoutError("timed out")


class UnbufferedReader(SocketReader):
    """Reads a connection without taking more from it than is asked for; keeps the same promises as StreamReader."""

    def readinto(self, b: Buffer) -> int | None:
        count = super().readinto(b)
        if self.timed_out:
            self.timed_out = False
            raise PeerTimeoutError("timed out")
        return count

    def readline(self, size: int | None = -1, /) -> bytes:
        limit = sys.maxsize if size is None or size < 0 else size
        line = bytearray()
        try:
            while len(line) < limit and not line.endswith(b"\n"):
                byte = self.read(1)
                if not byte:
                    break
                line += byte
        except PeerTimeoutError:
            self.unread(bytes(line))
            raise
        return bytes(line)

    def tell(self) -> int:
        raise io.UnsupportedOperation("seek")

    def buffered(self) -> bytes:
        """What was put back, and has not been read again."""
        return self._unread

    def readall(self) -> bytes:
        data = bytearray()
        try:
            while piece := self.read(io.DEFAULT_BUFFER_SIZE):
                data += piece
        except PeerTimeoutError:
            self.unread(bytes(data))
            raise
        return bytes(data)


def open_reader(
    connection: Request, buffer_size: int, raw_class: Callable[[socket.socket], SocketReader] = SocketReader
) -> io.BufferedIOBase:
    """Open a file to read from a connection; ``buffer_size`` as for ``socket.makefile()``."""
    if not _opens_plain_files(connection):
        return cast("io.BufferedIOBase", connection.makefile("rb", buffer_size))
    if buffer_size == 0:
        return cast("io.BufferedIOBase", UnbufferedReader(connection))
    return StreamReader(raw_class(connection), _size(buffer_size))


def open_writer(connection: Request, buffer_size: int) -> io.BufferedIOBase:
    """Open a file to write to a connection; 0: every write is sent whole, else as for ``socket.makefile()``."""
    if buffer_size == 0:
        return SocketWriter(connection)
    if not _opens_plain_files(connection):
        return cast("io.BufferedIOBase", connection.makefile("wb", buffer_size))
    return io.BufferedWriter(RawWriter(connection), _size(buffer_size))


def give_up_buffers(reader: io.BufferedIOBase, writer: io.BufferedIOBase) -> None:
    """Free the buffers of files that are not used for some time, both of which are empty; ``take_buffers()`` undoes it.

    Only of files that were opened here, and of a buffered writer of ``socket.makefile()``; of others nothing changes.
    """
    # perf: 8 KiB less for each file, 11 000 instructions for each message of a crowd, NOTEBOOK.md#buffers-of-the-parked
    if type(reader) is StreamReader:
        _init_reader(reader, reader.raw, 1)
    if type(writer) is io.BufferedWriter and isinstance(writer.raw, socket.SocketIO):
        _init_writer(writer, writer.raw, 1)


def take_buffers(reader: io.BufferedIOBase, read_size: int, writer: io.BufferedIOBase, write_size: int) -> None:
    """Give files buffers again that ``give_up_buffers()`` took; the sizes are those that they were opened with."""
    if type(reader) is StreamReader:
        _init_reader(reader, reader.raw, _size(read_size))
    if type(writer) is io.BufferedWriter and isinstance(writer.raw, socket.SocketIO):
        _init_writer(writer, writer.raw, _size(write_size))


# A second __init__() exchanges the buffer, and neither touches nor closes what is beneath.
_init_reader = io.BufferedReader.__init__
_init_writer = io.BufferedWriter.__init__


def _opens_plain_files(connection: Request) -> bool:
    # gevent's sockets, and a test's stand-in, bring files of their own.
    makefile: object = getattr(type(connection), "makefile", None)  # pyright: ignore[reportUnknownArgumentType]
    return makefile is socket.socket.makefile


def _hold(connection: socket.socket) -> None:
    # What socket.makefile() does: the descriptor stays open until the file is closed too.
    connection._io_refs += 1  # type: ignore[attr-defined]  # noqa: SLF001 - there is no public way


def _size(buffer_size: int) -> int:
    return buffer_size if buffer_size > 0 else io.DEFAULT_BUFFER_SIZE
