"""``HTTPKeepAliveMixIn``: no body becomes a request, and an answer says whether the connection will be kept."""

from __future__ import annotations

import http.client
import http.server
import queue
import socket
import threading
from typing import Any

import pytest
from support.models import HERE, SERVERS
from support.pages import StandardPool
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.core.serving import serving_of
from sockserve.http_body import MOST_REST, Chunks
from sockserve.pytest_plugin import Running
from sockserve.testing import connect

LOOPBACK = ("127.0.0.1", 0)
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"


class Server(sockserve.ThreadPoolTCPServer):
    """Knows what was asked."""

    def __init__(self, handler: Any) -> None:
        self.seen: queue.Queue[str] = queue.Queue()
        super().__init__(LOOPBACK, handler)


class Page(sockserve.HTTPKeepAliveMixIn, http.server.BaseHTTPRequestHandler):
    """Answers a GET, and refuses a POST after reading as much of it as its path says."""

    protocol_version = "HTTP/1.1"
    timeout = LIMIT

    def answer(self) -> None:
        """Answer."""
        self.server.seen.put(f"{self.command} {self.path}")
        if self.command == "POST":
            self.rfile.read(int(self.path[1:]))
        self.send_response(403 if self.command == "POST" else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    do_GET = do_POST = answer  # noqa: N815 - the standard library's names

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


def chunked(body: bytes) -> bytes:
    """Encode a body in two chunks."""
    half = len(body) // 2
    pieces = [body[:half], body[half:], b""]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def read_answers(client: socket.socket, count: int) -> bytes:
    """Read until so many answers have come, or the end."""
    received = b""
    while received.count(b"\r\n\r\nok") < count and (data := client.recv(65536)):
        received += data
    return received


def seen_by(server: Any) -> list[str]:
    """Return what was asked."""
    return [server.seen.get_nowait() for _ in range(server.seen.qsize())]


@pytest.mark.parametrize("base", [StandardPool, *(SERVERS[model] for model in HERE)])
@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("read", [0, 3])
def test_a_body_that_was_not_read_is_thrown_away(running: Running, base: Any, is_chunked: bool, read: int) -> None:
    """The next request on the connection is the client's next one."""
    server = base(LOOPBACK, Page)
    server.seen = queue.Queue()
    running(server)
    header = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % len(HIDDEN)
    body = chunked(HIDDEN) if is_chunked else HIDDEN
    with connect(server.server_address, timeout=LIMIT) as client:
        client.sendall(b"POST /%d HTTP/1.1\r\n%b\r\n\r\n%b%b" % (read, header, body, NEXT))
        received = read_answers(client, 2)
    assert received.count(b"HTTP/1.1") == 2
    assert seen_by(server) == [f"POST /{read}", "GET /next"]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_that_was_read_whole_keeps_the_connection(running: Running, is_chunked: bool) -> None:
    """Whatever the handler made of it."""
    server = Server(Page)
    running(server)
    header = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % len(HIDDEN)
    body = chunked(HIDDEN) if is_chunked else HIDDEN
    with connect(server.server_address, timeout=LIMIT) as client:
        client.sendall(b"POST /%d HTTP/1.1\r\n%b\r\n\r\n" % (len(body), header))
        client.sendall(body)
        first = read_answers(client, 1)
        client.sendall(NEXT)
        assert b"200" in read_answers(client, 1)
    assert b"close" not in first
    assert seen_by(server) == [f"POST /{len(body)}", "GET /next"]


UNCERTAIN = {
    "not yet there": b"Content-Length: 100\r\n\r\n",
    "chunks not yet there": b"Transfer-Encoding: chunked\r\n\r\n20\r\n",
    "two lengths": b"Content-Length: 0\r\nContent-Length: 33\r\n\r\n",
    "negative": b"Content-Length: -1\r\n\r\n",
    "no number": b"Content-Length: 0x0\r\n\r\n",
    "length and chunks": b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "another coding": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"Content-Length : 33\r\n\r\n",
    "behind a line that is no header": b"nonsense\r\nContent-Length: 33\r\n\r\n",
    "a bad chunk": b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
    "a bare line feed": b"Transfer-Encoding: chunked\r\n\r\n0\n\r\n",
}


@pytest.mark.parametrize("headers", UNCERTAIN.values(), ids=UNCERTAIN)
def test_where_the_end_is_uncertain_the_connection_is_closed(running: Running, headers: bytes) -> None:
    """The answer says so, and what follows is not looked at."""
    server = Server(Page)
    running(server)
    with connect(server.server_address, timeout=LIMIT) as client:
        client.sendall(b"POST /0 HTTP/1.1\r\n" + headers)
        received = read_answers(client, 1)
        assert b"\r\nConnection: close\r\n" in received
        assert client.recv(10) == b""
    assert seen_by(server) == ["POST /0"]


def test_an_upload_is_not_thrown_away_without_end(running: Running) -> None:
    """After ``MOST_REST`` bytes the connection is closed."""
    server = Server(Page)
    running(server)
    with connect(server.server_address, timeout=LIMIT) as client:
        client.sendall(b"POST /0 HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (10 * MOST_REST))
        client.settimeout(LIMIT)
        assert b"\r\nConnection: close\r\n" in read_answers(client, 1)
        assert client.recv(10) == b""


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_end_of_chunks_is_found_however_they_arrive(size: int) -> None:
    """A piece may end anywhere; extensions and trailers are a part of the body."""
    body = b"5;name=value\r\nhello\r\n0005\r\nworld\r\n0\r\nTrailer: x\r\n\r\n"
    chunks = Chunks()
    everything = body + NEXT
    for begin in range(0, len(everything), size):
        chunks.feed(everything[begin : begin + size])
    assert chunks.end == len(body)


class Waiting(Page):
    """Answers when it is told to."""

    asked = threading.Event()
    told = threading.Event()

    def answer(self) -> None:
        """Answer."""
        self.asked.set()
        assert self.told.wait(LIMIT)
        self.send_response(200)
        self.send_header("Connection", "keep-alive")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    do_GET = answer  # noqa: N815 - the standard library's name


@pytest.mark.parametrize("base", [sockserve.TCPServer, sockserve.ThreadPoolTCPServer, sockserve.ThreadingTCPServer])
@pytest.mark.parametrize("says_so", [True, False])
def test_an_answer_says_that_the_server_drains(running: Running, base: Any, says_so: bool) -> None:
    """Its client does not send another request, which would be lost."""

    class Handler(Waiting):
        asked, told = threading.Event(), threading.Event()

        def send_header(self, keyword: str, value: str) -> None:
            """Leave it to the server to say what becomes of the connection."""
            if says_so or keyword != "Connection" or value == "close":
                super().send_header(keyword, value)

    server = running(base(LOOPBACK, Handler))
    client = http.client.HTTPConnection(*server.server_address, timeout=LIMIT)
    client.request("GET", "/")
    assert Handler.asked.wait(LIMIT)
    ending = threading.Thread(target=server.drain)
    ending.start()
    wait_until(lambda: serving_of(server).lifecycle.draining)
    Handler.told.set()
    answer = client.getresponse()
    assert (answer.read(), answer.getheader("Connection")) == (b"ok", "close")
    client.close()
    ending.join()


def test_an_interim_answer_says_nothing_about_the_connection(running: Running) -> None:
    """``100 Continue`` goes before the body and the answer proper."""
    server = Server(Page)
    running(server)
    with connect(server.server_address, timeout=LIMIT) as client:
        client.sendall(b"POST /5 HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        interim = client.recv(1000)
        client.sendall(b"hello")
        answer = read_answers(client, 1)
    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert b"close" not in answer
