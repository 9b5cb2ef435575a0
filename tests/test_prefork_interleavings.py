"""What a supervisor is told at the worst moment is heard all the same."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from support.stepping import Step, steps
from support.under_test import LIMIT
from support.waiting import is_asleep, wait_until

import sockserve
from sockserve.concurrency.prefork import worker_commands
from sockserve.concurrency.prefork.supervisor import Supervisor
from sockserve.core.one_shot import OneShot
from sockserve.testing import call_within

LOOPBACK = ("127.0.0.1", 0)

ROOMS = [*(f"concurrency/prefork/{name}.py" for name in ("supervisor", "crew", "phases", "pauses")), "core/loop.py"]
"""Where the queue of a supervisor is, its phase, and what wakes it. What else these call knows nothing of that: all
that comes in the middle of it is as good as what comes before."""


class Idle(sockserve.BaseRequestHandler):
    """Answers nothing."""


class One(sockserve.PreForkMixIn, sockserve.TCPServer):
    """A single worker."""

    processes = 1
    worker_timeout = None


def starts(
    monkeypatch: pytest.MonkeyPatch, interfere: Callable[[One, Supervisor], object]
) -> Iterator[tuple[Step, One, threading.Thread]]:
    """Servers that begin, with ``interfere()`` at one step of what the supervisor does after its handlers are there.

    The last is the first whose worker was ready before.
    """
    was_ready = False
    # Hundreds of workers end, and none shall give way to the next.
    monkeypatch.setattr(worker_commands, "END_PAUSE", 0.0)
    every_step = steps("line", ROOMS)
    while not was_ready:
        step = next(every_step)
        with One(LOOPBACK, Idle) as server:
            supervisor = server._serving_supervisor

            def interrupt() -> None:
                nonlocal was_ready
                was_ready = server.wait_until_serving(0)
                interfere(server, supervisor)  # noqa: B023

            stepped = lambda *args: step.run(lambda: Supervisor.run(supervisor, *args), interrupt)  # noqa: B023, E731
            monkeypatch.setattr(supervisor, "run", stepped)
            serving = threading.Thread(target=server.serve_forever, daemon=True)
            serving.start()
            yield step, server, serving
            serving.join(LIMIT)
            assert not serving.is_alive(), step


def test_a_supervisor_hears_sigterm_at_any_step_of_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not begin, or ends: ``serve_forever()`` returns."""
    for _ in starts(monkeypatch, lambda _, supervisor: supervisor.stop()):
        pass


def test_a_supervisor_hears_of_a_drain_at_any_step_of_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever drains is not left waiting, and the supervisor goes on without workers."""
    drains: list[threading.Thread] = []

    def drain(server: One, _: Supervisor) -> None:
        draining = threading.Thread(target=server.drain, daemon=True)
        draining.start()
        wait_until(lambda: is_asleep(sys._current_frames().get(draining.ident or 0)))
        drains.append(draining)

    for step, server, _ in starts(monkeypatch, drain):
        wait_until(lambda: drains)
        draining = drains.pop()
        draining.join(LIMIT)
        assert not draining.is_alive(), step
        server.shutdown()


def test_a_drain_that_nobody_hears_any_more_is_done_by_who_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """``serve_forever()`` ends after another thread has told it of a drain, and before it has turned once more."""
    with One(LOOPBACK, Idle) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        assert server.wait_until_serving(LIMIT)
        server.shutdown()
        serving.join()
        has_ended = OneShot()
        has_ended.set()
        monkeypatch.setattr(server, "_serving_end_elsewhere", lambda: has_ended)
        assert call_within(LIMIT, server.drain) == (0, 0)


def test_what_a_supervisor_is_told_too_late_is_heard_by_its_next_run() -> None:
    """A signal that comes when ``serve_forever()`` has nothing more to look at, and before its handler has gone."""
    with One(LOOPBACK, Idle) as server:
        server._serving_supervisor.stop()
        call_within(LIMIT, server.serve_forever)


def test_a_supervisor_is_few_things() -> None:
    """Its parts have names of their own: a dozen attributes at most, after all that it does."""
    with One(LOOPBACK, Idle) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        assert server.wait_until_serving(LIMIT)
        server.drain()
        server.shutdown()
        serving.join()
        assert len(vars(server._serving_supervisor)) <= 12
