"""Handlers and servers for HTTP that several tests share."""

from __future__ import annotations

import http.server
from typing import Any

import sockserve

__all__ = ["PathPage", "StandardPool"]


class PathPage(http.server.BaseHTTPRequestHandler):
    """Answers each GET with its path, and keeps the connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.path)))
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


class StandardPool(sockserve.ThreadPoolMixIn, http.server.HTTPServer):
    """A standard library's server, on the pool."""

    max_workers = 2
