"""``sockserve.http``: the servers of ``http.server`` on this package's base, in each model."""

from __future__ import annotations

import http.client
import http.server
import pathlib
import socket
from typing import Any

import pytest
from support.certificates import client_context, make_certificate
from support.models import MODELS
from support.under_test import LIMIT

import sockserve
import sockserve.http
from sockserve.pytest_plugin import Running

NAMES = {
    "inline": "HTTPServer",
    "thread": "ThreadingHTTPServer",
    "pool": "ThreadPoolHTTPServer",
    "fork": "ForkingHTTPServer",
    "greenlet": "GreenletHTTPServer",
}


class Hello(sockserve.HTTPKeepAliveMixIn, http.server.BaseHTTPRequestHandler):
    """Answers with the name and port that its server knows."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer one request."""
        server: Any = self.server
        body = f"{server.server_name}:{server.server_port}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def server_class(model: str) -> Any:
    """The class of a model; its name is not looked up, as the resolver of a test machine may be slow."""
    base = getattr(sockserve.http, NAMES[model])
    return type(base.__name__, (base,), {"name_of": lambda _, host: f"name of {host}"})


@pytest.mark.parametrize("model", MODELS)
def test_each_serves_a_handler_of_the_standard_library(model: str, running: Running) -> None:
    """It knows its name, keeps the connection between requests, and drains."""
    server = running(server_class(model)(("127.0.0.1", 0), Hello))
    assert isinstance(server, sockserve.TCPServer)
    client = http.client.HTTPConnection(*server.server_address, timeout=LIMIT)
    for _ in range(3):
        client.request("GET", "/")
        assert client.getresponse().read() == b"name of 127.0.0.1:%d" % server.server_port
    client.sock.shutdown(socket.SHUT_RDWR)
    client.close()
    if model != "inline":
        assert server.drain(LIMIT).cut == 0


def test_tls_is_an_attribute(running: Running, tmp_path: pathlib.Path) -> None:
    """As of every server here."""
    certificate = make_certificate(tmp_path)
    base = server_class("pool")
    server = running(type("Server", (base,), {"tls": sockserve.TLS(certificate)})(("127.0.0.1", 0), Hello))
    context = client_context(certificate)
    client = http.client.HTTPSConnection("127.0.0.1", server.server_port, timeout=LIMIT, context=context)
    client.request("GET", "/")
    assert client.getresponse().read().startswith(b"name of")
    client.close()


def test_by_default_the_resolver_is_asked_and_a_unix_socket_has_a_name(tmp_path: pathlib.Path) -> None:
    """As the standard library's; a path has no port."""
    with sockserve.http.HTTPServer(("127.0.0.1", 0), Hello) as server:
        assert server.server_name == socket.getfqdn("127.0.0.1")
        assert server.server_port == server.server_address[1]

    class Unix(sockserve.http.HTTPServer):
        address_family = socket.AF_UNIX

    with Unix(str(tmp_path / "s"), Hello) as server:
        assert server.server_port == 0


def test_no_other_name_is_made_up() -> None:
    """The class for greenlets is made when it is asked for; anything else is an AttributeError."""
    assert sockserve.http.GreenletHTTPServer is sockserve.http.GreenletHTTPServer
    with pytest.raises(AttributeError, match="TwistedHTTPServer"):
        sockserve.http.TwistedHTTPServer  # noqa: B018
