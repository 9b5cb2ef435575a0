"""A channel of the cooperative sockets beside the other end of its connection, and what a call in it raises."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from sockserve.concurrency.cooperative.channel import Channel
from sockserve.concurrency.cooperative.request_greenlet import RequestGreenlet, current_request_greenlet

__all__ = ["Pair", "error_of", "me"]


class Pair:
    """A channel, and the other end of its connection."""

    def __init__(self, limit: float | None = None) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        # What a call changes is looked at before and after it: a type checker takes the second look for impossible.
        self.channel: Any = Channel(self.ours.fileno(), limit)

    def close(self) -> None:
        """Close both ends, and the channel."""
        self.channel.close()
        self.ours.close()
        self.theirs.close()

    def fill(self) -> None:
        """Send until no more is taken."""
        while True:
            try:
                self.ours.send(bytes(1 << 16))
            except BlockingIOError:
                return


def error_of(function: Callable[[], object]) -> object:
    """The number of the OSError that a call raises, or another exception's class, or None."""
    try:
        function()
    except OSError as error:
        return error.errno or type(error)
    except Exception as error:
        return type(error)
    return None


def me() -> RequestGreenlet:
    """The greenlet that calls this."""
    current = current_request_greenlet()
    assert current is not None
    return current
