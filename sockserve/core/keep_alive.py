"""HTTP keep-alive for the handlers of ``http.server``, by ``keep_open()``."""

from __future__ import annotations

import socket
from typing import Any

from sockserve.core.handlers import BaseRequestHandler, StreamRequestHandler
from sockserve.core.streams import open_reader

__all__ = ["HTTPKeepAliveMixIn"]


class HTTPKeepAliveMixIn:
    """Makes a handler of ``http.server`` wait for the next request of its client as ``keep_open()`` does.

    Write it before the handler: ``class Handler(HTTPKeepAliveMixIn, SimpleHTTPRequestHandler)``. In a pool of threads
    an idle connection then holds no thread. Connections are kept only with ``protocol_version = "HTTP/1.1"``, and
    ``timeout`` is how many seconds of silence end them.
    """

    # The standard library's handlers have none of these; what they do with a connection they do with its files too.
    _asked_to_keep_open: bool | None = None
    keep_open = BaseRequestHandler.__dict__["keep_open"]
    buffered_input = StreamRequestHandler.__dict__["buffered_input"]
    _serving_converse = BaseRequestHandler.__dict__["_serving_converse"]
    _serving_parks = BaseRequestHandler.__dict__["_serving_parks"]
    _serving_is_dry = StreamRequestHandler.__dict__["_serving_is_dry"]
    _wait_for_more_input = StreamRequestHandler.__dict__["_wait_for_more_input"]

    request: Any
    rfile: Any

    def setup(self) -> None:
        """Open the files; of this ``rfile`` one can tell what it has read ahead."""
        wants_no_delay = self.disable_nagle_algorithm  # type: ignore[attr-defined]
        if wants_no_delay and self.request.family not in (socket.AF_INET, socket.AF_INET6):
            # The standard library's setup() sets TCP_NODELAY on any socket; a Unix socket answers EOPNOTSUPP.
            vars(self)["disable_nagle_algorithm"] = False
        super().setup()  # type: ignore[misc]
        self.rfile.close()
        self.rfile = open_reader(self.connection, self.rbufsize)  # type: ignore[attr-defined]

    def handle(self) -> None:
        """Answer one request."""
        self.close_connection = True
        self.handle_one_request()  # type: ignore[attr-defined]
        if not self.close_connection:
            self.keep_open()

    def finish(self) -> None:
        """Wait for the next request if the last one asked for that; else close the files."""
        # The constructor of the standard library's handlers calls this as soon as handle() has returned.
        if not self._asked_to_keep_open:
            super().finish()  # type: ignore[misc]
            return
        self._asked_to_keep_open = False
        if not self._serving_parks():
            self._serving_converse(False)
