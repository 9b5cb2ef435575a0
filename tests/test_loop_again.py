"""A loop that is run again after an exception: nothing that it had heard of is lost."""

from __future__ import annotations

import functools
import math
import os
import socket
from collections.abc import Iterator

import pytest
from support.handlers import Boom
from test_greenlet_rest import Once

from sockserve.concurrency.cooperative.hub import Hub
from sockserve.concurrency.cooperative.request_greenlet import current_request_greenlet
from sockserve.core.loop import INPUT, OUTPUT, Loop
from sockserve.greenlets import cooperative


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Three pairs of sockets, whose second ones have spoken."""
    made = [socket.socketpair() for _ in range(3)]
    for _, theirs in made:
        theirs.sendall(b"x")
    yield made
    for each in made:
        for sock in each:
            sock.close()


def turn(loop: Loop) -> None:
    """One turn."""
    loop.add(Once(loop))
    loop.run()


def test_what_comes_after_a_callback_that_raises_is_told_again(
    loop: Loop, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """Each change is told once by the kernel; what the turn did not come to is told by the next run."""
    told: list[tuple[int, int]] = []

    def tell(fd: int, events: int) -> None:
        told.append((fd, events))
        if len(told) == 1:
            raise Boom("the first")

    for ours, _ in pairs:
        loop.arm(ours.fileno(), functools.partial(tell, ours.fileno()), INPUT)
    with pytest.raises(Boom):
        turn(loop)
    assert len(told) == 1
    turn(loop)
    assert set(told) == {(ours.fileno(), INPUT) for ours, _ in pairs}


def test_what_was_fetched_when_a_signal_came_is_told_again(
    loop: Loop, pairs: list[tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between poll() and the name for its result a signal handler may raise: input and output come again."""
    told = []
    poll = loop._poller.poll
    events_of = [INPUT, INPUT | OUTPUT, INPUT]
    for (ours, _), events in zip(pairs, events_of, strict=True):
        loop.arm(ours.fileno(), told.append, events)

    def interrupted(timeout: float | None) -> list[tuple[int, int]]:
        assert len(poll(timeout)) == len(pairs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop._poller, "poll", interrupted)
        with pytest.raises(KeyboardInterrupt):
            turn(loop)
    turn(loop)
    assert sorted(told) == sorted(events_of)
    loop.call_soon(lambda: None)
    turn(loop)
    assert len(told) == len(pairs)


def test_what_was_closed_or_only_watched_is_left_as_it_is(loop: Loop) -> None:
    """A descriptor that is watched stays level-triggered, and one that was closed without a word does no harm."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        heard = []
        loop.watch(ours.fileno(), lambda: heard.append(1))
        lost = os.dup(theirs.fileno())
        loop.arm(lost, print, INPUT)
        if not loop.stays_armed:
            loop._poller.unregister(lost)
        os.close(lost)
        theirs.sendall(b"x")
        loop.call_soon(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            turn(loop)
        turn(loop)
        turn(loop)
        assert len(heard) == 3


def test_greenlets_go_on_in_a_loop_that_is_run_again(
    loop: Loop, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """One is ended by Ctrl-C; those that were to have their turn after it, by input or by themselves, have it then."""
    hub = Hub()
    hub.give_turns_from_here()
    hub.move_to(loop)
    read: list[bytes] = []
    woken: list[object] = []

    def wait_for(sock: socket.socket) -> None:
        data = sock.recv(10)
        if not read:
            read.append(data)
            raise KeyboardInterrupt
        read.append(data)

    def pause() -> None:
        me = current_request_greenlet()
        assert me is not None
        me.pause()
        woken.append(me)
        if len(woken) == 1:
            raise KeyboardInterrupt

    for index, (ours, theirs) in enumerate(pairs):
        assert theirs.recv
        pairs[index] = (cooperative(ours), theirs)
        # Let it wait.
        pairs[index][0].recv(10)
        hub.begin(wait_for, pairs[index][0])
    for _, theirs in pairs:
        theirs.sendall(b"y")
    with pytest.raises(KeyboardInterrupt):
        turn(loop)
    assert read == [b"y"]
    turn(loop)
    assert read == [b"y"] * 3
    paused = [hub.begin(pause) for _ in range(3)]
    for worker in paused:
        hub.resume(worker)
    with pytest.raises(KeyboardInterrupt):
        turn(loop)
    turn(loop)
    assert woken == paused
    assert not hub.greenlets


def test_a_delay_is_a_number(loop: Loop) -> None:
    """NaN is refused, for no time would be the right one; infinity is never."""
    with pytest.raises(ValueError, match="NaN"):
        loop.call_later(math.nan, lambda: None)
    timer = loop.call_later(math.inf, lambda: None)
    loop.call_soon(lambda: None)
    turn(loop)
    timer.cancel()
