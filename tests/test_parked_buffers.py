"""A parked connection's files keep no buffers, and lose nothing by it."""

from __future__ import annotations

import http.server
import io
import socket
import sys
from typing import Any

import pytest
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.concurrency.pool import parking
from sockserve.core.streams import give_up_buffers, open_reader, open_writer, take_buffers
from sockserve.pytest_plugin import Running
from sockserve.testing import connect

EMPTY = 1000
"""Bytes below which a file has no buffer to speak of: sys.getsizeof() counts it."""


@pytest.fixture(autouse=True)
def crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """One parked connection is a crowd."""
    monkeypatch.setattr(parking, "CROWD", 0)


def handler_of(server: Any) -> Any:
    """The handler of the one connection, which is parked."""
    wait_until(lambda: [each.state for each in server.active_requests] == ["parked"])
    return server.active_requests[0].handler


class Lines(sockserve.StreamRequestHandler):
    """Answers a line, twice as long as the default buffer at most."""

    wbufsize = -1

    def handle(self) -> None:
        """Serve one line."""
        line = self.rfile.readline(65536)
        if line:
            self.wfile.write(line[::-1])
            self.keep_open()


def test_buffers_are_given_up_while_parked_and_are_there_again(running: Running) -> None:
    """Of rfile and of a buffered wfile; lines longer than a buffer arrive whole each time."""
    server = running(sockserve.ThreadPoolTCPServer(("127.0.0.1", 0), Lines))
    with connect(server) as client, client.makefile("rb") as answers:
        for size in (5, 20_000, 5):
            client.sendall(b"a" * size + b"\n")
            assert answers.read(size + 1) == b"\n" + b"a" * size
            handler = handler_of(server)
            assert sys.getsizeof(handler.rfile) < EMPTY
            assert sys.getsizeof(handler.wfile) < EMPTY


def test_input_that_was_read_ahead_is_kept(running: Running) -> None:
    """Many lines in one segment: each is answered, in its order, also where a turn ends before they do."""
    server = running(sockserve.ThreadPoolTCPServer(("127.0.0.1", 0), Lines))
    lines = [b"%d\n" % number for number in range(500)]
    with connect(server) as client, connect(server) as other, client.makefile("rb") as answers:
        client.sendall(b"".join(lines))
        other.sendall(b"x\n")
        assert other.recv(10) == b"\nx"
        whole = b"".join(line[::-1] for line in lines)
        assert answers.read(len(whole)) == whole


def test_a_handler_of_http_server_too(running: Running) -> None:
    """Its buffered wfile is the standard library's."""
    handlers: list[Any] = []

    class Hello(sockserve.HTTPKeepAliveMixIn, http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_GET(self) -> None:
            handlers[:] = [self]
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: Any) -> None:
            pass

    server = running(sockserve.ThreadPoolTCPServer(("127.0.0.1", 0), Hello))
    with connect(server) as client:
        for _ in range(3):
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            data = b""
            while not data.endswith(b"ok"):
                data += client.recv(1000)
            handler_of(server)
            assert sys.getsizeof(handlers[0].rfile) < EMPTY
            assert sys.getsizeof(handlers[0].wfile) < EMPTY


def test_a_client_that_leaves_or_a_drain_ends_it_as_before(running: Running) -> None:
    """finish() finds files that work."""
    finished: list[bool] = []

    class Ends(Lines):
        def finish(self) -> None:
            self.wfile.write(b"bye")
            super().finish()
            finished.append(self.rfile.closed and self.wfile.closed)

    server = running(sockserve.ThreadPoolTCPServer(("127.0.0.1", 0), Ends))
    with connect(server) as client:
        client.sendall(b"x\n")
        assert client.recv(10) == b"\nx"
        handler_of(server)
        assert server.drain(LIMIT).cut == 0
        assert client.recv(10) == b"bye"
    assert finished == [True]


def test_the_size_is_the_handlers_own() -> None:
    """What a handler chose comes back; files of another kind, and without buffers, stay as they are."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader, writer = open_reader(ours, 100), open_writer(ours, 200)
        plain = sys.getsizeof(reader), sys.getsizeof(writer)
        give_up_buffers(reader, writer)
        assert sys.getsizeof(reader) == plain[0] - 99
        assert sys.getsizeof(writer) == plain[1] - 199
        take_buffers(reader, 100, writer, 200)
        assert (sys.getsizeof(reader), sys.getsizeof(writer)) == plain
        theirs.sendall(b"hello")
        assert reader.read(5) == b"hello"
        unbuffered, direct = open_reader(ours, 0), open_writer(ours, 0)
        for file in (io.BytesIO(b"x"), unbuffered):
            give_up_buffers(file, direct)
            take_buffers(file, 0, direct, 0)
        for file in (reader, writer, unbuffered, direct):
            file.close()


def test_a_few_keep_their_buffers(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below that number the time for each message counts more than the memory."""
    monkeypatch.setattr(parking, "CROWD", 2)
    server = running(sockserve.ThreadPoolTCPServer(("127.0.0.1", 0), Lines))
    with connect(server) as client:
        client.sendall(b"x\n")
        assert client.recv(10) == b"\nx"
        assert sys.getsizeof(handler_of(server).rfile) > io.DEFAULT_BUFFER_SIZE
