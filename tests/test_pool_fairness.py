"""A client that never pauses does not keep a pool's only worker from the others."""

from __future__ import annotations

import contextlib
import select
import threading
from typing import Any

import pytest
from support.under_test import LIMIT
from support.waiting import wait_until, wait_until_arrived

import sockserve
from sockserve.pytest_plugin import Running
from sockserve.testing import connect

LOOPBACK = ("127.0.0.1", 0)


@pytest.mark.parametrize("poller", ["epoll", "selector"])
@pytest.mark.parametrize("who", ["parked", "newcomer"])
def test_who_sends_without_a_pause_lets_others_have_their_turns(
    running: Running, monkeypatch: pytest.MonkeyPatch, who: str, poller: str
) -> None:
    """The only worker finds the next message in its buffer each time, and all the same looks who else has spoken."""
    if poller == "selector":
        monkeypatch.delattr(select, "epoll", raising=False)
    begun, spoken = threading.Event(), threading.Event()
    # No whole number of these fills a buffer, so that no read ends between two of them.
    flood = [b"x" * 60 + b"\n"] * 300
    heard: list[bytes] = []
    heard_before: list[int] = []

    class Lines(sockserve.StreamRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            line = self.rfile.readline()
            if line == b"ping\n":
                heard_before.append(len(heard))
                self.wfile.write(b"pong\n")
            elif line:
                heard.append(line)
                begun.set()
                assert spoken.wait(LIMIT)
                # Some work.
                threading.Event().wait(0.001)
            if line:
                self.keep_open()

    server = running(type("Server", (sockserve.ThreadPoolTCPServer,), {"max_workers": 1})(LOOPBACK, Lines))
    with contextlib.ExitStack() as stack:
        if who == "parked":
            client = stack.enter_context(connect(server, timeout=LIMIT))
            client.sendall(b"ping\n")
            assert client.recv(100) == b"pong\n"
        flooding = stack.enter_context(connect(server, timeout=LIMIT))
        flooding.sendall(b"".join(flood))
        wait_until_arrived(flooding)
        assert begun.wait(LIMIT)
        if who == "newcomer":
            client = stack.enter_context(connect(server, timeout=LIMIT))
        client.sendall(b"ping\n")
        wait_until_arrived(client)
        spoken.set()
        assert client.recv(100) == b"pong\n"
        assert heard_before[-1] < len(flood)
        wait_until(lambda: heard == flood)


def test_messages_keep_their_order_over_many_turns(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is lost nor handled twice when each one's turn is over at once, and the last is answered without another."""
    monkeypatch.setattr("sockserve.concurrency.pool.parking.TURN", 0.0)
    heard: list[bytes] = []

    class Keep(sockserve.StreamRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            line = self.rfile.readline()
            if line:
                heard.append(line)
                self.keep_open()
            if line == b"end\n":
                self.wfile.write(b"done")

    server = running(type("Server", (sockserve.ThreadPoolTCPServer,), {"max_workers": 3})(LOOPBACK, Keep))
    lines = [b"%d\n" % number for number in range(2000)]
    with connect(server, timeout=LIMIT) as client:
        client.sendall(b"".join(lines) + b"end\n")
        assert client.recv(100) == b"done"
    assert heard == [*lines, b"end\n"]
