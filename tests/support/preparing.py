"""Servers that prepare their connections, in every model, and what their clients are told."""

from __future__ import annotations

import logging
import socket
import ssl
from typing import Any

import pytest
from support.certificates import Pki
from support.log_watch import ExpectLog
from support.models import BESIDE_THE_LOOP, MODELS, SERVERS
from support.under_test import LIMIT

import sockserve
from sockserve.net.proxy_header import ProxyHeader

__all__ = [
    "DESTINATION",
    "HEADER",
    "LOOPBACK",
    "SOURCE",
    "InMemory",
    "Refusals",
    "Tell",
    "each_concurrent_model",
    "each_model",
    "make",
    "read_all",
    "say",
]

LOOPBACK = ("127.0.0.1", 0)
SOURCE, DESTINATION = ("192.0.2.1", 56324), ("198.51.100.9", 443)
HEADER = ProxyHeader(2, "PROXY", SOURCE, DESTINATION, ((0x02, b"b.test"),))

each_model = pytest.mark.parametrize("model", MODELS)
each_concurrent_model = pytest.mark.parametrize("model", BESIDE_THE_LOOP)


class Tell(sockserve.StreamRequestHandler[Any, Any, Any]):
    """Answers a line with what it is told, and with the line."""

    def setup(self) -> None:
        """X9: all is known before anything of the handler runs."""
        super().setup()
        info = self.connection_info
        header, tls = info.proxy_header, info.tls
        self.told = [
            str(each)
            for each in (
                self.client_address,
                info.client_address == self.client_address,
                info.destination_address,
                "-" if header is None else header.command,
                "-" if tls is None else f"{tls.version} {tls.server_name} {tls.alpn}",
                info.is_secure,
                info.server_name,
            )
        ]

    def handle(self) -> None:
        """Answer."""
        self.wfile.write("|".join([*self.told, self.rfile.readline().decode()]).encode())


class Refusals:
    """What a test sees of a client that is refused: one INFO line, and one refused request."""

    def __init__(self, server: Any, expect_log: ExpectLog, reason: str) -> None:
        self.server = server
        self.counters = sockserve.Counters()
        server.add_observer(self.counters)
        self.lines = expect_log(logging.INFO, f"^refused .*: {reason}$")

    def check(self) -> None:
        """Wait for the line, and see that it is the only one, and that the request is counted."""
        (line,) = self.lines.wait()
        assert "Traceback" not in line.text
        assert self.server.wait_idle(LIMIT)
        counters = self.counters
        assert [counters.accepted, counters.refused, counters.failed, counters.handled] == [1, 1, 0, 0]


def make(model: str, handler: Any = Tell, address: Any = LOOPBACK, **attributes: Any) -> Any:
    """Make a server with class attributes of its own."""
    return type("Server", (SERVERS[model],), attributes)(address, handler)


def read_all(client: socket.socket) -> bytes:
    """Return what comes until a proper end."""
    received = b""
    while chunk := client.recv(65536):
        received += chunk
    return received


def say(client: socket.socket, line: bytes = b"hello\n") -> list[str]:
    """What the handler told."""
    client.sendall(line)
    return read_all(client).decode().split("|")


class InMemory:
    """A TLS client whose bytes the test sends itself."""

    def __init__(self, pki: Pki, plain: socket.socket, name: str) -> None:
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = pki.client().wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        self.hello = self._outgoing.read()

    def _receive(self) -> None:
        self._plain.sendall(self._outgoing.read())
        if data := self._plain.recv(65536):
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def shake_hands(self) -> None:
        """All that comes after the hello."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._receive()
            else:
                return

    def record(self, data: bytes) -> bytes:
        """The record that has this data, to be sent by the test."""
        self._tls.write(data)
        return self._outgoing.read()

    def read(self) -> bytes:
        """The next data of the server; b"" at its end."""
        while True:
            self._receive()
            try:
                return self._tls.read()
            except ssl.SSLWantReadError:
                # A part of a record, or one that has no data.
                continue
            except ssl.SSLEOFError:
                return b""

    def say(self) -> list[str]:
        """What the handler told."""
        self._tls.write(b"hello\n")
        return self.read().decode().split("|")
