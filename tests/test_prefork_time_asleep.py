"""A supervisor notices that it did not run itself, and blames no worker for it."""

from __future__ import annotations

import signal
import threading
import types
from typing import Any

import pytest
from support.prefork_program import Prefork
from support.waiting import stop_process, wait_until, wait_until_blocked

from sockserve.concurrency.prefork import time_asleep
from sockserve.concurrency.prefork.crew import Crew
from sockserve.concurrency.prefork.ending import Ending
from sockserve.concurrency.prefork.hang_detection import HangDetector
from sockserve.concurrency.prefork.protocol import BEAT, LEAVE, Orders
from sockserve.concurrency.prefork.time_asleep import LATE, TimeAsleep
from sockserve.concurrency.prefork.worker_handle import WorkerHandle
from sockserve.core.loop import Loop

ORDERS = Orders(0, is_anew=False, worker_timeout=8.0, max_requests=None, dump_signal=signal.SIGQUIT)


class OneWait:
    """A source whose loop waits once, not at all."""

    max_wait = 0.0

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def before_wait(self) -> None:
        """Nothing."""

    def after_turn(self) -> None:
        """That was it."""
        self.loop.remove(self)

    leave = abandon = after_turn


@pytest.mark.parametrize(("late", "slept"), [(0.0, []), (LATE / 2, []), (30.0, [30.0])])
def test_a_wait_that_ends_late_was_sleep(late: float, slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the time that is measured an eighth is one wait; what is beyond that is told."""
    now = [100.0]
    monkeypatch.setattr(time_asleep, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    told: list[float] = []
    with Loop() as loop:
        tick = TimeAsleep(told.append).before_wait(loop, 8.0)
        assert tick == 1.0
        now[0] += tick + late
        loop.add(OneWait(loop))
        loop.run()
    assert told == slept


@pytest.mark.parametrize(("rests", "slept"), [(False, [30.0]), (True, [])])
def test_a_turn_that_takes_long_was_sleep(rests: bool, slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop may come between two waits as well; between two loops that host the supervisor time may pass."""
    now = [100.0]
    monkeypatch.setattr(time_asleep, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    told: list[float] = []
    asleep = TimeAsleep(told.append)
    with Loop() as loop:
        asleep.before_wait(loop, 8.0)
        loop.add(OneWait(loop))
        loop.run()
        now[0] += 30.0
        if rests:
            asleep.rest()
        asleep.before_wait(loop, 8.0)
    assert told == slept


def test_a_loop_that_was_left_tells_of_no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler ran another one within the wait, or the wait never was."""
    now = [100.0]
    monkeypatch.setattr(time_asleep, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    told: list[float] = []
    asleep = TimeAsleep(told.append)
    with Loop() as loop, Loop() as inner:
        asleep.before_wait(loop, 8.0)
        now[0] += 50.0
        asleep.before_wait(inner, 8.0)
        loop.add(OneWait(loop))
        loop.run()
    assert told == []


def test_nothing_is_measured_without_a_need() -> None:
    """Then the wait has no limit."""
    with Loop() as loop:
        assert TimeAsleep(print).before_wait(loop, None) is None


def test_time_asleep_is_no_part_of_a_drain() -> None:
    """The next step comes later by as much, and a worker that is awake has the whole ``worker_timeout`` again."""
    worker = WorkerHandle(ORDERS, 0, 0, 0)
    worker.child = types.SimpleNamespace(pid=1)  # type: ignore[assignment]
    settings: Any = types.SimpleNamespace(worker_timeout=8.0)
    service: Any = None
    crew = Crew("server", service, settings, print)
    crew.workers[1] = worker
    with worker.control, worker._theirs, Loop() as loop:
        crew.loops.append(loop)
        ending = Ending(crew, HangDetector(crew))
        ending.escalate(worker, [(LEAVE, 10.0), (LEAVE, None)])
        timer = worker.timer
        assert timer is not None
        due = timer.when
        worker.page.numbers[BEAT] -= int(60e9)
        ending.slept(60.0)
        assert timer.callback is None
        assert worker.timer is not None
        assert worker.timer.when == pytest.approx(due + 60.0, abs=1.0)
        silence = worker.page.silence()
        assert silence is not None
        assert silence < 8.0


def test_a_busy_worker_of_a_stopped_group_is_not_ended() -> None:
    """It serves inline, so its loop cannot turn: only the supervisor can know that all were stopped."""
    debug = "logging.getLogger('sockserve').setLevel('DEBUG')"
    with Prefork("processes = 1", "worker_timeout = 1.5", debug) as server, server.connect() as client:
        (worker,) = server.wait_for_workers(1)
        # In its wait for what its workers tell.
        wait_until_blocked(server.pid)
        stop_process(server.pid)
        stop_process(worker)
        # More than is left of its time.
        threading.Event().wait(1.7)
        server.send(signal.SIGCONT, server.pid, worker)
        wait_until(lambda: "the supervisor itself did not run for" in server.errors())
        # For a look that would take the worker for hung all the same.
        threading.Event().wait(0.3)
        client.sendall(b"who\n")
        assert client.recv(100) == b"0 %d" % worker
        assert "the input of" not in server.errors()
