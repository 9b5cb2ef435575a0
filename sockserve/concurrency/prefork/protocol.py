"""What a worker process and its supervisor have in common: words, memory, orders.

Rule 1. Numbers are in memory that both see: a worker that can tell nothing any more has left them there.
Rule 2. So is each word that must not be lost. What goes through the socket, one byte for each word, only wakes: where
it has no room for one more there is enough in it to wake the other side, which then looks at the memory.
"""

from __future__ import annotations

import mmap
import os
import signal
import time
from typing import NamedTuple

from sockserve.core.events import Counters
from sockserve.core.taken_signals import is_ignored

__all__ = [
    "ACCEPTED",
    "ACTIVE",
    "ASLEEP",
    "AWAKE",
    "BEAT",
    "CAUSE",
    "CUT",
    "CUTS",
    "DRAIN",
    "ENOUGH",
    "FAILED",
    "FREE",
    "HANDLED",
    "LAME",
    "LEAVE",
    "LOOK",
    "PASSES",
    "PAUSED",
    "PAUSES",
    "READY",
    "REFUSED",
    "RETIRE",
    "SLOW",
    "STALE",
    "STOPPED",
    "SUSPEND",
    "SUSPENSIONS",
    "Orders",
    "Page",
    "Reader",
    "choose_dump_signal",
    "told_since",
    "with_jitter",
]

RETIRE, LEAVE, DRAIN, CUT, SUSPEND, LOOK, FREE, LAME = b"e", b"l", b"d", b"c", b"s", b"k", b"f", b"m"
"""What a worker is told: accept no more and end after the last client; accept no more and end after the last request;
end the requests' input as well; cut them; pause accepting or go on, as the page says; see whether a client waits that
another worker was woken for; end what keeps the loop from turning; tell handlers that a drain will come,
and serve as before."""

READY, ENOUGH, STOPPED, ASLEEP, AWAKE, PASSES, CAUSE = (bytes([number]) for number in range(1, 8))
"""What it tells: it serves; it has served its number of requests; it accepts no more; its loop waits for a request and
shows no more that it turns; it does again; it cannot accept for some time, so that others have to look; why it fails, a
text until the end. Anything else is the stacks that faulthandler writes, a text without such bytes."""


def choose_dump_signal() -> signal.Signals:
    """The signal that makes a worker tell the stacks of all its threads: SIGQUIT, as for Java's machine.

    If that is ignored, as in what a shell's ``&`` starts, it stays so, for the programs that a handler starts.
    """
    return signal.SIGXCPU if is_ignored(signal.SIGQUIT) else signal.SIGQUIT


LONGEST_TEXT = 65536
"""Bytes that are kept of what a worker writes: the stacks of some hundred threads."""

BEAT, ACCEPTED, ACTIVE, HANDLED, REFUSED, FAILED, CUTS, BEGUN, TOO_LATE = range(9)
SUSPENSIONS, PAUSED, STALE, PAUSES, SLOW = range(9, 14)
"""SUSPENSIONS: how often the worker shall have paused and gone on, so that an odd number means a pause. PAUSED: for
which of these numbers it takes no request any more. STALE: the beat after which the supervisor waited too long.
PAUSES: how often accepting has paused by itself. SLOW: requests that ``deadlines`` have cut."""

_SLEEPS = 0
"""In the place of the last beat: there is none to come, until there is something to do."""


_ORDERS = RETIRE + LEAVE + DRAIN + CUT + SUSPEND + LOOK + FREE + LAME
_WORDS = READY + ENOUGH + STOPPED + PASSES
"""What is counted on the page, how often it was told: in this order, orders first, after the numbers above."""

_ORDERED = SLOW + 1
_SAID = _ORDERED + len(_ORDERS)


