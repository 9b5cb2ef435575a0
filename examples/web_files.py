"""The standard library's ``http.server`` on sockserve, serving the current directory.

    python examples/web_files.py tcp://127.0.0.1:8000
    curl http://127.0.0.1:8000/

Its handler loops over the requests of a connection, and holds a thread while a browser says nothing, which browsers do
most of the time. Put sockserve's class before it, and ``handle()`` answers one request and asks for the next by
``keep_open()``. In a pool the connection is then parked: a handful of threads keeps thousands of them.
"""

from __future__ import annotations

import http.server
import io
import logging
import pathlib
import sys
from typing import BinaryIO

import sockserve


class WebFiles(sockserve.StreamRequestHandler, http.server.SimpleHTTPRequestHandler):  # type: ignore[misc]
    """Serves files, several to a connection."""

    directory = str(pathlib.Path.cwd())
    protocol_version = "HTTP/1.1"
    timeout = 30
    # An answer in two pieces would wait for the acknowledgement of the first, 40 milliseconds on Linux.
    wbufsize = -1
    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Answer one request."""
        self.close_connection = True
        self.handle_one_request()
        # A body that nobody has read would be taken for the next request.
        if not self.close_connection and not {"Content-Length", "Transfer-Encoding"} & set(
            map(str.title, self.headers)
        ):
            self.keep_open()

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
