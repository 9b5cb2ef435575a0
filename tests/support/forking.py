"""Forking servers and their handlers that several tests share."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
from support.under_test import LIMIT

import sockserve
from sockserve.testing import connect

__all__ = ["LOOPBACK", "Counted", "SaysGoodbye", "interrupted"]

LOOPBACK = ("127.0.0.1", 0)


class Counted(sockserve.ForkingTCPServer):
    """Counts what becomes of its requests."""

    def __init__(self, handler: Any, **attributes: Any) -> None:
        self.counters = sockserve.Counters()
        self.observers = (*self.observers, self.counters)
        vars(self).update(attributes)
        super().__init__(LOOPBACK, handler)

    def outcome(self) -> tuple[int, int]:
        """How many requests were handled and failed, as soon as all are over."""
        assert self.wait_idle(LIMIT)
        return self.counters.handled, self.counters.failed


class SaysGoodbye(sockserve.StreamRequestHandler[Any, Any, Any]):
    """Says its process id, waits for a line, and says whether it is to come to an end."""

    # It holds a copy of the client's own end, and would not see it close if the test failed.
    timeout = LIMIT

    def handle(self) -> None:
        """Answer."""
        self.wfile.write(b"%d\n" % os.getpid())
        self.wfile.write(self.rfile.readline() + repr(self.server.draining).encode())


def interrupted(monkeypatch: pytest.MonkeyPatch, fork: Callable[[], int]) -> tuple[Counted, int]:
    """Serve one request with a fork() that is interrupted, and close; return the server and the id of its child."""
    server = Counted(SaysGoodbye, drain_timeout=0.1)
    with connect(server) as client, client.makefile("rb") as answer:
        monkeypatch.setattr(os, "fork", fork)
        with pytest.raises(KeyboardInterrupt):
            server.handle_request()
        (child,) = server.active_children or ()
        server.server_close()
        client.shutdown(socket.SHUT_WR)
        answer.read()
    return server, child
