"""A signal every millisecond, with a handler in Python, disturbs nothing: not one request is lost."""

from __future__ import annotations

import concurrent.futures
import os

import pytest
from support.remote import RemoteServer
from support.under_test import LIMIT

from sockserve.testing import ask

CLIENTS = 4

# 2 500 in all; at least 50 signals, which is 50 ms, come meanwhile.
REQUESTS = {
    ("inline", False): 750,
    ("thread", False): 750,
    ("fork", False): 250,
    ("inline", True): 250,
    ("thread", True): 250,
    ("fork", True): 250,
    ("pool", False): 750,
    ("prefork-inline", False): 250,
}


@pytest.mark.parametrize(
    ("model", "own_loop"),
    REQUESTS,
    ids=[f"{model}-{'handle_request' if own_loop else 'serve_forever'}" for model, own_loop in REQUESTS],
)
def test_no_request_is_lost(model: str, own_loop: bool) -> None:
    """accept, recv, send, waitpid and the waits between them are interrupted all the time; each answer is whole."""
    # The answer is longer than what fits into one packet, or often into the free part of a buffer.
    payload = os.urandom(10_000).hex().encode()

    def talk(number: int) -> None:
        line = b"%d %b\n" % (number % 10, payload)
        assert ask(server.address, line, timeout=LIMIT) == line * (number % 10)

    count = REQUESTS[model, own_loop]
    with RemoteServer(model, storm=True, own_loop=own_loop) as server:
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as clients:
            for _ in clients.map(talk, range(count)):
                pass
        last = server.stop()
        assert (last.accepted, last.handled, last.active, last.failed) == (count, count, 0, 0)
        assert last.signals > 50
        assert server.errors() == ""
