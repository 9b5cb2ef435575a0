"""The servers of ``http.server`` on this package's base: with ``drain()``, ``active_requests``, TLS and all else.

A handler is one of ``http.server``'s, or any that speaks HTTP; with ``sockserve.HTTPKeepAliveMixIn`` an idle connection
holds no thread of a pool. There is a class for each way to run a handler. As ``http.server`` itself, they are no front
for the open internet by themselves: their handlers check little of what a client sends.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, ClassVar

from sockserve.concurrency.forks import ForkingMixIn
from sockserve.concurrency.pool.mix_in import ThreadPoolMixIn
from sockserve.concurrency.threads import ThreadingMixIn
from sockserve.core.server import TCPServer

if TYPE_CHECKING:
    from sockserve.greenlets import GreenletMixIn

__all__ = ["HTTPServer", "ThreadPoolHTTPServer", "ThreadingHTTPServer"]


_WITH_PORT = (socket.AF_INET, socket.AF_INET6)


class HTTPServer(TCPServer[socket.socket, Any]):
    """A TCPServer that knows the name under which ``http.server``'s handlers speak of it.

    ``server_bind()`` asks the resolver for that name, as ``http.server`` does; a subclass whose resolver is slow
    overrides ``name_of()``.
    """

    server_name: str
    """The fully qualified name of the host; handlers put it into CGI variables and the like."""

    server_port: int
    """The port that was bound; 0 for a Unix socket."""

    allow_reuse_address: bool = True

    def server_bind(self) -> None:
        """As TCPServer's; then set ``server_name`` and ``server_port``."""
        super().server_bind()
        # A Unix socket's address is a path.
        host, port = ("", 0) if self.address_family not in _WITH_PORT else self.server_address[:2]
        self.server_name, self.server_port = self.name_of(host), port

    def name_of(self, host: str) -> str:
        """Return the name of the host that was bound."""
        return socket.getfqdn(host)


class ThreadingHTTPServer(ThreadingMixIn, HTTPServer):
    """An HTTPServer that serves each connection in a new thread, none of which keeps the program from ending."""

    daemon_threads: ClassVar[bool] = True  # type: ignore[misc]


class ThreadPoolHTTPServer(ThreadPoolMixIn, HTTPServer):
    """An HTTPServer that serves its connections in a pool of threads."""


if hasattr(os, "fork"):
    __all__ += ["ForkingHTTPServer"]

    class ForkingHTTPServer(ForkingMixIn, HTTPServer):
        """An HTTPServer that serves each connection in a child process."""


if TYPE_CHECKING:

    class GreenletHTTPServer(GreenletMixIn, HTTPServer):
        """An HTTPServer that serves each connection in a greenlet; needs the extra ``sockserve[greenlet]``."""


def __getattr__(name: str) -> Any:
    if name != "GreenletHTTPServer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sockserve.greenlets import GreenletMixIn  # noqa: PLC0415 - it needs the extra

    made = type(name, (GreenletMixIn, HTTPServer), {"__module__": __name__, "__doc__": _GREENLETS})
    return globals().setdefault(name, made)


_GREENLETS = "An HTTPServer that serves each connection in a greenlet; needs the extra ``sockserve[greenlet]``."
