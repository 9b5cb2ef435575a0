"""The channel: what its loop tells of a descriptor reaches the greenlet that waits, or is kept until one does."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator

import pytest
from greenlet import GreenletExit
from support.channel_pair import Pair, error_of, me
from support.faulty_poller import FaultyPoller
from support.running_greenlets import Greenlets
from support.under_test import LIMIT

from sockserve.concurrency.cooperative import channel as module
from sockserve.concurrency.cooperative.channel import Channel
from sockserve.concurrency.cooperative.errand import Errand
from sockserve.concurrency.cooperative.hub import Hub
from sockserve.concurrency.cooperative.request_greenlet import RequestGreenlet, sleep
from sockserve.core.frugal_loop import FrugalLoop
from sockserve.core.one_shot import OneShot


@pytest.fixture
def pair() -> Iterator[Pair]:
    """One without a time-out."""
    made = Pair()
    yield made
    made.close()


# waiting


def test_input_that_comes_while_no_greenlet_waits_is_noted(pair: Pair) -> None:
    """The loop tells of it once; the next read must not wait for another time."""

    def work() -> None:
        pair.theirs.sendall(b"1")
        pair.channel.wait_input()
        assert pair.ours.recv(10) == b"1"
        pair.channel.dry_up()
        assert pair.channel.is_dry
        # So that the loop tells the channel, and not its reader.
        sleep(0)
        pair.theirs.sendall(b"2")
        sleep(0)
        assert not pair.channel.is_dry
        assert pair.channel.has_input()
        assert pair.ours.recv(10) == b"2"
        pair.theirs.close()
        sleep(0)
        assert pair.channel.has_ended
        pair.channel.dry_up()
        assert not pair.channel.is_dry

    Greenlets().run(work)


def test_the_loop_switches_straight_to_a_reader_until_it_pauses_for_anything_else(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two waits for input it stays so; a wait for output, or a pause, has the channel told again."""
    seen: list[object] = []
    told: list[int] = []
    on_change = Channel._on_change

    def note(channel: Channel, events: int) -> None:
        told.append(events)
        on_change(channel, events)

    monkeypatch.setattr(Channel, "_on_change", note)

    def read() -> None:
        pair.channel.wait_input()
        seen.append(pair.channel.direct is me() and me().listens_to is pair.channel)
        pair.ours.recv(10)
        pair.channel.wait_input()
        seen.append((pair.channel.direct is me(), told == []))
        pair.channel.wait_output()
        assert told
        seen.append(pair.channel.direct)
        pair.ours.recv(10)
        pair.channel.wait_input()
        sleep(0)
        seen.append((pair.channel.direct, pair.channel.reader))

    def write() -> None:
        for _ in range(3):
            pair.theirs.sendall(b"x")
            sleep(0)
            sleep(0)

    Greenlets().run(read, write)
    assert seen == [True, (True, True), None, (None, None)]


def test_one_greenlet_reads_while_another_writes(pair: Pair) -> None:
    """Each gets its own turns of the one descriptor."""
    pair.fill()
    ended: list[str] = []

    def read() -> None:
        pair.channel.wait_input()
        ended.append("read")

    def write() -> None:
        pair.channel.wait_output()
        ended.append("written")

    def peer() -> None:
        pair.theirs.sendall(b"x")
        sleep(0)
        sleep(0)
        assert ended == ["read"]
        pair.theirs.setblocking(False)
        while error_of(lambda: pair.theirs.recv(1 << 20)) is None:
            pass

    Greenlets().run(read, write, peer)
    assert ended == ["read", "written"]


