"""Exactly one request, if it comes in time.

    python examples/one_request.py 10        wait at most ten seconds
    nc 127.0.0.1 PORT                        the port that it prints

``handle_request()`` takes one request and returns. It waits ``timeout`` seconds for it, then calls
``handle_timeout()``: enough for a login that opens a browser and waits for its answer, or for a test that needs to be
asked once. The time-out of the handler is another one: how long a client that has come may keep silent.
"""

from __future__ import annotations

import sys
from typing import Any

import sockserve


class Answer(sockserve.StreamRequestHandler):
    """Answers one line."""

    timeout = 10

    def handle(self) -> None:
        """Read a line of at most 1000 bytes."""
        line = self.rfile.readline(1000)
        print(f"{self.client_address} asks {line!r}", flush=True)
        self.wfile.write(b"You asked: " + line)


class OneRequest(sockserve.TCPServer[Any, Any]):
    """Waits for one request."""

    def handle_timeout(self) -> None:
        """No client came in time."""
        print("no client came", flush=True)


if __name__ == "__main__":
    with OneRequest(("127.0.0.1", 0), Answer) as server:
        server.timeout = float(sys.argv[1]) if sys.argv[1:] else 60.0
        print("listening on tcp://{}:{}".format(*server.server_address), flush=True)
        server.handle_request()
