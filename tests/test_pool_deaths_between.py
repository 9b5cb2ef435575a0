"""A pool's worker that dies between an event and its service leaves the connection to the next worker."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from support.log_watch import ExpectLog
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.concurrency.pool import parking
from sockserve.concurrency.pool.parking import Parking
from sockserve.concurrency.pool.silence import Silences
from sockserve.pytest_plugin import Running
from sockserve.testing import connect

LOOPBACK = ("127.0.0.1", 0)


class Echo(sockserve.BaseRequestHandler[Any, Any, Any]):
    """Sends back what comes, and waits for more."""

    def handle(self) -> None:
        """Answer."""
        self.keep_open()
        self.request.sendall(self.request.recv(100))


class Killed(BaseException):
    """What PyThreadState_SetAsyncExc() raises in a thread, at any bytecode."""


class Server(sockserve.ThreadPoolTCPServer):
    """One worker."""

    max_workers = 1


def dies_once(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, armed: list[bool]) -> None:
    """Raise Killed in place of the next call, if ``armed`` says so."""
    real = getattr(where, name)

    def call(*args: Any) -> Any:
        if armed:
            armed.clear()
            raise Killed
        return real(*args)

    monkeypatch.setattr(where, name, call)


@pytest.mark.parametrize(("where", "name"), [(Parking, "serve"), (parking, "resume"), (Silences, "forget")])
def test_a_connection_that_was_taken_out_is_parked_again(
    running: Running, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog, where: Any, name: str
) -> None:
    """Its client is answered by the worker that takes the place of the one that died."""
    deaths = expect_log(logging.ERROR, "dies, another worker takes its place")
    armed: list[bool] = []
    dies_once(monkeypatch, where, name, armed)

    class Limited(Echo):
        """Bears a silence for some time."""

        def setup(self) -> None:
            """Say so."""
            self.request.settimeout(LIMIT)

    server: Any = running(Server(LOOPBACK, Limited))
    with connect(server) as client:
        client.settimeout(LIMIT)
        client.sendall(b"one")
        assert client.recv(100) == b"one"
        wait_until(lambda: bool(server._serving_pool.parking.parked))
        armed.append(True)
        client.sendall(b"two")
        assert client.recv(100) == b"two"
        wait_until(lambda: bool(server._serving_pool.parking.parked))
        # The limit of its silence holds again.
        assert any(server._serving_pool.parking.silences.queues.values())
    assert len(deaths.wait()) == 1


@pytest.mark.parametrize("is_lost", [True, False])
def test_an_event_that_came_with_the_death_is_not_lost(
    running: Running, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog, is_lost: bool
) -> None:
    """Whether the worker knew of what it was, or died before it could look: its client is answered."""
    deaths = expect_log(logging.ERROR, "dies, another worker takes its place")
    armed: list[bool] = []
    server: Any = running(Server(LOOPBACK, Echo))
    with connect(server) as client:
        client.settimeout(LIMIT)
        client.sendall(b"one")
        assert client.recv(100) == b"one"
        pool = server._serving_pool
        wait_until(lambda: bool(pool.parking.parked and pool.idle))
        (fd,) = pool.parking.parked
        # After it has parked the worker has still to put its own token there.
        wait_until(lambda: len(pool.idle) == 1)
        real = pool.poller.poll

        class Idle(list[None]):
            """Where a worker that has its event takes its place out."""

            def pop(self, *args: Any) -> None:
                if armed and not is_lost:
                    armed.clear()
                    raise Killed
                super().pop(*args)

        def poll(*args: Any) -> Any:
            events = real(*args)
            if armed and is_lost and events and events[0][0] == fd:
                armed.clear()
                raise Killed
            return events

        # Both are looked up by the next worker: this one has to end first.
        pool.poller.poll, pool.idle = poll, Idle(pool.idle)
        with monkeypatch.context() as patch:
            first: list[bool] = [True]
            dies_once(patch, Parking, "serve", first)
            client.sendall(b"two")
            assert client.recv(100) == b"two"
        wait_until(lambda: bool(pool.parking.parked and pool.idle))
        armed.append(True)
        client.sendall(b"three")
        assert client.recv(100) == b"three"
        assert not armed
    assert len(deaths.wait()) == 2


def test_one_whose_turn_was_over_is_parked_again(running: Running) -> None:
    """What waits for its next turn is no more lost than what an event was about."""
    server: Any = running(Server(LOOPBACK, Echo))
    with connect(server) as client:
        client.settimeout(LIMIT)
        client.sendall(b"one")
        assert client.recv(100) == b"one"
        parking: Parking = server._serving_pool.parking
        wait_until(lambda: bool(parking.parked))
        (live,) = parking.parked.values()
        assert parking.claim(live)
        parking.later.append(live)
        with pytest.MonkeyPatch.context() as patch:
            armed = [True]
            dies_once(patch, Parking, "serve", armed)
            with pytest.raises(Killed):
                parking.serve_later()
        assert list(parking.parked.values()) == [live]
        client.sendall(b"two")
        assert client.recv(100) == b"two"