@pytest.mark.parametrize("verb", ["wait_input", "wait_output"])
def test_two_greenlets_cannot_wait_for_the_same(pair: Pair, verb: str) -> None:
    """The second one hears of it, and the first waits on."""
    pair.fill()
    outcomes: list[object] = []

    def wait() -> None:
        outcomes.append(error_of(getattr(pair.channel, verb)))

    def end() -> None:
        assert outcomes == [RuntimeError]
        pair.channel.close()

    Greenlets().run(wait, wait, end)
    assert outcomes == [RuntimeError, errno.EBADF]


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_wait_that_an_exception_ended_is_over(pair: Pair, goes_on: bool) -> None:
    """Another greenlet may read then, whether the first one ends by that or catches it."""
    waiting: list[RequestGreenlet] = []
    caught: list[bool] = []

    def read() -> None:
        waiting.append(me())
        try:
            pair.channel.wait_input()
        except GreenletExit:
            caught.append(True)
            if not goes_on:
                raise
            me().hub.switch()

    def kill() -> None:
        parent = waiting[0].parent
        assert parent is not None
        waiting[0].parent = me()
        if goes_on:
            me().hub.resume(me())
        waiting[0].throw()
        waiting[0].parent = parent
        assert (pair.channel.reader, pair.channel.direct, waiting[0].dead) == (None, None, not goes_on)
        pair.theirs.sendall(b"x")
        pair.channel.wait_input()
        me().hub.resume(waiting[0])

    Greenlets().run(read, kill)
    assert caught == [True]
    assert waiting[0].dead


def test_a_writer_is_told_beside_a_reader_that_the_loop_switches_to(pair: Pair) -> None:
    """Also if the descriptor was armed for output before the reader came."""
    ended: list[str] = []

    def drain() -> None:
        pair.theirs.setblocking(False)
        while error_of(lambda: pair.theirs.recv(1 << 20)) is None:
            pass

    def write() -> None:
        pair.channel.wait_output()
        ended.append("armed")
        while pair.channel.direct is None:
            sleep(0)
        pair.fill()
        pair.channel.wait_output()
        ended.append("written")

    def read() -> None:
        while not ended:
            sleep(0)
        pair.channel.wait_input()
        ended.append("read")

    def peer() -> None:
        while ended != ["armed"] or pair.channel.writer is None:
            sleep(0)
        drain()
        for _ in range(2):
            sleep(0)
        assert ended == ["armed", "written"]
        pair.theirs.sendall(b"x")

    Greenlets().run(write, read, peer)
    assert ended == ["armed", "written", "read"]


def test_time_is_limited_in_a_greenlet_and_in_a_thread() -> None:
    """Of several waits of one operation, all have to end at the deadline of the first."""
    pair = Pair(limit=0.02)
    try:
        for run in (Greenlets().run, lambda function: function()):
            begun = time.monotonic()
            deadline = pair.channel.wait_input()
            assert deadline is not None
            assert 0.02 <= deadline - begun < LIMIT

            def wait_again() -> None:
                for _ in range(3):
                    pair.channel.wait_input(deadline)  # noqa: B023

            with pytest.raises(TimeoutError):
                run(wait_again)
            assert time.monotonic() >= deadline
            pair.fill()
            with pytest.raises(TimeoutError):
                run(lambda: pair.channel.wait_output(time.monotonic()))
    finally:
        pair.close()


def test_outside_of_greenlets_it_blocks_the_thread(pair: Pair) -> None:
    """No loop is needed, and none is armed."""
    pair.theirs.sendall(b"x")
    pair.channel.wait_input()
    pair.channel.wait_output()
    assert pair.channel.loop is None
    assert pair.ours.recv(10) == b"x"


def test_another_thread_says_nothing_of_what_the_loop_tells(pair: Pair) -> None:
    """What it has read empty may be full again, as the loop told meanwhile."""
    hub = Hub()

    def read() -> None:
        pair.channel.wait_input()
        other = threading.Thread(target=pair.channel.dry_up)
        other.start()
        other.join()
        assert not pair.channel.is_dry

    pair.theirs.sendall(b"x")
    hub.run(read)


# turns


@pytest.mark.parametrize("turn", [0.0, LIMIT])
def test_a_greenlet_that_need_not_wait_gives_its_turn_away_in_time(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, turn: float
) -> None:
    """Others run between two of its operations once it has had its turn for long enough, and not before."""
    monkeypatch.setattr(module, "TURN", turn)
    turns: list[str] = []

    def work() -> None:
        for _ in range(3):
            pair.channel.share()
            turns.append("first")

    Greenlets().run(work, lambda: turns.append("second"))
    assert turns == (["first", "second", "first", "first"] if turn == 0.0 else ["first", "first", "first", "second"])


