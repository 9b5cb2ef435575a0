"""HTTP keep-alive for the handlers of ``http.server``, by ``keep_open()``."""

from __future__ import annotations

import socket
from http import HTTPStatus
from typing import TYPE_CHECKING

from sockserve.core.connection_info import KnowsConnection
from sockserve.core.handlers import KeepStreamOpen
from sockserve.core.serving import serving_of
from sockserve.core.streams import open_reader
from sockserve.http_body import Body, CountingReader

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler as _Handler
else:
    # It is mixed into one, and the module need not be imported for that.
    _Handler = object

__all__ = ["HTTPKeepAliveMixIn"]


class HTTPKeepAliveMixIn(KnowsConnection, KeepStreamOpen, _Handler):
    """Makes a handler of ``http.server`` wait for the next request of its client as ``keep_open()`` does.

    Write it before the handler: ``class Handler(HTTPKeepAliveMixIn, SimpleHTTPRequestHandler)``. In a pool of threads
    an idle connection then holds no thread. Connections are kept only with ``protocol_version = "HTTP/1.1"``, and
    ``timeout`` is how many seconds of silence end them.

    What a handler did not read of a request's body is never taken for the next request: as much as has arrived, 64 KiB
    at most, is thrown away, and if that is not all of it the connection is closed. An answer says ``Connection: close``
    if the body has not arrived when its headers end, and while the server drains or stops.
    """

    __module__ = "sockserve"

    client_speaks_first = True
    """As of ``BaseRequestHandler``: browsers open connections that they may never use."""

    # The standard library's handlers do not set it.
    _serving_keeps_open: bool | None = None

    _serving_body: Body | None = None
    _serving_status = 0

    def setup(self) -> None:
        """Open the files; of this ``rfile`` one can tell what it has read ahead."""
        wants_no_delay = self.disable_nagle_algorithm
        if wants_no_delay and self.request.family not in (socket.AF_INET, socket.AF_INET6):
            # The standard library's setup() sets TCP_NODELAY on any socket; a Unix socket answers EOPNOTSUPP.
            vars(self)["disable_nagle_algorithm"] = False
        super().setup()
        self.rfile.close()
        self.rfile = open_reader(self.connection, self.rbufsize, CountingReader)

    def handle(self) -> None:
        """Answer one request."""
        self.close_connection = True
        self._serving_body = None
        self.handle_one_request()
        if not self.close_connection:
            body: Body | None = vars(self)["_serving_body"]
            if body is None or body.skip(self.connection):
                self.keep_open()
            else:
                self.close_connection = True

    def parse_request(self) -> bool:
        """Parse a request; from then on it is known how much of its body is read."""
        if not super().parse_request():
            return False
        self._serving_body = Body(self.headers, self.rfile)
        return True

    def send_response_only(self, code: int, message: str | None = None) -> None:
        """Begin an answer."""
        self._serving_status = code
        super().send_response_only(code, message)

    def send_header(self, keyword: str, value: str) -> None:
        """Send a header; ``Connection: keep-alive`` is not said by a server that will not."""
        if keyword.lower() == "connection" and value.lower() == "keep-alive" and self._serving_will_close():
            value = "close"
        super().send_header(keyword, value)

    def end_headers(self) -> None:
        """End the headers of an answer, with ``Connection: close`` if that is what will happen."""
        # 1xx is no answer yet.
        if not self.close_connection and self._serving_status >= HTTPStatus.OK and self._serving_will_close():
            self.send_header("Connection", "close")
        super().end_headers()

    def _serving_will_close(self) -> bool:
        lifecycle = serving_of(self.server).lifecycle
        if lifecycle.draining or lifecycle.is_lame or lifecycle.stop_requested:
            return True
        return self._serving_body is not None and not self._serving_body.is_here()

    def finish(self) -> None:
        """Wait for the next request if the last one asked for that; else close the files."""
        # The constructor of the standard library's handlers calls this as soon as handle() has returned.
        if not self._serving_keeps_open:
            super().finish()
            return
        self._serving_keeps_open = False
        if not self._serving_parks():
            self._serving_converse(False)
