"""Greenlets at the limits: of times, of the kernel's room for watches, of threads and of descriptors."""

from __future__ import annotations

import decimal
import errno
import math
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.handlers import Boom
from support.running_greenlets import Greenlets
from support.under_test import LIMIT
from test_greenlets import Echo

import sockserve
from sockserve.concurrency.cooperative import hub as hub_module
from sockserve.concurrency.cooperative.hub import Hub
from sockserve.core.loop import OUTPUT, Loop
from sockserve.core.one_shot import OneShot
from sockserve.core.poller import EpollPoller
from sockserve.greenlets import run_in_thread, sleep
from sockserve.pytest_plugin import Running
from sockserve.testing import ask


@pytest.fixture
def greenlets() -> Iterator[Greenlets]:
    """Greenlets over a loop."""
    made = Greenlets()
    yield made
    made.close()
    made.hub.close_threads()


def outcome(call: Callable[[], object]) -> object:
    """What it returns, or the type of what it raises."""
    try:
        return call()
    except Exception as error:
        return type(error)


TIMES: list[Any] = [None, 0, 1, 2.5, True, 30 * 86400, 10**9, -0.0, -1, -0.001, math.nan, math.inf, -math.inf, 1e300]
TIMES += [10**30, "5", b"5", decimal.Decimal(1), object()]


@pytest.mark.parametrize("value", TIMES, ids=repr)
def test_a_time_out_is_taken_or_refused_as_by_any_socket(greenlets: Greenlets, value: Any) -> None:
    """What ``socket.socket.settimeout()`` refuses is refused with the same error, and the old time-out stays."""
    ours, _ = greenlets.pair()

    def set_and_get(sock: socket.socket) -> object:
        sock.settimeout(3)
        refusal = outcome(lambda: sock.settimeout(value))
        return refusal, sock.gettimeout()

    with socket.socket() as plain:
        assert set_and_get(ours) == set_and_get(plain)


@pytest.mark.parametrize("seconds", [math.nan, -1, -0.001, -math.inf])
def test_a_sleep_that_means_nothing_is_refused(greenlets: Greenlets, seconds: float) -> None:
    """As ``time.sleep()`` refuses it, in a greenlet and outside."""
    assert greenlets.run(lambda: outcome(lambda: sleep(seconds))) == [ValueError]
    assert outcome(lambda: sleep(seconds)) is ValueError


@pytest.mark.parametrize("seconds", [math.inf, 1e10, 30 * 86400, threading.TIMEOUT_MAX])
def test_a_long_sleep_is_one(greenlets: Greenlets, seconds: float) -> None:
    """Longer than poll(2) can wait; the loop sleeps meanwhile, and whoever sleeps can be ended."""
    ended: list[str] = []
    turns: list[int] = []

    def rest() -> None:
        try:
            sleep(seconds)
        finally:
            ended.append("ended")

    def watch() -> None:
        greenlets.hub.spawn(rest)
        for _ in range(2):
            sleep(0.02)
            assert greenlets.hub.loop is not None
            turns.append(greenlets.hub.loop.turns)

    greenlets.hub.run(watch)
    # Two at most for the sleeper of this test: the other one causes none.
    assert turns[1] - turns[0] <= 2
    assert not ended
    assert greenlets.hub.kill(LIMIT)
    assert ended == ["ended"]


def test_wait_writable_takes_any_time_but_nan(greenlets: Greenlets) -> None:
    """NaN is refused; with infinity it waits as long as it takes."""
    ours, theirs = greenlets.pair()
    assert greenlets.run(lambda: outcome(lambda: ours.wait_writable(math.nan))) == [ValueError]  # type: ignore[attr-defined]
    assert greenlets.run(lambda: ours.wait_writable(math.inf), lambda: theirs.recv)[0] is True  # type: ignore[attr-defined]


