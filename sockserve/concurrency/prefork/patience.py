"""How long a client may keep the loop of a worker that serves inline, and what ends that.

Rule 1. The supervisor finds that a loop stands still, and orders it freed before it takes the worker for hung: at first
the input of the request that the loop serves ends, then its connection is cut. No more is done to a worker that goes on
then.
Rule 2. What is ended is what stood still when the supervisor looked: the beat that it saw is still the last one.
Rule 3. Once one was found, the next has half the time, and the one after it half of that, if its client has sent
nothing at all and another one waits. So a client that comes after any number of silent ones waits about twice the time
of one. All have the whole time again when the loop has nothing to do.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

from sockserve.concurrency.prefork.protocol import BEAT, STALE
from sockserve.concurrency.prefork.worker_commands import end_input_of
from sockserve.concurrency.prefork.worker_link import Link
from sockserve.core.active_requests import LiveRequest
from sockserve.core.poller import wait_readable
from sockserve.core.replaced import reach
from sockserve.core.serving import table_of
from sockserve.log import log
from sockserve.net.closing import cut

__all__ = ["Patience"]

LEAST_PART = 16
"""The time that a silent client has is never less than this part of ``worker_timeout``."""

_BYTES_RECEIVED = 128
"""Where in Linux's struct tcp_info that number is, 64 bits, since 4.1."""


class Patience:
    """What a worker's control thread has with the clients that keep its loop."""

    def __init__(self, link: Link, servers: Sequence[Any]) -> None:
        self._link = link
        self._servers = servers
        self._limit: float | None = None
        self._ended: int | None = None
        """The beat of the request whose input ended last."""

    def free(self) -> None:
        """End the input of the request that keeps the loop; told so once more about the same, cut it."""
        numbers = self._link.page.numbers
        held, beat = self._held(), numbers[STALE]
        if numbers[BEAT] != beat:
            # It has turned meanwhile: what it serves is another request.
            return
        for server, live in held:
            seconds = self._link.page.silence() or 0.0
            if self._ended == beat:
                log.warning("%s: cut %s, which keeps the loop for %.1f s", server, live.client_address, seconds)
                reach(live, cut)
            else:
                self._end_input(server, live, seconds, log.warning)
        self._ended = beat
        timeout = self._link.orders.worker_timeout
        if held and timeout is not None:
            self._limit = timeout / 2

    def longest_wait(self) -> float | None:
        """Seconds until ``look()`` is to be called; None: not before the next order."""
        if self._limit is None:
            return None
        since = self._link.page.silence()
        return self._limit if since is None or since >= self._limit else self._limit - since

    def look(self) -> None:
        """See whether the next client is silent too. No effect while none was found."""
        limit, timeout = self._limit, self._link.orders.worker_timeout
        if limit is None or timeout is None:
            return
        beat, since, held = self._link.page.numbers[BEAT], self._link.page.silence(), self._held()
        if since is None or not held:
            self._limit = None
        elif since >= limit and beat != self._ended and self._does_a_client_wait():
            for server, live in held:
                if _has_sent_nothing(live) and self._link.page.numbers[BEAT] == beat:
                    self._ended = beat
                    self._limit = max(limit / 2, timeout / LEAST_PART)
                    # A line for each would let clients fill the log.
                    self._end_input(server, live, since, log.debug)

    def _held(self) -> list[tuple[Any, LiveRequest]]:
        thread = self._link.loop_thread()
        return [
            (server, live)
            for server in self._servers
            for live in table_of(server).all()
            # A greenlet's thread serves others as well; what a subclass keeps is its own business.
            if live.thread is not None and live.thread == thread and live.greenlet is None and live.kept is None
            if live.process is None and not live.detached
        ]

    def _end_input(self, server: Any, live: LiveRequest, seconds: float, tell: Callable[..., None]) -> None:
        text = "%s: the input of %s ends, which keeps the loop for %.1f s"
        tell(text, server, live.client_address, seconds)
        end_input_of(server, live)

    def _does_a_client_wait(self) -> bool:
        for server in self._servers:
            try:
                if wait_readable(server.fileno(), 0.0):
                    return True
            except (OSError, ValueError):
                # Closed meanwhile.
                pass
        return False


def _has_sent_nothing(live: LiveRequest) -> bool:
    """Whether that is known of its client: of TCP alone, and from Linux."""
    request = live.request
    if sys.platform != "linux" or not isinstance(request, socket.socket):
        return False
    try:
        known = request.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED + 8)
        return bool(struct.unpack_from("Q", known, _BYTES_RECEIVED)[0] == 0)
    except (OSError, struct.error):
        return False
