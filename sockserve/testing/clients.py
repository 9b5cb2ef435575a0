"""Clients for tests: ``ask()``, and the clients that misbehave as those on a network do."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import tempfile
import threading
import time
import types
from typing import Any, Self

from sockserve.net.connecting import connect

__all__ = ["HalfClose", "HalfHandshake", "Reset", "Stall", "Trickle", "ask"]

CLIENT_HELLO_START = bytes.fromhex("16 0301 0200  01 0001fc 0303")
"""A TLS record of 512 bytes with a ClientHello of 508 bytes in it, cut after the version (RFC 8446, 5.1 and 4.1.2)."""

LARGEST_DATAGRAM = 65535
"""Bytes: what fits into the length field of UDP (RFC 768)."""

READ_SIZE = 65536
"""Bytes asked for in one recv(2)."""


def ask(address: Any, data: bytes, *, timeout: float = 10.0) -> bytes:
    """Return the server's whole answer to ``data``: all until end-of-file of a stream, or one datagram.

    ``address`` is a server, an address text (``"udp://127.0.0.1:53"``), or what ``socket.connect`` takes for a stream.
    A stream is half-closed after the data, which is sent while the answer is read. A server may answer without reading
    all of it. The whole exchange on a stream has ``timeout`` seconds. TimeoutError: it took longer; OSError: no
    connection, or it broke. From any thread.
    """
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(connect(address, timeout=timeout))
        if client.type == socket.SOCK_STREAM:
            return _exchange(client, data, timeout)
        if client.family == getattr(socket, "AF_UNIX", None):
            # The server can answer only a socket that has a name (unix(7)).
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="sockserve-"))
            client.bind(f"{directory}/client")
        client.send(data)
        return client.recv(LARGEST_DATAGRAM)


class Client:
    """A connection that lives for the length of a ``with`` block: it sends ``data`` when that begins, then waits.

    Each operation may take ``timeout`` seconds: TimeoutError. One thread uses it.
    """

    connection: socket.socket
    """Connected, inside the block."""

    def __init__(self, address: Any, data: bytes = b"", *, timeout: float = 10.0) -> None:
        self.address = address
        self.data = data
        self.timeout = timeout

    def __enter__(self) -> Self:
        self.connection = connect(self.address, timeout=self.timeout)
        if self.connection.type != socket.SOCK_STREAM:
            self.connection.close()
            raise ValueError(f"{type(self).__name__} needs a stream, and {self.address!r} takes datagrams")
        try:
            self._begin()
        except BaseException:
            self.connection.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: types.TracebackType | None
    ) -> None:
        self.connection.close()

    def read(self) -> bytes:
        """Return all that the server sends until it closes or half-closes. ConnectionResetError: it sent a reset."""
        chunks: list[bytes] = []
        while chunk := self.connection.recv(READ_SIZE):
            chunks.append(chunk)
        return b"".join(chunks)

    def _begin(self) -> None:
        self.connection.sendall(self.data)


class Stall(Client):
    """Connects, sends ``data``, then nothing more.

    The server sees a connection on which nothing comes, neither bytes nor end-of-file, until the block ends.
    """


class HalfClose(Client):
    """Sends ``data`` and end-of-file; ``read()`` returns the answer.

    The server sees end-of-file after the data and can still write (shutdown(2), SHUT_WR).
    """

    def _begin(self) -> None:
        super()._begin()
        self.connection.shutdown(socket.SHUT_WR)


class HalfHandshake(Client):
    """Sends the first bytes of a TLS ClientHello, then nothing more.

    A server that expects TLS sees a handshake that began and does not end; any other server sees 11 bytes.
    """

    def __init__(self, address: Any, *, timeout: float = 10.0) -> None:
        super().__init__(address, CLIENT_HELLO_START, timeout=timeout)


class Reset(Client):
    """Sends ``data``, then resets the connection: at ``reset()``, or when the block ends.

    Over TCP the server gets RST: ECONNRESET when it reads, EPIPE or ECONNRESET when it writes, and what it had not read
    yet may be lost (socket(7), SO_LINGER). Unix sockets have no RST: the server sees end-of-file and EPIPE, or
    ECONNRESET if it had sent something that was not read (unix(7)).
    """

    def reset(self) -> None:
        """Reset the connection now. No effect if it is closed."""
        if self.connection.fileno() >= 0:
            # With a linger time of 0 close(2) sends RST. Windows has two shorts in the struct.
            pair = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pair)
            self.connection.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: types.TracebackType | None
    ) -> None:
        self.reset()


class Trickle(Client):
    """Sends one byte of ``data`` every ``interval`` seconds, in a thread of its own, then nothing more.

    The server sees a client that is never silent for long and does not finish. The thread ends when the block ends,
    when all is sent, or when the server has closed. ``sent`` and ``error`` may be read from any thread.
    """

    def __init__(self, address: Any, data: bytes, *, interval: float = 0.05, timeout: float = 10.0) -> None:
        super().__init__(address, data, timeout=timeout)
        self.interval = interval
        self.sent = 0
        """Bytes sent so far."""
        self.error: OSError | None = None
        """What ended it early: the server closed (BrokenPipeError, ConnectionResetError) or stalls (TimeoutError)."""
        self._stop = threading.Event()

    def _begin(self) -> None:
        if self.connection.family != getattr(socket, "AF_UNIX", None):
            # Nagle's algorithm would hold a byte back until the one before it is acknowledged (RFC 896).
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._thread = threading.Thread(target=self._trickle, name="Trickle", daemon=True)
        self._thread.start()

    def _trickle(self) -> None:
        try:
            for byte in self.data:
                self.connection.send(bytes([byte]))
                self.sent += 1
                if self._stop.wait(self.interval):
                    return
        except OSError as error:
            self.error = error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: types.TracebackType | None
    ) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            # Wakes a send() that waits for a server that does not read. close() would free the number under the send().
            self.connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.connection.close()


def _exchange(client: socket.socket, data: bytes, timeout: float) -> bytes:
    deadline = time.monotonic() + timeout
    unsent = memoryview(data)
    answer = bytearray()
    client.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(client, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while True:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"no end of the answer within {timeout} seconds, {len(answer)} bytes so far")
            if ready[0][1] & selectors.EVENT_WRITE:
                # To send and read in turns would deadlock once both directions' buffers are full.
                try:
                    unsent = unsent[client.send(unsent) :]
                except (BrokenPipeError, ConnectionResetError):
                    unsent = unsent[:0]
                if not unsent:
                    with contextlib.suppress(OSError):
                        client.shutdown(socket.SHUT_WR)
                    selector.modify(client, selectors.EVENT_READ)
            if ready[0][1] & selectors.EVENT_READ:
                chunk = client.recv(READ_SIZE)
                if not chunk:
                    return bytes(answer)
                answer += chunk
