"""The event that everything waits for: set once, seen by all, whenever they come."""

from __future__ import annotations

import signal
import threading
import time

from support.stepping import steps
from support.under_test import LIMIT

from sockserve.core.one_shot import OneShot


def test_everybody_is_let_go() -> None:
    """Whoever waits when it is set, and whoever comes later."""
    event = OneShot()
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(event.wait(LIMIT))) for _ in range(20)]
    for thread in threads:
        thread.start()
    assert not event.is_set()
    event.set()
    event.set()
    for thread in threads:
        thread.join()
    assert answers == [True] * 20
    assert event.is_set()
    assert event.wait()
    assert event.wait(0)


def test_a_wait_ends_when_its_time_is_up() -> None:
    """Not earlier; a time that is up already is no error."""
    event = OneShot()
    begin = time.monotonic()
    assert not event.wait(0.05)
    assert time.monotonic() - begin >= 0.05
    assert not event.wait(0)
    assert not event.wait(-1)


def test_no_set_is_missed() -> None:
    """Wherever in a wait it happens, the wait ends with True."""
    for step in steps():
        event = OneShot()
        if not step.run(lambda event=event: event.wait(0.0), event.set):  # type: ignore[misc]
            # After the very last look, then; and the next one sees it.
            assert not step.reached or event.wait(0), step


def test_a_set_inside_a_set_is_harmless() -> None:
    """Of two who set it at the same time each wakes whom the other has not."""
    for step in steps():
        event = OneShot()
        answers: list[bool] = []
        threads = [threading.Thread(target=lambda: answers.append(event.wait(LIMIT))) for _ in range(2)]  # noqa: B023
        for thread in threads:
            thread.start()
        step.run(event.set, event.set)
        for thread in threads:
            thread.join()
        assert answers == [True, True], step


def test_a_signal_handler_may_wait_for_what_it_interrupted() -> None:
    """In the thread that is about to wait, a handler waits for the same event, and both see it."""
    for step in steps():
        event = OneShot()
        timer = threading.Timer(0.002, event.set)
        timer.start()
        assert step.run(lambda event=event: event.wait(LIMIT), lambda event=event: event.wait(LIMIT))  # type: ignore[misc]
        timer.join()


def test_a_signal_ends_no_wait_early() -> None:
    """PEP 475: the wait goes on with the time that remains."""
    event = OneShot()
    calls: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda signum, _: calls.append(signum))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        begin = time.monotonic()
        assert not event.wait(0.05)
        assert time.monotonic() - begin >= 0.05
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert calls
