"""Parked connections when the system refuses to watch one, or its client speaks at the last moment."""

from __future__ import annotations

import errno
import logging
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support import parked
from support.faulty_poller import FaultyPoller
from support.log_watch import ExpectLog
from support.parked import Steps, with_own_steps
from support.under_test import LIMIT
from support.waiting import wait_until, wait_until_arrived

import sockserve
from sockserve.concurrency.pool.silence import MOST_LIMITS
from sockserve.core.serving import table_of
from sockserve.pytest_plugin import Running
from sockserve.testing import connect

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="other pollers refuse nothing")

LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> FaultyPoller:
    """What refuses to watch."""
    return FaultyPoller(monkeypatch)


class Echo(Steps, sockserve.StreamRequestHandler[Any, Any, Any]):
    """Sends back each line, and waits for more; b"work" waits for ``opened`` first, b"hello" is soon to be followed."""

    limit: float | None = None

    def handle(self) -> None:
        """Answer."""
        line = self.rfile.readline()
        if line == b"work\n":
            self.begun.release()
            assert self.opened.wait(LIMIT)
        if line:
            self.request.settimeout(self.limit if line == b"hello\n" else None)
            self.wfile.write(line)
            self.keep_open()

    def finish(self) -> None:
        """Count."""
        super().finish()
        self.finished.release()


@pytest.fixture
def echo() -> Iterator[type[Echo]]:
    """One with events of its own; opened at the end, whatever happened."""
    own = with_own_steps(Echo)
    yield own
    own.opened.set()


def pool(handler: Any, **attributes: Any) -> Any:
    """A server of two workers, with these attributes."""
    return parked.pool(handler, **{"max_workers": 2, "min_workers": 2} | attributes)


def exchange(client: socket.socket, line: bytes) -> None:
    """Say something and get it back."""
    client.sendall(line)
    assert client.recv(100) == line


def wait_until_parked(server: Any, count: int) -> None:
    """Return as soon as so many requests are in progress, all of them parked."""
    wait_until(lambda: [request.state for request in server.active_requests] == ["parked"] * count)


@pytest.mark.parametrize(("verb", "number"), [("register", errno.ENOSPC), ("modify", errno.ENOMEM)])
def test_a_connection_that_cannot_be_parked_ends(
    running: Running, faults: FaultyPoller, expect_log: ExpectLog, verb: str, number: int
) -> None:
    """Answered, and as in a drain: ``finish()`` runs, one line says why, and all others go on, silent ones too."""
    expected = expect_log(logging.WARNING, "which cannot be waited for")
    finished = threading.Semaphore(0)
    handler = type("Handler", (Echo,), {"limit": 0.2, "finished": finished})
    server = running(pool(handler))
    with connect(server, timeout=LIMIT) as client, connect(server, timeout=LIMIT) as other:
        if verb == "modify":
            exchange(client, b"before\n")
        faults.refuse(verb, number=number)
        exchange(client, b"hello\n")
        assert client.recv(100) == b""
        exchange(other, b"hello\n")
        # Its limit is kept as before.
        assert other.recv(100) == b""
    assert len(expected.wait()) == 1
    for _ in range(2):
        assert finished.acquire(timeout=LIMIT)
    wait_until(lambda: not server.active_requests)
    assert not any(table_of(server).parking.silences.queues.values())  # type: ignore[union-attr]


@pytest.mark.parametrize("busy", [False, True])
def test_a_silent_client_that_cannot_be_let_go_by_a_worker_ends_all_the_same(
    running: Running, faults: FaultyPoller, expect_log: ExpectLog, echo: type[Echo], busy: bool
) -> None:
    """The coordinator lives, and another thread ends it, also while all workers are busy."""
    expect_log(logging.WARNING, "which cannot be waited for")
    echo.limit = 0.2
    server = running(pool(echo, max_workers=1, min_workers=1))
    with connect(server, timeout=LIMIT) as silent, connect(server, timeout=LIMIT) as other:
        exchange(silent, b"hello\n")
        faults.refuse("register", fd=_descriptor_of(server, silent))
        if busy:
            other.sendall(b"work\n")
        assert silent.recv(100) == b""
        echo.opened.set()
        if not busy:
            other.sendall(b"work\n")
        assert other.recv(100) == b"work\n"
    assert [verb for verb, _ in faults.refused] == ["register"]


def test_a_connection_that_a_worker_cannot_put_back_ends(
    running: Running, faults: FaultyPoller, expect_log: ExpectLog, echo: type[Echo]
) -> None:
    """What its client said is answered, and the worker lives."""
    expect_log(logging.WARNING, "which cannot be waited for")
    server = running(pool(echo))
    with connect(server, timeout=LIMIT) as client:
        exchange(client, b"hello\n")
        wait_until_parked(server, 1)
        workers = set(server._serving_pool.workers)
        # As if there had been a claim since the workers began to wait: they do not believe what they are told.
        table_of(server).parking.claimed_at = time.monotonic()  # type: ignore[union-attr]
        faults.refuse("modify", number=errno.ENOMEM)
        exchange(client, b"again\n")
        assert client.recv(100) == b""
        assert set(server._serving_pool.workers) == workers


def test_who_spoke_in_time_is_not_ended_as_silent(running: Running, echo: type[Echo]) -> None:
    """Its words wait while all workers are busy, for longer than its limit: it is answered, now and later."""
    echo.limit = 0.1
    server = running(pool(echo, max_workers=1, min_workers=1))
    parking: Any = table_of(server).parking
    with connect(server, timeout=LIMIT) as client, connect(server, timeout=LIMIT) as other:
        # The coordinator is held up until the client has spoken.
        with parking._claiming:
            exchange(client, b"hello\n")
            other.sendall(b"work\n")
            assert echo.begun.acquire(timeout=LIMIT)
            client.sendall(b"in time\n")
            wait_until_arrived(client)
        wait_until(lambda: not any(parking.silences.queues.values()))
        echo.opened.set()
        assert client.recv(100) == b"in time\n"
        exchange(client, b"and later\n")


def test_computed_limits_leave_nothing_behind(running: Running, echo: type[Echo]) -> None:
    """A time-out of its own for each message: what the pool keeps of them goes with the last one of its kind."""

    class Computing(echo):  # type: ignore[misc,valid-type]
        limits = iter(range(1000, 10_000))

        def handle(self) -> None:
            self.limit = next(self.limits)
            super().handle()

    server = running(pool(Computing))
    parking: Any = table_of(server).parking
    with connect(server, timeout=LIMIT) as client, connect(server, timeout=LIMIT) as other:
        for _ in range(100):
            exchange(client, b"hello\n")
            exchange(other, b"hello\n")
        wait_until_parked(server, 2)
        assert len(parking.silences.queues) <= MOST_LIMITS + 2
    wait_until(lambda: not server.active_requests)
    assert not any(parking.silences.queues.values())


def _descriptor_of(server: Any, client: socket.socket) -> int:
    """The server's end of a connection, once it is parked."""

    def find() -> list[int]:
        found = [live for live in table_of(server).all() if live.client_address == client.getsockname()]
        return [live.parking_record.fd for live in found if live.state == "parked"]

    wait_until(find)
    return find()[0]
