"""A client that sends without end: a handler that works on each line of it lets the others go on."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support.under_test import LIMIT

import sockserve
from sockserve.concurrency.cooperative.channel import Channel
from sockserve.pytest_plugin import Running
from sockserve.testing import connect

BUFFERS = 4
"""What a handler may have worked off, in buffers of its reader, when it looks whether others wait."""

BLOCK = b"line\n" * 20_000


@pytest.mark.parametrize("reads", ["lines", "recv", "recv_into"])
def test_the_turn_is_looked_at_after_a_few_full_reads(
    running: Running, monkeypatch: pytest.MonkeyPatch, reads: str
) -> None:
    """Not only after as many reads as short requests have: a thousand short lines are in each."""
    sent, looked = threading.Event(), threading.Event()
    share = Channel.share
    taken = [0]
    taken_at_look: list[int] = []

    def note(channel: Channel) -> None:
        taken_at_look.append(taken[0])
        looked.set()
        share(channel)

    class Handler(sockserve.StreamRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            # All of it is there before the first read.
            assert sent.wait(LIMIT)
            buffer = bytearray(8192)
            if reads == "lines":
                for line in self.rfile:
                    taken[0] += len(line)
            elif reads == "recv":
                while data := self.request.recv(8192):
                    taken[0] += len(data)
            else:
                while count := self.request.recv_into(buffer):
                    taken[0] += count

    monkeypatch.setattr(Channel, "share", note)
    server = running(sockserve.GreenletTCPServer(("127.0.0.1", 0), Handler))
    with connect(server, timeout=LIMIT) as client:
        client.sendall(BLOCK)
        sent.set()
        assert looked.wait(LIMIT)
    assert taken_at_look[0] <= BUFFERS * 8192