class Page:
    """Memory that a worker and its supervisor share: when its loop last turned, and its counters."""

    def __init__(self) -> None:
        self.numbers = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
        self.beat()

    def let_go(self) -> None:
        """Share it no more: what this process writes from now on it writes for itself."""
        self.numbers = memoryview(bytearray(self.numbers)).cast("q")

    def beat(self) -> None:
        """The loop turns now."""
        # By CLOCK_MONOTONIC, which all processes share.
        self.numbers[BEAT] = time.monotonic_ns()

    def sleep(self) -> None:
        """The loop is about to wait without limit."""
        self.numbers[BEAT] = _SLEEPS

    def is_asleep(self) -> bool:
        """Whether that was the last that was heard."""
        return self.silence() is None

    def silence(self) -> float | None:
        """Seconds since the last beat; None: it sleeps."""
        beat = self.numbers[BEAT]
        return None if beat == _SLEEPS else (time.monotonic_ns() - beat) / 1e9

    def order(self, command: bytes) -> None:
        """In the supervisor, before it wakes the worker: what that has to do."""
        self.numbers[_ORDERED + _ORDERS.index(command)] += 1

    def orders(self) -> list[tuple[int, int]]:
        """Each order, and how often it was given."""
        return [(order, self.numbers[_ORDERED + index]) for index, order in enumerate(_ORDERS)]

    def say(self, word: bytes) -> None:
        """In the worker, before it wakes the supervisor: note the word, if it must not be lost."""
        if word == PASSES:
            # It may be true again later. Only the loop's thread says it.
            self.numbers[_SAID + _WORDS.index(word)] += 1
        elif word in _WORDS:
            # One flag for each: it may be said by several threads.
            self.numbers[_SAID + _WORDS.index(word)] = 1

    def words(self) -> list[tuple[int, int]]:
        """Each such word, and whether, or how often, it was said."""
        return [(word, self.numbers[_SAID + index]) for index, word in enumerate(_WORDS)]

    def begin(self) -> bool:
        """The worker is about to accept: whether it may. Once ``call_off()`` was true, it may not."""
        # In this order, and there the other way round: of two that meet here at least one sees the other.
        self.numbers[BEGUN] = 1
        return not self.numbers[TOO_LATE]

    def call_off(self) -> bool:
        """The worker shall not begin: whether it has not, so that it need not be waited for."""
        self.numbers[TOO_LATE] = 1
        return not self.numbers[BEGUN]

    def add_to(self, counters: Counters) -> None:
        """Add what the worker counted, which has ended: what it still had in progress has failed."""
        numbers = self.numbers
        counters.accepted += numbers[ACCEPTED]
        counters.handled += numbers[HANDLED]
        counters.refused += numbers[REFUSED]
        # Not by what was active: it may have been killed between two counts.
        counters.cut += numbers[SLOW]
        counters.failed += numbers[ACCEPTED] - numbers[HANDLED] - numbers[REFUSED] - numbers[SLOW]


class Reader:
    """Reads what a worker writes: words, the stacks of its threads, and why it fails. Without I/O, from any pieces."""

    def __init__(self) -> None:
        self.cause: bytes | None = None
        """Why the worker says that it fails; None: it has not said so."""
        self._text = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Take what was received, and return the words in it. Keeps ``LONGEST_TEXT`` bytes of all else."""
        if self.cause is not None:
            self.cause += data[: LONGEST_TEXT - len(self.cause)]
            return b""
        data, mark, rest = data.partition(CAUSE)
        if mark:
            self.cause = rest[:LONGEST_TEXT]
        self._text += bytes(byte for byte in data if byte > CAUSE[0])[: LONGEST_TEXT - len(self._text)]
        return bytes(byte for byte in data if byte < CAUSE[0])

    def take_text(self) -> str:
        """The stacks, as far as they were read; once."""
        text = self._text.decode(errors="replace").rstrip()
        self._text.clear()
        return text


def told_since(counts: list[tuple[int, int]], heard: dict[int, int]) -> bytes:
    """What was told since the last call with the same ``heard``, which this brings up to date.

    What was told more than twice meanwhile counts as twice: no word means anything else the third time.
    """
    told = bytearray()
    for word, count in counts:
        told += bytes([word]) * min(2, count - heard.get(word, 0))
        heard[word] = count
    return bytes(told)


class Orders(NamedTuple):
    """What a worker knows from its beginning."""

    worker_id: int
    """The number of its place, from 0; its successor has the same."""
    is_anew: bool
    """Whether a rolling restart made it, so that it has to load its program anew."""
    worker_timeout: float | None
    """Seconds within which its loop has to turn, or within which it is told to be seen alive; None: at will."""
    max_requests: int | None
    """After how many requests it asks for a successor; None: never."""
    dump_signal: signal.Signals
    """Which signal makes it tell its stacks."""


def with_jitter(limit: int | None, jitter: int | None) -> int | None:
    """A number of requests, so that not all workers reach theirs at once; ``jitter`` more at most, None: a tenth."""
    if limit is None:
        return None
    # Not of ``random``: once imported, that seeds itself anew in each child that is forked.
    return limit + int.from_bytes(os.urandom(8)) % (1 + (limit // 10 if jitter is None else jitter))
