"""http.server, xmlrpc.server and wsgiref on sockserve: with curl and xmlrpc.client, and with requests that lie."""

from __future__ import annotations

import contextlib
import http.client
import pathlib
import re
import xmlrpc.client
from typing import Any, cast

import pytest
from example import Example, flood, run
from support.under_test import LIMIT

from sockserve import testing

CURL = ("curl", "--silent", "--show-error", "--max-time", "20")
MUCH = 32 * 2**20


def url_of(address: str) -> str:
    """What a browser takes for an address text."""
    return address.replace("tcp://", "http://")


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder to be served, beside what must not be."""
    (tmp_path / "secret").write_text("secret")
    public = tmp_path / "public"
    public.mkdir()
    (public / "page.html").write_text("<p>Hello\n")
    return public


def test_web_files(folder: pathlib.Path) -> None:
    """Two files come over one connection; what is not there, or not below the folder, is not found."""
    with Example("web_files.py", cwd=folder) as example:
        url = url_of(example.address())
        page = f"{url}/page.html"
        assert run(*CURL, "--write-out", "%{num_connects}", page, page) == "<p>Hello\n1<p>Hello\n0"
        assert "page.html" in run(*CURL, url)
        for path in ("/../secret", "/%2e%2e/secret", "/page.html/../../secret", "/nothing", "//etc/passwd", "/%00"):
            assert "404" in run(*CURL, "--path-as-is", "--head", f"{url}{path}")
        example.end()


def test_silent_browsers_hold_no_thread(folder: pathlib.Path) -> None:
    """A hundred connections that stay open between two requests are served by two threads."""
    arguments = ("--model", "pool", "--max-workers", "2", "tcp://127.0.0.1:0")
    with Example("web_files:WebFiles", *arguments, cwd=folder) as example, contextlib.ExitStack() as browsers:
        host = example.address().removeprefix("tcp://")
        connections = [http.client.HTTPConnection(host, timeout=LIMIT) for _ in range(100)]
        for _ in range(2):
            for connection in connections:
                browsers.callback(connection.close)
                connection.request("GET", "/page.html")
                assert connection.getresponse().read() == b"<p>Hello\n"
        assert {connection.sock is None for connection in connections} == {False}
        browsers.close()
        example.end()


def test_what_is_no_http_request(folder: pathlib.Path) -> None:
    """Each is refused with a status, and a body that nobody reads is not taken for a request."""
    refusals = {
        b"GET /page.html HTTP/9.0\r\n\r\n": b"505",
        b"GET\0/\r\n\r\n": b"400",
        b"PUT / HTTP/1.1\r\nContent-Length: 4294967296\r\n\r\n": b"501",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200: b"431",
    }
    with Example("web_files:WebFiles", "tcp://127.0.0.1:0", cwd=folder) as example:
        address = example.address()
        request = b"GET /page.html HTTP/1.1\r\n"
        with testing.Stall(address, request + b"Host: half a req"):
            for data, status in refusals.items():
                assert re.search(rb"\b%b\b" % status, testing.ask(address, data))
            before = example.peak_memory()
            for start, status in ((b"GET /", b"414"), (request + b"A: ", b"431")):
                answer, _ = flood(address, start, b"x", MUCH)
                assert re.match(rb"HTTP/1.1 %b " % status, answer)
            assert example.peak_memory() - before < 8 * 2**20
            hidden = request + b"content-length: 40\r\n\r\n" + request
            assert testing.ask(address, hidden + b"\r\n").count(b"HTTP/1.1 200") == 1
            assert testing.ask(address, (request + b"\r\n") * 3).count(b"HTTP/1.1 200") == 3
        assert "Exception" not in example.end()


def test_xml_rpc() -> None:
    """A call has its result, or a fault that says what was wrong; a body that is too long is not read."""
    with Example("xml_rpc.py") as example:
        address = example.address()
        with xmlrpc.client.ServerProxy(url_of(address)) as proxy:
            assert cast("Any", proxy).add(1, 2) == 3
            assert cast("Any", proxy).system.listMethods()[0] == "add"
            for name in ("nothing", "add", "add.__class__", "_dispatch"):
                with pytest.raises(xmlrpc.client.Fault):
                    getattr(proxy, name)()
        post = b"POST /RPC2 HTTP/1.1\r\nContent-Length: %b\r\n\r\n"
        with testing.Stall(address, post % b"100"):
            for length in (b"4294967296", b"-1", b"9" * 5000, "٣".encode(), b"65537"):
                assert b" 413 " in testing.ask(address, post % length)
            before = example.peak_memory()
            answer, _ = flood(address, post % b"4294967296", b"x", MUCH)
            assert b" 413 " in answer
            laughs = b'<!DOCTYPE x [<!ENTITY a "%b">' % (b"ha" * 1000) + b"".join(
                b'<!ENTITY %c "%b">' % (98 + i, b"&%c;" % (97 + i) * 20) for i in range(8)
            )
            bomb = laughs + b"]><methodCall><methodName>&i;</methodName></methodCall>"
            assert b"<fault>" in testing.ask(address, post % b"%d" % len(bomb) + bomb)
            assert example.peak_memory() - before < 12 * 2**20
        assert "Exception occurred" not in example.end()


def test_wsgi_app() -> None:
    """The application answers, reads a body of the length that it says, and refuses one that says 4 GiB."""
    with Example("wsgi_app.py") as example:
        address = example.address()
        assert run(*CURL, f"{url_of(address)}/path") == "GET /path: 0 bytes\n"
        assert run(*CURL, "--data-binary", "hello", url_of(address)) == "POST /: 5 bytes\n"
        post = b"POST / HTTP/1.1\r\nContent-Length: %b\r\n\r\n"
        with testing.Stall(address, post % b"100"):
            for length in (b"4294967296", b"-1", b"9" * 5000, b"65537"):
                assert b" 413 " in testing.ask(address, post % length)
            assert testing.ask(address, post % b"100" + b"half").endswith(b"POST /: 4 bytes\n")
            before = example.peak_memory()
            answer, _ = flood(address, post % b"4294967296", b"x", MUCH)
            assert b" 413 " in answer
            answer, _ = flood(address, b"GET /", b"x", MUCH)
            assert b" 414 " in answer
            assert example.peak_memory() - before < 8 * 2**20
        assert "Exception" not in example.end()
