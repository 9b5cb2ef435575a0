"""The phases of a supervisor's ``run()``, and what the end of a worker means: the tables themselves."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from sockserve.concurrency.prefork.outcomes import Outcome, Stage, outcome_of
from sockserve.concurrency.prefork.phases import DRAIN, END, GIVE_UP, RESUME, SHUTDOWN, STOP, Change, Phase, Run
from sockserve.concurrency.prefork.places import GIVE_UP_AFTER, Places
from sockserve.concurrency.prefork.worker_handle import cut_now, drain_within, leave_within
from sockserve.core.one_shot import OneShot

KEEPS, STOPS, EMPTIES, ENDS, DRAINS = Phase


@pytest.mark.parametrize(
    ("change", "after"),
    [
        (SHUTDOWN, [STOPS, STOPS, EMPTIES, ENDS, DRAINS]),
        (STOP, [DRAINS, DRAINS, DRAINS, DRAINS, DRAINS]),
        (DRAIN, [EMPTIES, EMPTIES, EMPTIES, ENDS, DRAINS]),
        (RESUME, [KEEPS, STOPS, KEEPS, ENDS, DRAINS]),
        (END, [ENDS, ENDS, EMPTIES, ENDS, DRAINS]),
        (GIVE_UP, [ENDS, ENDS, ENDS, ENDS, DRAINS]),
    ],
    ids=["shutdown", "stop", "drain", "resume", "end", "give up"],
)
def test_each_change_leads_from_each_phase_to_one(change: Change, after: list[Phase]) -> None:
    """No order undoes a stop; a drain undoes neither an end nor a stop."""
    found = []
    for before in Phase:
        run = Run(1)
        run.phase = before
        assert run.change(change) is (run.phase is not before)
        found.append(run.phase)
    assert found == after


def test_a_stop_drains_and_the_next_one_cuts() -> None:
    """Whatever ended the workers before, the first stop leaves them their time."""
    for before in (KEEPS, STOPS, EMPTIES, ENDS):
        run = Run(1)
        run.phase = before
        run.stop(7.0)
        assert (run.phase, run.steps) == (DRAINS, drain_within(7.0))
        run.stop(7.0)
        assert (run.phase, run.steps) == (DRAINS, cut_now())


@pytest.mark.parametrize(
    ("phase", "until_empty", "is_to_stop", "leaves"),
    [
        (ENDS, False, False, True),
        (DRAINS, False, False, True),
        (EMPTIES, False, False, False),
        (EMPTIES, True, False, True),
        (EMPTIES, False, True, True),
    ],
)
def test_what_waits_for_the_last_worker_is_told_in_each_phase(
    phase: Phase, until_empty: bool, is_to_stop: bool, leaves: bool
) -> None:
    """After a drain the loop is left only by ``end()``, or if the server is to stop."""
    run, is_empty = Run(1, lambda: is_to_stop), OneShot()
    run.end(END, leave_within(None))
    run.phase, run.until_empty = phase, until_empty
    run.waiting.append(is_empty)
    assert run.has_emptied() is leaves
    assert is_empty.is_set()
    assert not run.waiting


def test_one_worker_is_always_wanted() -> None:
    """More and fewer change the number, down to one."""
    run = Run(2)
    for more, wanted in ((1, 3), (-1, 2), (-1, 1), (-1, 1), (1, 2)):
        run.want(more)
        assert run.wanted == wanted


KILLED = -signal.SIGKILL


@pytest.mark.parametrize(
    ("stage", "status", "was_hung", "outcome"),
    [
        (Stage.STARTS, 0, False, Outcome.NOT_STARTED),
        (Stage.STARTS, 1, False, Outcome.NOT_STARTED),
        (Stage.STARTS, -signal.SIGSEGV, False, Outcome.NOT_STARTED),
        (Stage.STARTS, KILLED, False, Outcome.EARLY),
        (Stage.STARTS, KILLED, True, Outcome.NOT_STARTED),
        (Stage.READY, 0, False, Outcome.SHORT_LIVED),
        (Stage.READY, -signal.SIGSEGV, False, Outcome.SHORT_LIVED),
        (Stage.READY, KILLED, False, Outcome.EARLY),
        (Stage.READY, KILLED, True, Outcome.SHORT_LIVED),
        (Stage.SETTLED, 1, False, Outcome.REPLACED),
        (Stage.SETTLED, KILLED, False, Outcome.REPLACED),
        (Stage.SETTLED, KILLED, True, Outcome.REPLACED),
    ],
)
def test_an_end_means_what_the_table_says(stage: Stage, status: int, was_hung: bool, outcome: Outcome) -> None:
    """A kill from outside is no failed start; one by the supervisor itself is. An end that was ordered is neither."""
    assert outcome_of(stage, status, is_expected=False, was_hung=was_hung) is outcome
    assert outcome_of(stage, status, is_expected=True, was_hung=was_hung) is Outcome.EXPECTED


class Held:
    """What a place knows of its worker."""

    wants_out = False

    def __init__(self, place: int, generation: int = 0, *, is_settled: bool = True) -> None:
        self.place = place
        self.generation = generation
        self.is_settled = is_settled


def test_failed_starts_are_hopeless_only_while_no_worker_has_settled() -> None:
    """One place that serves is reason enough to go on."""
    places: Any = Places()
    for _ in range(GIVE_UP_AFTER):
        assert not places.is_hopeless()
        assert places.failed(places.attempt, was_ready=False)
    assert places.is_hopeless()
    places.holders[1] = Held(1, is_settled=False)
    assert places.is_hopeless()
    places.holders[1] = Held(1)
    assert not places.is_hopeless()


def test_several_failures_of_one_attempt_count_once() -> None:
    """Workers that were begun together fail together."""
    places = Places()
    assert places.failed(0, was_ready=False) is not None
    assert places.failed(0, was_ready=False) is None
    assert places.failures == 1


def test_a_place_is_filled_before_another_is_renewed() -> None:
    """Empty places all at once; then those of an older generation one after the other, and none while one begins."""
    places: Any = Places()
    assert places.next_to_start(2) == [0, 1]
    assert places.next_to_start(2, held={1}) == [0]
    places.holders.update({0: Held(0), 1: Held(1)})
    assert places.next_to_start(2) == []
    places.generation = 1
    assert places.next_to_start(2) == [0]
    successor = places.starting[0] = Held(0, 1)
    assert places.next_to_start(2) == []
    before = places.holders[0]
    assert places.take(successor) == (True, before)
    assert places.next_to_start(2) == [1]
    assert places.take(successor) == (False, None)


def test_a_rolling_restart_that_fails_is_given_up() -> None:
    """The workers that are there count as renewed, and the next restart is a new one."""
    places: Any = Places()
    places.holders.update({0: Held(0), 1: Held(1)})
    places.generation = 1
    assert places.rolls_in_vain(0)
    assert (places.generation, places.holders[0].generation) == (0, 0)
    assert places.next_to_start(2) == []
    assert not places.rolls_in_vain(0)
