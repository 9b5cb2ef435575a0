"""What ``suspend()`` and ``wait_idle()`` promise holds for all workers at once."""

from __future__ import annotations

import logging
import os
import signal
import types
from typing import Any

import pytest
from support.handlers import Signal, handlers
from support.log_watch import ExpectLog
from support.stepping import steps
from support.under_test import LIMIT
from support.waiting import stop_process, wait_until

import sockserve
from sockserve.concurrency.prefork import hang_detection
from sockserve.concurrency.prefork.pauses import Pauses
from sockserve.concurrency.prefork.protocol import ACCEPTED, PAUSED
from sockserve.concurrency.prefork.supervisor import Supervisor
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, call_within, connect

LOOPBACK = ("127.0.0.1", 0)
SHORT = 0.05
"""Seconds that show that nothing comes: one that would be late passes the test, and none fails it."""


class Two(sockserve.PreForkMixIn, sockserve.TCPServer):
    """Two inline workers."""

    processes = 2


class TwoInThreads(sockserve.PreForkMixIn, sockserve.ThreadingMixIn, sockserve.TCPServer):
    """Two that serve in threads."""

    processes = 2


class TwoPools(sockserve.PreForkMixIn, sockserve.ThreadPoolMixIn, sockserve.TCPServer):
    """Two that serve in pools."""

    processes = 2


every_model = pytest.mark.parametrize("server_class", [Two, TwoInThreads, TwoPools])


def workers_of(server: Any) -> list[Any]:
    """Both, as soon as they are ready."""
    supervisor: Supervisor = server._serving_supervisor
    wait_until(lambda: sum(worker.is_ready for worker in list(supervisor.workers.values())) == 2)
    return list(supervisor.workers.values())


@every_model
def test_after_a_pause_nobody_accepts(running: Running, server_class: Any) -> None:
    """As soon as ``wait_idle()`` has returned, and until ``resume()``, clients wait in the backlog."""
    server = running(server_class(LOOPBACK, handlers(sockserve).Echo))
    workers = workers_of(server)
    for _ in range(3):
        server.suspend()
        assert server.wait_idle(LIMIT)
        accepted = sum(worker.page.numbers[ACCEPTED] for worker in workers)
        with connect(server) as client:
            client.sendall(b"x")
            client.settimeout(SHORT)
            with pytest.raises(TimeoutError):
                client.recv(1)
            assert sum(worker.page.numbers[ACCEPTED] for worker in workers) == accepted
            server.resume()
            client.settimeout(LIMIT)
            assert client.recv(1) == b"x"


def test_a_worker_that_has_not_heard_of_a_pause_is_waited_for(running: Running) -> None:
    """It could still accept."""
    server = running(Two(LOOPBACK, handlers(sockserve).Echo))
    deaf = workers_of(server)[1].child.pid
    stop_process(deaf)
    try:
        server.suspend()
        assert not server.wait_idle(SHORT)
    finally:
        os.kill(deaf, signal.SIGCONT)
    assert server.wait_idle(LIMIT)


def test_a_sleeping_worker_that_hangs_is_not_waited_for_for_ever(
    running: Running, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was told to pause, and is killed when it does not; its successor begins with the pause."""
    monkeypatch.setattr(hang_detection, "STEP_TIME", 0.1)
    expect_log(logging.ERROR, "hangs: its loop has not turned")
    reported = expect_log(logging.WARNING, "was killed by SIGKILL")
    # Within its first second that is a failed start, too.
    expect_log(logging.ERROR, "was killed by SIGKILL", at_least=0)
    server = running(type("Server", (Two,), {"worker_timeout": 0.4})(LOOPBACK, handlers(sockserve).Echo))
    workers = workers_of(server)
    wait_until(lambda: all(worker.page.is_asleep() for worker in workers))
    stop_process(workers[1].child.pid)
    server.suspend()
    assert call_within(LIMIT, server.wait_idle)
    # After a shutdown its end would be no news.
    reported.wait()


@every_model
def test_a_request_that_is_being_accepted_is_waited_for(running: Running, server_class: Any) -> None:
    """The worker has it, and nobody else knows."""
    accepted, may_go_on = Signal(), Signal()

    class Slow(server_class):  # type: ignore[misc]
        def get_request(self) -> Any:
            got = super().get_request()
            accepted.set()
            may_go_on.wait()
            return got

    server = running(Slow(LOOPBACK, handlers(sockserve).Echo))
    workers_of(server)
    with connect(server) as client:
        assert accepted.take()
        server.suspend()
        assert not server.wait_idle(SHORT)
        may_go_on.set()
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert not server.wait_idle(0)
    assert server.wait_idle(LIMIT)


def test_without_workers_everybody_has_paused(running: Running) -> None:
    """After a drain, and when nobody supervises any more: then nobody reaps those that have ended."""
    server = running(Two(LOOPBACK, handlers(sockserve).Echo))
    workers_of(server)
    server.drain(LIMIT)
    assert server.wait_idle(0)
    server.resume()
    assert ask(server, b"x") == b"x"
    with connect(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        server.shutdown()
        server.suspend()
        assert not server.wait_idle(SHORT)
        for worker in list(server._serving_supervisor.workers.values()):
            os.kill(worker.child.pid, signal.SIGKILL)
        assert server.wait_idle(LIMIT)


def test_a_new_worker_begins_with_the_pause(running: Running) -> None:
    """One that takes the place of another does not accept, and is not waited for."""
    server = running(Two(LOOPBACK, handlers(sockserve).Echo))
    before = workers_of(server)
    server.suspend()
    assert server.wait_idle(LIMIT)
    server._serving_supervisor.roll()
    wait_until(lambda: len(workers := workers_of(server)) == 2 and not set(workers) & set(before))
    assert server.wait_idle(LIMIT)
    with connect(server) as client:
        client.sendall(b"x")
        client.settimeout(SHORT)
        with pytest.raises(TimeoutError):
            client.recv(1)
        server.resume()
        client.settimeout(LIMIT)
        assert client.recv(1) == b"x"


def test_a_pause_that_comes_while_the_last_one_is_undone_is_a_new_one() -> None:
    """At any step of that: who is told that all have paused can rely on it."""
    for step in steps():
        told: list[int] = []
        page = types.SimpleNamespace(numbers={PAUSED: 1})
        pauses = Pauses({0: types.SimpleNamespace(page=page, suspend=told.append, has_stopped=False)})  # type: ignore[dict-item]
        pauses.number = 1
        flags = {"is_suspended": False, "has_come": False}

        def suspend() -> None:
            flags["is_suspended"] = True  # noqa: B023
            flags["has_come"] = pauses.has_come()  # noqa: B023

        step.run(lambda: pauses.tell(lambda: flags["is_suspended"]), suspend)  # noqa: B023
        assert not (flags["has_come"] and told), step
