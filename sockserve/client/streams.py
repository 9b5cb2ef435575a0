"""A conversation over a stream, plain or TLS.

Rule 1. One selector waits for both directions. A server that answers before it has read everything would otherwise
wait for the client, while the client waits for the server.
Rule 2. What comes from the server is printed at once, and nothing of it is kept.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
from typing import cast

from sockserve.client.terminal import READ_SIZE, input_as_socket, write_out

__all__ = ["HANDSHAKE_TIMEOUT", "Conversation", "Plain", "Tls"]

HANDSHAKE_TIMEOUT = 10.0
"""Seconds that a server may be silent in a TLS handshake: as long as a sockserve server waits for a client."""

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Plain:
    """A layer that changes nothing: plain TCP."""

    def encode(self, data: bytes) -> bytes:
        """Return what to send for ``data``."""
        return data

    def end(self) -> bytes:
        """Return what to send when the input has ended."""
        return b""

    def decode(self, data: bytes | None) -> tuple[bytes, bool]:
        """Return what the server sent, and whether that was the end.

        ``data`` is what recv() returned: empty at end-of-file. None: only what the layer has kept.
        """
        return data or b"", data == b""


class Tls(Plain):
    """TLS over buffers in memory: so close_notify can be sent without reading what arrives meanwhile (SSL_shutdown(3)).

    The constructor does the handshake, and raises OSError (``ssl.SSLError``, TimeoutError) if it fails.
    """

    def __init__(self, connection: socket.socket, context: ssl.SSLContext, host: str | None) -> None:
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._to_send, server_hostname=host)
        connection.settimeout(HANDSHAKE_TIMEOUT)
        while not self._shakes_hands(connection):
            self._take(connection.recv(READ_SIZE))

    def _shakes_hands(self, connection: socket.socket) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            connection.sendall(self._to_send.read())
            return False
        except ssl.SSLError:
            with contextlib.suppress(OSError):
                # The alert that says why.
                connection.sendall(self._to_send.read())
            raise
        connection.sendall(self._to_send.read())
        return True

    def _take(self, data: bytes) -> None:
        if data:
            self._received.write(data)
        else:
            self._received.write_eof()

    def encode(self, data: bytes) -> bytes:
        """As ``Plain.encode()``, encrypted."""
        self._tls.write(data)
        return self._to_send.read()

    def end(self) -> bytes:
        """Return close_notify, after which TLS can still read (RFC 8446, 6.1)."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        return self._to_send.read()

    def decode(self, data: bytes | None) -> tuple[bytes, bool]:
        """As ``Plain.decode()``. SSLEOFError: the server closed without close_notify, so data may be missing."""
        if data is not None:
            self._take(data)
        said = bytearray()
        try:
            while piece := self._tls.read(READ_SIZE):
                said += piece
        except ssl.SSLWantReadError:
            return bytes(said), False
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLEOFError:
            if said:
                # First return what there is: the descriptor stays readable, and the next call raises.
                return bytes(said), False
            raise
        return bytes(said), True


class Conversation:
    """One stream connection, from the first byte of the input to the last byte of the answer.

    One thread uses it. The caller closes the connection.
    """

    def __init__(self, connection: socket.socket, layer: Plain, line: bytes | None) -> None:
        self._connection = connection
        self._layer = layer
        self._input = input_as_socket() if line is None else None
        self._line = line
        self._unsent = b""

    def run(self) -> None:
        """Send the input, print the answer, return when the server has closed.

        OSError: the connection broke. OutputError: standard output takes no more.
        """
        self._connection.setblocking(False)
        has_ended = False
        # What the server sent together with the end of its handshake.
        if self._decode(None):
            return
        if self._line is not None:
            # Only now: SSL_shutdown(3) is an error while data of the server is unread.
            self._unsent = self._layer.encode(self._line + b"\n") + self._layer.end()
        with selectors.DefaultSelector() as selector, self._input or contextlib.nullcontext():
            while True:
                if not has_ended and self._input is None and not self._unsent:
                    has_ended = True
                    with contextlib.suppress(OSError):
                        # ENOTCONN: the server has closed already.
                        self._connection.shutdown(socket.SHUT_WR)
                _watch(selector, self._connection, READ | WRITE if self._unsent else READ)
                if self._input is not None:
                    _watch(selector, self._input, 0 if self._unsent else READ)
                for key, events in selector.select():
                    if key.fileobj is not self._connection:
                        self._read_input(selector, cast("socket.socket", key.fileobj))
                        continue
                    if events & WRITE:
                        self._send()
                    if events & READ and self._receive():
                        return

    def _read_input(self, selector: selectors.BaseSelector, source: socket.socket) -> None:
        data = source.recv(READ_SIZE)
        if data:
            self._unsent = self._layer.encode(data)
        else:
            self._unsent = self._layer.end()
            selector.unregister(source)
            self._input = None

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[self._connection.send(self._unsent) :]
        except BlockingIOError:
            pass
        except ConnectionError:
            # The server reads no more. Its answer may have arrived all the same.
            self._unsent = b""

    def _receive(self) -> bool:
        try:
            data = self._connection.recv(READ_SIZE)
        except BlockingIOError:
            return False
        return self._decode(data)

    def _decode(self, data: bytes | None) -> bool:
        said, is_all = self._layer.decode(data)
        write_out(said, is_all=is_all)
        return is_all


def _watch(selector: selectors.BaseSelector, sock: socket.socket, events: int) -> None:
    if sock in selector.get_map():
        selector.unregister(sock)
    if events:
        selector.register(sock, events)
