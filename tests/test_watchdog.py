"""The watchdog: one warning for a handler that keeps a loop from its next turn, and no thread that stays behind."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest
from support.log_watch import ExpectLog
from support.under_test import LIMIT
from support.waiting import wait_until

from sockserve.concurrency.cooperative.errand import Errand
from sockserve.concurrency.cooperative.watchdog import Watchdog
from sockserve.core.loop import Loop
from sockserve.core.one_shot import OneShot


class Running:
    """A loop in a thread, and the watchdogs that watch it."""

    def __init__(self) -> None:
        self.loop = Loop()
        self._end = OneShot()
        errand = Errand(self.loop, self._end)
        self._thread = threading.Thread(target=self.loop.run, args=(errand,))
        self._thread.start()
        self.limits: list[float | None] = []
        self.dogs: list[Watchdog] = []

    def watch(self, first: float | None, *further: float) -> Watchdog:
        """Have it watched; the limit is asked for before each look. The last one stays."""
        to_come = [first, *further]

        def current() -> float | None:
            self.limits.append(to_come.pop(0) if to_come[1:] else to_come[0])
            return self.limits[-1]

        dog = Watchdog("the server", self.loop, current)
        self.dogs.append(dog)
        dog.start()
        return dog

    def turn(self) -> None:
        """Let it have a whole turn."""
        turned = threading.Event()
        self.loop.call_soon(turned.set)
        assert turned.wait(LIMIT)

    def close(self) -> None:
        """End all of it."""
        for dog in self.dogs:
            dog.stop()
        self._end.set()
        self._thread.join()
        self.loop.close()
        wait_until(lambda: not watchdogs())


def watchdogs() -> list[threading.Thread]:
    """The threads."""
    return [each for each in threading.enumerate() if each.name == "sockserve-watchdog"]


@pytest.fixture
def running() -> Iterator[Running]:
    """A loop with nothing to do."""
    made = Running()
    yield made
    made.close()


def test_a_callback_that_keeps_the_loop_is_logged_once_with_its_stack(running: Running, expect_log: ExpectLog) -> None:
    """Once however long it takes; the next one that does so is told of again."""
    expected = expect_log(logging.WARNING, r"(?s)the server: a handler has let no other go on for .*in hog\n")
    # Of any other callback if the machine is so busy.
    expect_log(logging.WARNING, "let no other go on", at_least=0)
    running.watch(0.01)
    for times in (1, 2):
        released = threading.Event()

        def hog() -> None:
            assert released.wait(LIMIT)  # noqa: B023

        running.loop.call_soon(hog)
        try:
            assert len(expected.wait(times)) == times
            # It looks again only after a further turn.
            looks = len(running.limits)
            assert not threading.Event().wait(0.03)
            assert len(running.limits) == looks
        finally:
            released.set()
        running.turn()


@pytest.mark.parametrize("limit", [None, -1.0, float("nan"), float("inf"), threading.TIMEOUT_MAX * 2])
def test_a_limit_that_is_no_time_is_never_over(running: Running, limit: float | None) -> None:
    """Nothing is logged, and the thread ends when it is told to."""
    dog = running.watch(limit)
    released = threading.Event()
    running.loop.call_soon(lambda: released.wait(LIMIT))
    try:
        wait_until(lambda: len(running.limits) == 1)
        dog.stop()
        wait_until(lambda: not watchdogs())
    finally:
        released.set()


def test_a_loop_that_sleeps_is_not_told_of(running: Running, expect_log: ExpectLog) -> None:
    """It may sleep for longer than the limit after its last turn."""
    # Of what the loop asks before it sleeps if the machine is so busy.
    expect_log(logging.WARNING, "in before_wait", at_least=0)
    running.watch(0.02)
    running.loop.wake()
    wait_until(lambda: len(running.limits) == 1)
    assert not threading.Event().wait(0.05)


def test_a_loop_that_turned_meanwhile_is_not_told_of(running: Running) -> None:
    """A callback that has just begun when the limit is over has not kept it for so long."""
    running.watch(0.05, 10 * LIMIT)
    running.loop.wake()
    wait_until(lambda: len(running.limits) == 1)
    begun, released = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert released.wait(LIMIT)

    running.loop.call_soon(work)
    assert begun.wait(LIMIT)
    # The look that follows begins at once, for a turn has begun since.
    wait_until(lambda: len(running.limits) == 2)
    released.set()


@pytest.mark.parametrize("when", ["before the first turn", "while it waits for the limit", "before it starts"])
def test_it_ends_at_once(running: Running, when: str) -> None:
    """Also while it waits for the end of a long limit, and if ``stop()`` was faster than ``start()``."""
    if when == "before it starts":
        dog = Watchdog("the server", running.loop, lambda: LIMIT)
        dog.stop()
        dog.start()
    else:
        dog = running.watch(10 * LIMIT)
        if when == "while it waits for the limit":
            running.turn()
            wait_until(lambda: len(running.limits) == 1)
        dog.stop()
    wait_until(lambda: not watchdogs())


def test_where_no_thread_can_start_the_server_goes_on(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says at DEBUG what will be missing."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    caplog.set_level(logging.DEBUG, "sockserve")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        running.watch(0.01)
    assert "the server: slow handlers will not be reported: can't start new thread" in caplog.text
    running.turn()
