"""What threads share is guarded by what it needs and not by the GIL: whatever happens at once, each count is exact.

With a GIL the threads are switched so often that there is something to see; without one they run at once anyway.
"""

from __future__ import annotations

import collections
import itertools
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.handlers import Boom
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve

LOOPBACK = ("127.0.0.1", 0)

TALKERS = 8
"""Clients at once: more than there are workers."""

STAYS = 3
"""How often the server is drained, stopped and started again meanwhile."""

REQUESTS = 60
"""Connections in each of its stays, at least; the whole takes about half a second."""

SILENCE = 0.07
"""Seconds of silence that a handler bears: little more than the sixteenth of a second in which a pool counts."""


class Tally:
    """Counts with a lock of its own what the server's counters are compared with."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: collections.Counter[str] = collections.Counter()

    def count(self, what: str) -> None:
        """One more."""
        with self._lock:
            self.counts[what] += 1

    def __getitem__(self, what: str) -> int:
        return self.counts[what]


class Echo(sockserve.BaseRequestHandler[Any, Any, Any]):
    """Sends back what comes and waits for more; b"crash" makes it raise."""

    def setup(self) -> None:
        """Count, and be patient for a short time."""
        self.server.tally.count("begun")
        self.request.settimeout(SILENCE)

    def handle(self) -> None:
        """Answer."""
        try:
            data = self.request.recv(100)
        except TimeoutError:
            # Without a first word. Later ones are waited for by the server.
            return
        if data == b"crash":
            self.server.tally.count("crashed")
            raise Boom
        self.keep_open()
        self.request.sendall(data)

    def finish(self) -> None:
        """Count."""
        self.server.tally.count("finished")


class Counting:
    """Refuses every eighth client or so, and keeps quiet about handlers that raise."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Decide by the client's port."""
        if client_address[1] % 8 == 0:
            self.tally.count("refused")  # type: ignore[attr-defined]
            return False
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Count the errors; a client that left is none."""
        if isinstance(sys.exception(), Boom):
            self.tally.count("reported")  # type: ignore[attr-defined]


class Pool(Counting, sockserve.ThreadPoolTCPServer):
    """Grows and shrinks all the time."""

    max_workers = 5
    idle_timeout = 0.001


class Threads(Counting, sockserve.ThreadingTCPServer):
    """A thread for each connection."""


@pytest.fixture(params=["pool", "pool on a selector", "threads"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """One whose handlers count, and which is counted."""
    if request.param == "pool on a selector":
        monkeypatch.delattr(select, "epoll")
    server: Any = (Threads if request.param == "threads" else Pool)(LOOPBACK, Echo)
    server.tally = Tally()
    server.counters = sockserve.Counters()
    server.add_observer(server.counters)
    yield server
    server.server_close()


@pytest.fixture(autouse=True)
def quick_switches() -> Iterator[None]:
    """Give the GIL to another thread after microseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class Background(threading.Thread):
    """Calls something again and again until it is stopped; what that raised is raised by ``end()``."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__()
        self._call = call
        self._is_over = threading.Event()
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Call."""
        try:
            while not self._is_over.wait(0.0005):
                self._call()
        except BaseException as error:
            self._error = error

    def end(self) -> None:
        """Stop it."""
        self._is_over.set()
        self.join(LIMIT)
        if self._error is not None:
            raise self._error
        assert not self.is_alive()


def talker(server: Any, number: int) -> Callable[[], None]:
    """A client that comes each time in another mood; it may be refused and drained, but never gets a wrong answer."""
    turns = itertools.count(number)

    def talk() -> None:
        turn = next(turns)
        try:
            with socket.create_connection(server.server_address, LIMIT) as client:
                for message in range(turn % 4):
                    data = b"%d %d %d" % (number, turn, message)
                    client.sendall(data)
                    answer = client.recv(100)
                    if not answer:
                        return
                    assert answer == data
                if turn % 7 == 0:
                    client.sendall(b"crash")
                if turn % 5 == 0:
                    # Not before the server has had enough of it.
                    assert client.recv(100) == b""
        except ConnectionError:
            # Refused, crashed into, drained.
            pass

    return talk


def meddle(server: Any) -> None:
    """Pause the server for a moment."""
    server.suspend()
    server.wait_idle(0.001)
    server.resume()


def look(server: Any) -> None:
    """Read the live table as an administrator would."""
    for request in server.active_requests:
        assert request.state in ("accept", "verify", "dispatch", "prepare", "handle", "error", "shutdown", "parked")
        assert request.client_address[0] == "127.0.0.1"


def check_counts(server: Any) -> None:
    """Each request has ended as exactly one thing, and as what it was."""
    counters, tally = server.counters, server.tally
    assert counters.active == 0
    assert counters.accepted == counters.handled + counters.refused + counters.failed
    assert counters.refused == tally["refused"]
    assert counters.failed == tally["crashed"] == tally["reported"]
    assert tally["begun"] == tally["finished"] == counters.accepted - counters.refused


def test_whatever_happens_at_once_each_count_is_exact(server: Any) -> None:
    """Clients come, speak, pause and leave, the pool grows and shrinks, the server pauses, is drained and restarted."""
    talkers = [Background(talker(server, number)) for number in range(TALKERS)]
    try:
        for _ in range(STAYS):
            loop = threading.Thread(target=server.serve_forever)
            loop.start()
            meddlers = [Background(lambda: look(server)), Background(lambda: meddle(server))]
            try:
                enough = server.counters.accepted + REQUESTS
                wait_until(lambda: server.counters.accepted >= enough)  # noqa: B023 - it is called before the next one
            finally:
                for each in meddlers:
                    each.end()
                drained = server.drain(LIMIT)
                nothing, counted = server.active_requests, server.counters.active
                server.shutdown()
                loop.join(LIMIT)
            assert (drained.cut, nothing, counted) == (0, (), 0)
            check_counts(server)
    finally:
        # Those that wait in the backlog go on now.
        server.server_close()
        for each in talkers:
            each.end()
    check_counts(server)
    pool = vars(server).get("_serving_pool")
    if pool is not None:
        assert (pool.workers, pool.idle, pool.parking.parked) == ({}, [], {})
        assert not any(pool.parking.silences.queues.values())
