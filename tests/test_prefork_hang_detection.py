"""The hang detector alone, with workers that are pages and sockets: what it orders, when, and to which worker."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import types
from collections.abc import Iterator
from typing import Any

import pytest
from support.log_watch import ExpectLog

from sockserve.concurrency.prefork import hang_detection
from sockserve.concurrency.prefork.crew import WATCH_AGAIN, Crew
from sockserve.concurrency.prefork.hang_detection import GRACE, STEP_TIME, HangDetector
from sockserve.concurrency.prefork.protocol import ASLEEP, BEAT, FREE, LEAVE, LOOK, PASSES, Orders
from sockserve.concurrency.prefork.worker_handle import WorkerHandle
from sockserve.core.loop import Loop

TIMEOUT = 8.0
ORDERS = Orders(0, is_anew=False, worker_timeout=TIMEOUT, max_requests=None, dump_signal=signal.SIGQUIT)


class Clock:
    """A loop's timers, which are due when a test says so, and the descriptors that it watches."""

    def __init__(self) -> None:
        self.timers: list[Any] = []
        self.armed: dict[int, Any] = {}
        self.refuses = 0

    def call_later(self, delay: float, callback: Any) -> Any:
        """Note it."""
        timer = types.SimpleNamespace(delay=delay, callback=callback)
        timer.cancel = lambda: self.timers.remove(timer) if timer in self.timers else None
        self.timers.append(timer)
        return timer

    def arm(self, fd: int, callback: Any, _mask: int) -> None:
        """Watch it, unless it is to be refused."""
        if self.refuses:
            raise OSError(self.refuses, os.strerror(self.refuses))
        self.armed[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Watch it no more."""
        self.armed.pop(fd, None)

    def delays(self) -> list[float]:
        """Of the timers that are to come."""
        return [timer.delay for timer in self.timers]

    def fire(self) -> None:
        """Call back the first timer."""
        self.timers.pop(0).callback()

    def fire_step(self) -> None:
        """Call back the one that makes the next step against a worker that hangs."""
        (step,) = (timer for timer in self.timers if timer.delay == STEP_TIME)
        self.timers.remove(step)
        step.callback()


class Team:
    """Two workers, their detector, and the loop of both."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.signals: list[tuple[int, str]] = []
        self.heard: list[WorkerHandle] = []
        self.settings: Any = types.SimpleNamespace(worker_timeout=TIMEOUT)
        service: Any = types.SimpleNamespace(ports=lambda: [-1, 77])
        self.crew = Crew("server", service, self.settings, self.heard.append)
        self.clock = Clock()
        self.loop: Loop = self.clock  # type: ignore[assignment]
        for pid in (1, 2):
            worker = self.crew.workers[pid] = WorkerHandle(ORDERS, 0, 0, 0)
            stack.enter_context(worker.control)
            stack.enter_context(worker._theirs)
            worker.child = self._child(pid)
        self.first, self.second = self.crew.workers.values()
        self.detector = HangDetector(self.crew)

    def _child(self, pid: int) -> Any:
        def note(what: str) -> None:
            self.signals.append((pid, what))

        return types.SimpleNamespace(pid=pid, cut=lambda: note("KILL"), send=lambda signum: note(signum.name))

    def told(self, worker: WorkerHandle) -> bytes:
        """What a worker was told since the last call."""
        try:
            return worker._theirs.recv(100, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch) -> Iterator[Team]:
    """Both have just shown that they turn, and no debugger holds any."""
    monkeypatch.setattr(hang_detection, "_is_traced", lambda _: False)
    with contextlib.ExitStack() as stack:
        yield Team(stack)


def stands_still(worker: WorkerHandle, seconds: float) -> None:
    """It has shown nothing for so long."""
    worker.page.beat()
    worker.page.numbers[BEAT] -= int(seconds * 1e9)


def test_the_next_look_is_when_the_first_could_hang(team: Team) -> None:
    """No earlier, and once; without a limit there is none."""
    stands_still(team.first, 3.0)
    team.detector.look(team.loop)
    team.detector.look(team.loop)
    (delay,) = team.clock.delays()
    assert delay == pytest.approx(TIMEOUT - 3.0 + GRACE, abs=0.5)
    assert team.detector.is_looking()
    team.settings.worker_timeout = None
    team.detector.look(team.loop)
    assert team.clock.delays() == []
    assert not team.detector.is_looking()


def test_a_hung_worker_is_freed_twice_asked_and_killed(team: Team, expect_log: ExpectLog) -> None:
    """In steps, of which none but the last hurts it; the other worker hears nothing."""
    expect_log(logging.ERROR, r"hangs: its loop has not turned for 9\.\d seconds; it is killed\nIt could not tell")
    stands_still(team.first, TIMEOUT + 1)
    team.detector.look(team.loop)
    assert team.first.is_hung
    done = []
    for _ in range(4):
        done.append((team.told(team.first), [what for _, what in team.signals]))
        if len(done) < 4:
            team.clock.fire_step()
    assert done == [(FREE, []), (FREE, []), (b"", ["SIGQUIT"]), (b"", ["SIGQUIT", "KILL"])]
    assert team.told(team.second) == b""
    assert STEP_TIME not in team.clock.delays()


def test_a_worker_that_turns_between_two_steps_is_not_killed(team: Team) -> None:
    """The verdict is about one beat; its next silence is another matter."""
    stands_still(team.first, TIMEOUT + 1)
    team.detector.look(team.loop)
    team.first.page.beat()
    team.clock.fire_step()
    assert not team.first.is_hung
    assert team.heard == [team.first, team.first]
    assert STEP_TIME not in team.clock.delays()
    assert team.signals == []


def test_a_worker_that_ended_between_two_steps_is_left_alone(team: Team) -> None:
    """Its number may be another process's."""
    stands_still(team.first, TIMEOUT + 1)
    team.detector.look(team.loop)
    del team.crew.workers[1]
    team.told(team.first)
    team.clock.fire_step()
    assert (team.told(team.first), team.signals) == (b"", [])


def test_a_worker_with_a_debugger_has_the_whole_time_again(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it is traced."""
    monkeypatch.setattr(hang_detection, "_is_traced", lambda pid: pid == 1)
    stands_still(team.first, TIMEOUT + 1)
    team.detector.look(team.loop)
    assert not team.first.is_hung
    silence = team.first.page.silence()
    assert silence is not None
    assert silence < TIMEOUT
    assert team.told(team.first) == b""


def test_while_a_worker_sleeps_a_client_wakes_it(team: Team) -> None:
    """No timer is set for it; the listeners that are open are watched, until it shows that it turns."""
    for worker in (team.first, team.second):
        worker.page.sleep()
    team.detector.look(team.loop)
    assert team.clock.delays() == []
    assert list(team.clock.armed) == [77]
    team.clock.armed[77](1)
    assert [team.told(worker) for worker in (team.first, team.second)] == [LOOK, LOOK]
    assert not team.first.page.is_asleep()
    assert team.clock.armed == {}
    assert len(team.clock.delays()) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM, errno.EMFILE])
def test_listeners_that_cannot_be_watched_are_tried_again(team: Team, number: int) -> None:
    """Soon, and the worker is trusted until then; an error that is no shortage is raised."""
    team.first.page.sleep()
    team.clock.refuses = number
    team.detector.look(team.loop)
    assert team.clock.delays() == [WATCH_AGAIN + GRACE]
    team.clock.refuses = errno.EBADF
    with pytest.raises(OSError, match="Bad file"):
        team.clock.fire()


def test_an_order_that_wakes_a_worker_is_measured_from_then_on(team: Team) -> None:
    """A worker that does not wake for it hangs; the look comes before the next wait."""
    team.first.page.sleep()
    team.detector.look(team.loop)
    team.first.tell(LEAVE)
    team.detector.expect_awake(team.first)
    assert not team.first.page.is_asleep()
    team.detector.before_wait(team.loop)
    assert team.clock.armed == {}
    assert max(team.clock.delays()) <= TIMEOUT + GRACE


def test_what_a_worker_passes_on_the_others_look_for(team: Team) -> None:
    """Those that accept no more are not asked, and not the one that passed it on."""
    team.detector.hear(team.first, PASSES, team.loop)
    assert (team.told(team.first), team.told(team.second)) == (b"", LOOK)
    team.second.has_stopped = True
    team.detector.hear(team.first, PASSES, team.loop)
    assert team.told(team.second) == b""


def test_a_worker_that_has_stopped_cannot_hang(team: Team) -> None:
    """Its end has a time of its own."""
    team.first.has_stopped = True
    stands_still(team.first, 100.0)
    team.detector.hear(team.second, ASLEEP, team.loop)
    assert not team.first.is_hung
    assert team.told(team.first) == b""
