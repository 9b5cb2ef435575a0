"""A worker as its supervisor sees it, and what is read of what a worker writes."""

from __future__ import annotations

import signal
import types
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockserve.concurrency.prefork.outcomes import Stage
from sockserve.concurrency.prefork.protocol import (
    CAUSE,
    CUT,
    DRAIN,
    LEAVE,
    LONGEST_TEXT,
    LOOK,
    READY,
    RETIRE,
    STALE,
    STOPPED,
    SUSPENSIONS,
    Orders,
    Reader,
    told_since,
)
from sockserve.concurrency.prefork.worker_handle import (
    KILL,
    WorkerHandle,
    cut_now,
    drain_within,
    leave_within,
    retire_within,
)

ORDERS = Orders(3, is_anew=False, worker_timeout=None, max_requests=None, dump_signal=signal.SIGQUIT)


@pytest.fixture
def worker() -> Iterator[WorkerHandle]:
    """One whose process is none."""
    worker = WorkerHandle(ORDERS, 0, 0, 6)
    child: Any = types.SimpleNamespace(pid=12, sent=[], close=lambda: None, abandon=lambda: None)
    child.cut = lambda: child.sent.append(signal.SIGKILL)
    child.send = child.sent.append
    worker.child = child
    with worker.control, worker._theirs:
        yield worker


# what is read


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([READY, STOPPED, b"File x\n", b"\xff", b"7"]), max_size=20), st.data())
def test_words_and_stacks_are_told_apart_in_any_pieces(parts: list[bytes], data: st.DataObject) -> None:
    """Bytes below the mark are words, all else is text, and after the mark all is the cause."""
    said = b"".join(parts)
    everything = said + CAUSE + READY + "Größe".encode()
    reader, words = Reader(), b""
    while everything:
        size = data.draw(st.integers(1, len(everything)))
        words += reader.feed(everything[:size])
        everything = everything[size:]
    assert words == bytes(byte for byte in said if byte < CAUSE[0])
    text = bytes(byte for byte in said if byte > CAUSE[0]).decode(errors="replace").rstrip()
    assert reader.take_text() == text
    assert reader.take_text() == ""
    assert reader.cause == READY + "Größe".encode()


def test_what_is_kept_has_a_limit() -> None:
    """A worker that writes without end fills no memory; its words are heard all the same."""
    reader = Reader()
    for _ in range(3):
        assert reader.feed(b"x" * LONGEST_TEXT + READY) == READY
    assert len(reader.take_text()) == LONGEST_TEXT
    reader.feed(CAUSE + b"y" * 2 * LONGEST_TEXT)
    reader.feed(b"z")
    assert reader.cause == b"y" * LONGEST_TEXT


def test_what_was_counted_is_told_once_and_twice_at_most() -> None:
    """No word means anything else the third time."""
    heard: dict[int, int] = {}
    assert told_since([(1, 0), (2, 5)], heard) == b"\x02\x02"
    assert told_since([(1, 1), (2, 5)], heard) == b"\x01"
    assert told_since([(1, 1), (2, 6)], heard) == b"\x02"


# the handle


def test_what_is_said_on_the_page_is_heard_without_the_byte(worker: WorkerHandle) -> None:
    """A socket that was full loses no word, and a worker that is gone none either."""
    worker.page.say(READY)
    assert worker.hear() == (READY, True)
    assert worker.hear() == (b"", True)
    worker.page.say(STOPPED)
    worker._theirs.close()
    assert worker.hear() == (STOPPED, False)


@pytest.mark.parametrize("command", [RETIRE, LEAVE, DRAIN, CUT, LOOK])
def test_an_order_is_on_the_page_and_wakes(worker: WorkerHandle, command: bytes) -> None:
    """The orders to leave make its end expected."""
    before = dict(worker.page.orders())
    worker.tell(command)
    assert worker._theirs.recv(10) == command
    assert [order for order, count in worker.page.orders() if count > before[order]] == list(command)
    assert worker.is_leaving is (command != LOOK)


def test_a_kill_is_no_order(worker: WorkerHandle) -> None:
    """It cannot be unheard; and it alone does not make the end expected."""
    worker.tell(KILL)
    assert worker.child.sent == [signal.SIGKILL]  # type: ignore[attr-defined]
    assert not worker.is_leaving
    worker._theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        worker._theirs.recv(1)


def test_an_order_for_a_worker_that_is_gone_has_no_effect(worker: WorkerHandle) -> None:
    """The supervisor hears of its end in time."""
    worker._theirs.close()
    worker.tell(LEAVE)
    worker.suspend(7)
    worker.free(99)
    assert (worker.page.numbers[SUSPENSIONS], worker.page.numbers[STALE]) == (7, 99)


def test_a_worker_begins_with_the_pauses_of_before(worker: WorkerHandle) -> None:
    """And is neither ready nor settled."""
    assert worker.page.numbers[SUSPENSIONS] == 6
    assert (worker.is_ready, worker.is_settled) == (False, False)
    worker.stage = Stage.READY
    assert (worker.is_ready, worker.is_settled) == (True, False)
    worker.stage = Stage.SETTLED
    assert (worker.is_ready, worker.is_settled) == (True, True)


def test_its_end_is_told_in_words(worker: WorkerHandle) -> None:
    """Status or signal, and the cause if it said one, whatever bytes it has."""
    assert worker.how_it_ended(3) == "worker 3 (process 12) ended with exit status 3"
    assert worker.how_it_ended(-signal.SIGKILL) == "worker 3 (process 12) was killed by SIGKILL"
    assert worker.how_it_ended(-63).endswith("was killed by signal 63")
    worker._theirs.sendall(CAUSE + b"LookupError: no \xff")
    worker.hear()
    assert worker.how_it_ended(1) == "worker 3 (process 12) ended with exit status 1: LookupError: no \ufffd"


@pytest.mark.parametrize(
    "steps",
    [retire_within(5.0), leave_within(5.0), drain_within(5.0), cut_now()],
    ids=["retire", "leave", "drain", "cut"],
)
def test_every_way_to_end_ends(steps: Any) -> None:
    """The last step is a kill, and no step before it is without a time."""
    *before, last = steps
    assert last == (KILL, None)
    assert all(delay is not None for _, delay in before)
    assert [command for command, _ in before][-1] == CUT