# the end


@pytest.mark.parametrize("where", ["greenlet", "thread"])
@pytest.mark.parametrize("verb", ["close", "release"])
def test_greenlets_that_wait_hear_of_the_end(pair: Pair, verb: str, where: str) -> None:
    """Both the reader and the writer; ``release()`` leaves the descriptor open."""
    pair.fill()
    fd = pair.ours.fileno()
    outcomes: list[object] = []

    def end() -> None:
        result = getattr(pair.channel, verb)()
        assert result == (fd if verb == "release" else None)
        os.fstat(fd)

    def end_elsewhere() -> None:
        thread = threading.Thread(target=end)
        thread.start()
        while not outcomes:
            sleep(0)
        thread.join()

    def wait(verb: str) -> None:
        outcomes.append(error_of(getattr(pair.channel, verb)))

    Greenlets().run(
        lambda: wait("wait_input"), lambda: wait("wait_output"), end if where == "greenlet" else end_elsewhere
    )
    assert outcomes == [errno.EBADF, errno.EBADF]
    assert pair.channel.fd == -1


def test_a_reader_may_close_what_it_reads(pair: Pair) -> None:
    """It waits for nothing then, and its next turn is about something else."""

    def work() -> None:
        pair.theirs.sendall(b"x")
        pair.channel.wait_input()
        assert pair.channel.direct is me()
        pair.channel.close()
        assert pair.channel.direct is None
        assert not me().listens_to
        sleep(0)

    Greenlets().run(work)


# loops


def test_a_refusal_of_the_system_is_heard_by_all_that_wait(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC, as one more to be armed for output: the reader would not be told any more either."""
    faults = FaultyPoller(monkeypatch)
    pair.fill()
    turns: list[str] = []

    def read() -> None:
        pair.channel.wait_input()
        turns.append("read")

    def write() -> None:
        faults.refuse("modify", fd=pair.ours.fileno())
        assert error_of(pair.channel.wait_output) == errno.ENOSPC
        assert pair.channel.loop is None
        turns.append("refused")

    Greenlets().run(read, write)
    assert turns == ["refused", "read"]


def test_where_a_loop_tells_once_only_the_channel_asks_again() -> None:
    """As on a platform without epoll."""
    hub = Hub()
    pair = Pair()
    received: list[bytes] = []
    done = OneShot()

    def read() -> None:
        for _ in range(3):
            pair.channel.wait_input()
            assert pair.channel.direct is None
            received.append(pair.ours.recv(1))
        done.set()

    def write() -> None:
        pair.channel.wait_output()
        received.append(b"written")
        pair.theirs.sendall(b"23")

    def peer() -> None:
        pair.theirs.sendall(b"1")
        sleep(0)
        sleep(0)
        assert received == [b"1"]
        pair.theirs.recv(1 << 24)

    pair.fill()
    with FrugalLoop() as loop:
        hub.give_turns_from_here()
        hub.move_to(loop)
        for each in (read, write, peer):
            hub.begin(each)
        loop.run(Errand(loop, done))
    pair.close()
    assert received == [b"1", b"written", b"2", b"3"]


def test_in_a_forked_child_it_tells_no_more(pair: Pair) -> None:
    """``follow(None)``: no greenlet of the parent has a turn for it; the descriptor is left alone."""
    turns: list[str] = []

    def read() -> None:
        pair.channel.wait_input()
        turns.append("read")

    def forget() -> None:
        assert pair.channel.reader is not None
        waiting = pair.channel.reader
        pair.channel.follow(None)
        assert pair.channel.loop is pair.channel.writer is None
        assert pair.channel.reader is None
        pair.theirs.sendall(b"x")
        sleep(0)
        sleep(0)
        assert turns == []
        waiting.parent = me()
        waiting.throw()

    Greenlets().run(read, forget)
    assert pair.ours.recv(10) == b"x"
