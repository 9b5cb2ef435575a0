"""HTTP connections that are kept, when their process is about to end. Trap O10."""

from __future__ import annotations

import http.client
import http.server
import signal

import pytest
from support.models import HERE
from support.serving import Operator, serve_with
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve

TCP = "tcp://127.0.0.1:0"


class Hello(sockserve.HTTPKeepAliveMixIn, http.server.BaseHTTPRequestHandler):
    """Answers, and keeps the connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """One word."""
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"hi")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGTERM])
@pytest.mark.parametrize("model", HERE)
def test_o10_a_client_hears_that_its_connection_ends(model: str, signum: signal.Signals, processes: int) -> None:
    """With an answer: between two requests it could send the next into a connection that ends.

    At a rolling restart, and in a lame duck's time.
    """

    def script(operator: Operator) -> None:
        client = http.client.HTTPConnection(*operator.server.server_address, timeout=LIMIT)

        def asks() -> bool:
            client.request("GET", "/")
            response = client.getresponse()
            assert response.read() == b"hi"
            return response.getheader("Connection") == "close"

        try:
            assert not asks()
            operator.signal(signum)
            wait_until(asks)
            # With a new connection that it makes by itself.
            asks()
        finally:
            client.close()
        operator.signal(signal.SIGINT)

    assert serve_with(script, Hello, TCP, model=model, processes=processes, lame_duck=None).failed == 0