class NoRoom:
    """Makes chosen calls of epoll_ctl(2) for connections fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails: Callable[[int, int], bool] = lambda *_: False
        real = EpollPoller.arm

        def arm(poller: Any, fd: int, events: int) -> None:
            if self.fails(fd, events):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(poller, fd, events)

        monkeypatch.setattr(EpollPoller, "arm", arm)

    def once(self, wanted: Callable[[int, int], bool]) -> None:
        """Fail the next call that this is true of."""
        left = [True]
        self.fails = lambda fd, events: wanted(fd, events) and bool(left and left.pop())


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> NoRoom:
    """Failing calls of epoll_ctl(2)."""
    return NoRoom(monkeypatch)


def test_without_room_for_a_watch_one_read_fails(greenlets: Greenlets, no_room: NoRoom) -> None:
    """The handler gets OSError; if it reads again, it is told of its input as ever."""
    ours, theirs = greenlets.pair()
    no_room.once(lambda fd, _: fd == ours.fileno())

    heard: list[object] = []

    def read() -> None:
        greenlets.hub.spawn(write)
        heard.extend(outcome(lambda: ours.recv(10)) for _ in range(2))

    def write() -> None:
        sleep(0.01)
        theirs.sendall(b"x")

    # In one loop from its beginning to its end.
    greenlets.hub.run(read)
    assert heard == [OSError, b"x"]


def test_without_room_for_a_watch_one_write_fails(greenlets: Greenlets, no_room: NoRoom) -> None:
    """The writer gets OSError and may try again; a greenlet that reads from the same socket is told of its input."""
    ours, theirs = greenlets.pair()
    no_room.once(lambda fd, events: fd == ours.fileno() and bool(events & OUTPUT))
    big = bytes(4_000_000)
    heard: list[object] = []

    def read() -> None:
        heard.append(ours.recv(10))

    def write() -> None:
        greenlets.hub.spawn(read)
        sleep(0)
        first = outcome(lambda: ours.sendall(big))
        theirs.sendall(b"x")
        while not heard:
            sleep(0)
        greenlets.hub.spawn(drain)
        heard.extend([first, outcome(lambda: ours.sendall(b"end"))])

    def drain() -> None:
        received = b""
        while not received.endswith(b"end"):
            received = received[-2:] + theirs.recv(1_000_000)

    greenlets.hub.run(write)
    assert heard == [b"x", OSError, None]
    assert greenlets.hub.wait_until_idle(LIMIT)


def test_without_room_in_a_new_loop_one_greenlet_suffers(greenlets: Greenlets, no_room: NoRoom) -> None:
    """When another loop takes the greenlets over, what cannot be watched there hears of it, and the others go on."""
    first, first_peer = greenlets.pair()
    second, second_peer = greenlets.pair()
    heard: list[object] = []
    with Loop() as loop:
        greenlets.hub.give_turns_from_here()
        greenlets.hub.move_to(loop)
        for sock in (first, second):
            greenlets.hub.begin(lambda sock=sock: heard.append(outcome(lambda: sock.recv(10))))  # type: ignore[misc]
        no_room.fails = lambda fd, _: fd == first.fileno()
        first_peer.send(b"1")
        second_peer.send(b"2")
        assert greenlets.hub.wait_until_idle(LIMIT)
    assert set(map(str, heard)) <= {"b'1'", "b'2'", "<class 'OSError'>"}
    assert len(heard) == 2
    assert b"2" in heard


def test_a_thread_that_cannot_start_is_an_error_of_that_call(
    greenlets: Greenlets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one is made, and the one that failed is not made later."""
    made: list[int] = []
    start = threading.Thread.start

    def call() -> list[object]:
        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        first = outcome(lambda: run_in_thread(made.append, 1))
        monkeypatch.setattr(threading.Thread, "start", start)
        return [first, outcome(lambda: run_in_thread(made.append, 2))]

    assert greenlets.run(call) == [[RuntimeError, None]]
    assert made == [2]


def test_waits_within_waits_need_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in the loop's own greenlet, and one in a callback of that wait's loop; then the first loop goes on."""
    hub = Hub()
    outer, inner = OneShot(), OneShot()
    told: list[object] = []
    with Loop() as loop:
        hub.give_turns_from_here()
        hub.move_to(loop)
        hub.reserve()

        def no_more() -> Loop:
            raise OSError(errno.EMFILE, "no descriptor")

        monkeypatch.setattr(hub_module, "Loop", no_more)

        def work() -> None:
            for change in (inner, outer):
                sleep(0.01)
                change.set()

        def within() -> None:
            told.append(hub.wait(inner, LIMIT))

        hub.begin(work)
        loop_of_wait: list[Loop] = []

        def note() -> None:
            assert hub.loop is not None
            loop_of_wait.append(hub.loop)
            hub.loop.call_soon(within)

        hub.begin(lambda: (sleep(0), note()))
        told.append(hub.wait(outer, LIMIT))
        assert told == [True, True]
        assert loop_of_wait[0] is not loop
        assert hub.loop is loop
        monkeypatch.undo()
        assert hub.wait_until_idle(LIMIT)
        hub.unreserve()


def test_a_thread_that_waits_for_a_cooperative_socket_needs_no_descriptor(
    greenlets: Greenlets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of greenlets, where it blocks as any other, its wait opens nothing."""
    ours, theirs = greenlets.pair()

    def no_more(*_: object) -> None:
        raise OSError(errno.EMFILE, "no descriptor")

    monkeypatch.setattr(select, "epoll", no_more)
    timer = threading.Timer(0.02, socket.socket.send, (theirs, b"x"))
    timer.start()
    ours.settimeout(10**9)
    assert ours.recv(1) == b"x"
    timer.join(LIMIT)


@pytest.mark.parametrize("seconds", [math.inf, -1.0, 1e10])
def test_slow_handlers_are_not_reported_after_a_time_that_never_comes(running: Running, seconds: float) -> None:
    """As with None; and the thread that would report them ends with the server, not before."""

    def watchdogs() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name == "sockserve-watchdog"]

    server = sockserve.GreenletTCPServer(("127.0.0.1", 0), Echo)
    server.slow_handler_warning = seconds
    running(server)
    for _ in range(3):
        assert ask(server, b"x") == b"x"
    assert len(watchdogs()) == 1


def test_an_error_in_a_thread_is_the_callers(greenlets: Greenlets) -> None:
    """What a function raises in its thread is raised by the call, and no other call hears of it."""

    def fail() -> None:
        raise Boom("there")

    assert greenlets.run(
        lambda: outcome(lambda: run_in_thread(fail)), lambda: outcome(lambda: run_in_thread(len, b"12"))
    ) == [Boom, 2]
