"""A client that never pauses does not keep a pool's only worker from the others."""

from __future__ import annotations

import select
import socket
import threading
from typing import Any, Self

import pytest
from under_test import LIMIT

import sockserve
from sockserve.pytest_plugin import Running
from sockserve.testing import connect

LOOPBACK = ("127.0.0.1", 0)


class Lines(sockserve.StreamRequestHandler[Any, Any, Any]):
    """Answers b"ping", and reads everything else."""

    def handle(self) -> None:
        """Handle a line."""
        line = self.rfile.readline()
        if line == b"ping\n":
            self.wfile.write(b"pong\n")
        if line:
            self.keep_open()


class Flood:
    """A client that sends without a pause, in lines of which no whole number fills a buffer."""

    def __init__(self, server: Any) -> None:
        self.connection = connect(server, timeout=LIMIT)
        self.ended = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        block = (b"x" * 60 + b"\n") * 4096
        try:
            while not self.ended:
                self.connection.sendall(block)
        except OSError:
            self.ended = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.ended = True
        self.connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(LIMIT)
        self.connection.close()


@pytest.mark.parametrize("poller", ["epoll", "selector"])
def test_who_sends_without_a_pause_lets_others_have_their_turns(
    running: Running, monkeypatch: pytest.MonkeyPatch, poller: str
) -> None:
    """One that is parked and those that come, beside two that flood one worker; and a drain is heard."""
    if poller == "selector":
        monkeypatch.delattr(select, "epoll", raising=False)
    server = running(type("Server", (sockserve.ThreadPoolTCPServer,), {"max_workers": 1})(LOOPBACK, Lines))
    with connect(server, timeout=LIMIT) as parked:
        for _ in range(2):
            parked.sendall(b"ping\n")
            assert parked.recv(100) == b"pong\n"
        with Flood(server) as one, Flood(server) as two:
            for _ in range(5):
                parked.sendall(b"ping\n")
                assert parked.recv(100) == b"pong\n"
                with connect(server, timeout=LIMIT) as newcomer:
                    newcomer.sendall(b"ping\n")
                    assert newcomer.recv(100) == b"pong\n"
            assert not one.ended
            assert not two.ended


def test_messages_keep_their_order_over_many_turns(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is lost nor handled twice when each one's turn is over at once, and the last is answered without another."""
    monkeypatch.setattr("sockserve.concurrency.parking.TURN", 0.0)
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
