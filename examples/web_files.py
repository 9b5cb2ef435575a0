"""The standard library's ``http.server`` on sockserve, serving the current directory.

    python examples/web_files.py tcp://127.0.0.1:8000
    curl http://127.0.0.1:8000/

Its handlers loop over the requests of a connection, and hold a thread while a browser says nothing, which browsers do
most of the time. With ``HTTPKeepAliveMixIn`` before it a handler answers one request and asks for the next by
``keep_open()``. In a pool the connection is then parked: a handful of threads keeps thousands of them.
"""

from __future__ import annotations

import http.server
import io
import logging
import sys
from typing import BinaryIO

import sockserve


class WebFiles(sockserve.HTTPKeepAliveMixIn, http.server.SimpleHTTPRequestHandler):
    """Serves files, several to a connection."""

    protocol_version = "HTTP/1.1"
    timeout = 30
    # An answer in two pieces would wait for the acknowledgement of the first, 40 milliseconds on Linux.
    wbufsize = -1
    disable_nagle_algorithm = True

    def parse_request(self) -> bool:
        """Let the connection end after a request with a body: it is not read, and it is no further request."""
        is_request = super().parse_request()
        if is_request and {"content-length", "transfer-encoding"} & set(map(str.lower, self.headers)):
            self.close_connection = True
        return is_request

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        """Find the file; a path with a NUL in it leads to none."""
        try:
            return super().send_head()
        except ValueError:
            self.send_error(404)
            return None


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sockserve.serve(WebFiles, *(sys.argv[1:] or ["tcp://127.0.0.1:0"]), model="pool")
