"""An HTTP server on a handler of one's own.

    python examples/hello_http.py tcp://127.0.0.1:8000
    curl http://127.0.0.1:8000/

``handle()`` answers one request. ``keep_open()`` then has it called again for the next one on the same connection, and
the server ends that wait when it stops. What a client can make us hold is bounded: the length of a line, the number of
header lines, and by ``timeout`` the seconds of silence.
"""

from __future__ import annotations

import logging
import sys

import sockserve

LONGEST_LINE = 8192
MOST_HEADERS = 100
BODY = b"Hello, world!\n"


class Hello(sockserve.StreamRequestHandler):
    """Says hello to GET and HEAD, whatever the path."""

    client_speaks_first = True
    timeout = 30
    # One packet for each answer.
    wbufsize = -1
    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Answer one request."""
        line = self.rfile.readline(LONGEST_LINE)
        if not line:
            return None
        method, _, rest = line.rstrip().partition(b" ")
        headers = {}
        for _ in range(MOST_HEADERS):
            line = self.rfile.readline(LONGEST_LINE)
            if not line.endswith(b"\n"):
                return self.answer(b"400 Bad Request")
            if not line.strip():
                break
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip().lower()
        else:
            return self.answer(b"431 Request Header Fields Too Large")
        if not rest.endswith((b" HTTP/1.1", b" HTTP/1.0")):
            return self.answer(b"400 Bad Request")
        if method not in (b"GET", b"HEAD"):
            return self.answer(b"501 Not Implemented")
        has_body = b"content-length" in headers or b"transfer-encoding" in headers
        wants_more = rest.endswith(b"1.1") and headers.get(b"connection") != b"close"
        return self.answer(b"200 OK", BODY, sends_body=method == b"GET", keeps_open=wants_more and not has_body)

    def answer(self, status: bytes, body: bytes = b"", *, sends_body: bool = True, keeps_open: bool = False) -> None:
        """Write a whole response; with ``keeps_open`` the client may ask again."""
        if keeps_open:
            self.keep_open()
        connection = b"keep-alive" if keeps_open else b"close"
        head = b"HTTP/1.1 %b\r\nContent-Length: %d\r\nConnection: %b\r\n\r\n" % (status, len(body), connection)
        self.wfile.write(head + (body if sends_body else b""))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sockserve.serve(Hello, *(sys.argv[1:] or ["tcp://127.0.0.1:8000"]))
