"""Parking without a system call: what an event, a claim or the end does at each single step of it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.background import Background
from support.stepping import Step, steps

from sockserve.concurrency.pool.parking import Parking
from sockserve.concurrency.pool.poller import open_shared_poller
from sockserve.core.active_requests import ActiveRequests, LiveRequest

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="other pollers leave no choice")


class Place:
    """A parking with one connection, that stays armed and is being served."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.poller = open_shared_poller()
        stack.callback(self.poller.close)
        self.parking = Parking("server", self.poller, lambda: None)
        self.parking.holds = True
        ours, self.client = socket.socketpair()
        stack.enter_context(ours)
        stack.enter_context(self.client)
        self.live = LiveRequest(ActiveRequests(), None, ours, "peer")
        self.live.continue_handler = bool
        self.fd = ours.fileno()
        assert self.park()
        assert self.parking.parked.pop(self.fd) is self.live
        assert self.fd in self.parking.held

    def park(self) -> bool:
        """Do what the thread does that has served it."""
        # Past what watches that only request_life does this.
        vars(self.live)["_watched_state"] = "handle"
        return self.parking.park(self.live)

    def hear(self) -> None:
        """Do what a worker does that was told of it before, but puts it back instead of serving it."""
        parking = self.parking
        live = parking.parked.pop(self.fd, None)
        if live is None and self.fd in parking.held:
            parking.quiet(self.fd)
            live = parking.parked.pop(self.fd, None)
        if live is not None:
            parking.put_back(live)

    def beside(self, call: Callable[[], object]) -> Background:
        """Start something in another thread, and return when it is done or waits for this one."""
        record: Any = self.live.parking_record
        # Looked at before, as the other one takes it, too.
        must_wait = record.arming.locked()
        other = Background(call)
        if must_wait:
            # It comes as far as it can, or is a little late: both are possible orders.
            other.join(0.002)
        else:
            other.settle()
        return other

    def check(self, step: Step) -> None:
        """It is parked, and the poller tells of what its client says now."""
        assert list(self.parking.parked.values()) == [self.live], step
        self.client.sendall(b"hello")
        assert self.fd in [fd for fd, _ in self.poller.poll(0, 16)], step


@pytest.fixture
def make() -> Iterator[Callable[[], Place]]:
    """Make places; all are closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda: Place(stack)


@pytest.mark.parametrize("holds", [True, False], ids=["stays armed", "does not"])
def test_an_event_at_any_step_of_parking_makes_nothing_deaf(make: Callable[[], Place], holds: bool) -> None:
    """A worker that is told of input that has been read mutes the descriptor: it is heard again once it is parked."""
    for step in steps():
        place = make()
        place.parking.holds = holds
        workers: list[Background] = []

        def interfere() -> None:
            workers.append(place.beside(place.hear))  # noqa: B023

        assert step.run(place.park, interfere), step
        for worker in workers:
            worker.end(step)
            assert worker.error is None, step
        place.check(step)


@pytest.mark.parametrize("holds", [True, False], ids=["stays armed", "does not"])
def test_parking_at_any_step_of_an_event_makes_nothing_deaf(make: Callable[[], Place], holds: bool) -> None:
    """The same, with the worker that is told in the middle of its work when the other one parks."""
    for step in steps():
        place = make()
        place.parking.holds = holds
        parkers: list[Background] = []

        def interfere() -> None:
            parkers.append(place.beside(place.park))  # noqa: B023

        step.run(place.hear, interfere)
        for parker in parkers:
            parker.end(step)
            assert parker.error is None, step
        if not parkers:
            assert place.park()
        place.check(step)


def test_two_workers_that_are_told_at_any_step_of_each_other(make: Callable[[], Place]) -> None:
    """Both mute it, and one parks it meanwhile."""
    for step in steps():
        place = make()
        others: list[Background] = []

        def interfere() -> None:
            others.extend((place.beside(place.hear), place.beside(place.park)))  # noqa: B023

        step.run(place.hear, interfere)
        for other in others:
            other.end(step)
            assert other.error is None, step
        if not others:
            assert place.park()
        place.check(step)


def test_the_end_at_any_step_of_parking_leaves_none_behind(make: Callable[[], Place]) -> None:
    """Either the thread that parks it hears that none will ever serve it, or the one that ends all ends it."""
    for step in steps():
        place = make()
        ended: list[LiveRequest] = []
        place.parking.end = ended.append  # type: ignore[method-assign]
        enders: list[Background] = []

        def end() -> None:
            place.parking.close()  # noqa: B023
            place.parking.end_all()  # noqa: B023

        def interfere() -> None:
            enders.append(place.beside(end))  # noqa: B023

        is_parked = step.run(place.park, interfere)
        for ender in enders:
            ender.end(step)
            assert ender.error is None, step
        if not enders:
            end()
        assert (is_parked, ended) in ((True, [place.live]), (False, [])), step
        assert not place.parking.parked, step


def test_a_claim_at_any_step_of_parking_is_whole(make: Callable[[], Place]) -> None:
    """It has the connection or it has not; if it has, the descriptor is armed no more."""
    for step in steps():
        place = make()
        claims: list[bool] = []
        claimers: list[Background] = []

        def interfere() -> None:
            claimers.append(place.beside(lambda: claims.append(place.parking.claim(place.live))))  # noqa: B023

        assert step.run(place.park, interfere), step
        for claimer in claimers:
            claimer.end(step)
            assert claimer.error is None, step
        if claims == [True]:
            assert (place.parking.parked, place.parking.held) == ({}, set()), step
            place.client.sendall(b"hello")
            assert place.fd not in [fd for fd, _ in place.poller.poll(0, 16)], step
        else:
            place.check(step)


def test_what_was_told_before_it_was_parked_is_not_trusted(make: Callable[[], Place]) -> None:
    """The input may have been read since; whether it stays armed, or did so when it was parked last."""
    place = make()
    began = time.monotonic()
    for holds in (True, False, False):
        place.parking.holds = holds
        assert place.park()
        record: Any = place.live.parking_record
        assert began < record.trusted_from
        began = time.monotonic()
        assert began > record.trusted_from
        # Put back it is trusted as before.
        assert place.parking.parked.pop(place.fd) is place.live
        place.parking.put_back(place.live)
        assert place.parking.parked.pop(place.fd) is place.live
    assert place.park()
    assert record.trusted_from < began


def test_a_closed_connection_of_which_a_child_has_a_copy_is_told_of_no_more(make: Callable[[], Place]) -> None:
    """The kernel tells of such a descriptor for ever, if it is not taken out before it is closed (epoll(7))."""
    place = make()
    assert place.park()
    assert place.parking.parked.pop(place.fd) is place.live
    copy = os.dup(place.fd)
    try:
        place.parking.detach(place.live)
        place.live.request.close()
        place.client.close()
        assert not place.poller.poll(0, 16)
    finally:
        os.close(copy)
