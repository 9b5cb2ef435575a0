"""A WSGI application (PEP 3333) in the standard library's ``wsgiref``, on sockserve.

    python examples/wsgi_app.py tcp://127.0.0.1:8000
    curl --data-binary "hello" http://127.0.0.1:8000/

wsgiref's handler asks its server for the application and for what every request has in its environment. Here it is
given both, and so runs in any server. Of the body an application must read no more than Content-Length says, and that
may be 4 GiB: how much it takes is its own decision.
"""

from __future__ import annotations

import logging
import sys
import types
import wsgiref.simple_server
from collections.abc import Iterable
from typing import TYPE_CHECKING

import sockserve

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

LARGEST_BODY = 65536


def count(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Say how many bytes were posted."""
    length = environ.get("CONTENT_LENGTH") or "0"
    if not (length.isdecimal() and len(length) < 10 and int(length) <= LARGEST_BODY):
        start_response("413 Content Too Large", [("Content-Type", "text/plain")])
        return [b"too much\n"]
    body = environ["wsgi.input"].read(int(length))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}: {len(body)} bytes\n".encode()]


class Wsgi(wsgiref.simple_server.WSGIRequestHandler):
    """Runs ``count``."""

    timeout = 30

    def setup(self) -> None:
        """Have what the handler looks for where it does."""
        super().setup()
        host, port = self.connection.getsockname()[:2]
        environ = {"SERVER_NAME": host, "SERVER_PORT": str(port), "SCRIPT_NAME": ""}
        self.server = types.SimpleNamespace(get_app=lambda: count, base_environ=environ)  # type: ignore[assignment]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sockserve.serve(Wsgi, *(sys.argv[1:] or ["tcp://127.0.0.1:0"]))
