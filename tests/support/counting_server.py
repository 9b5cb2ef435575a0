"""The server that the tests of the loop's flaws have in common."""

from __future__ import annotations

import threading
from typing import Any

from support.under_test import S

__all__ = ["LOOPBACK", "CountingServer"]

LOOPBACK = ("127.0.0.1", 0)


class CountingServer(S.TCPServer):  # type: ignore[misc]
    """Serves inline; tells when its loop has ended and how often it tried to accept."""

    request_queue_size = 128

    def __init__(self, handler: Any) -> None:
        super().__init__(LOOPBACK, handler)
        self.has_ended = threading.Event()
        self.attempts = 0

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve, and tell when it is over."""
        self.has_ended.clear()
        try:
            super().serve_forever(poll_interval)
        finally:
            self.has_ended.set()

    def get_request(self) -> Any:
        """Count, and accept."""
        self.attempts += 1
        return super().get_request()
