"""Strangers at every example that takes connections: a clear refusal, bounded memory, and nobody else is harmed."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from example import Example, flood

from sockserve import testing

MUCH = 32 * 2**20
"""Bytes that a stranger sends, if they are taken."""
BOUND = 8 * 2**20
"""Bytes that an example may take meanwhile; a megabyte or two are the interpreter's and the allocator's."""

NOISE = bytes(set(range(256)) - {ord("\n")})


class Case(NamedTuple):
    """What to say to an example, and what it answers."""

    question: bytes
    answer: bytes
    strange: dict[bytes, bytes]
    """What a stranger says again and again, and how each answer begins."""


LONG_LINE = b"A line has at most 1000 bytes.\n"
LONG_QUERY = b"A query is one line of at most 512 bytes.\r\n"
NOT_FOUND = b"3Not found\t\terror.host\t1\r\n.\r\n"

CASES = {
    "upper:Upper": Case(b"hello\n", b"HELLO\n", {b"x": LONG_LINE, NOISE: LONG_LINE}),
    "thread_names:ThreadName": Case(b"hello\n", b"", {b"x": b"", NOISE: b""}),
    "one_request:Answer": Case(b"hello\n", b"You asked: hello\n", {b"x": b"You asked: x", NOISE: b"You asked: "}),
    "greeter:Greeter": Case(b"hello", b"Welcome to the server\nData received: hello", {NOISE: b"Welcome"}),
    "thanks:Thanks": Case(b"", b"Thank you for connecting\n", {NOISE: b"Thank you for connecting\n"}),
    "dual_family:Family": Case(b"", b"You came over AF_INET from 127.0.0.1\n", {NOISE: b"You came over AF_INET"}),
    "daytime:Daytime": Case(b"", b"", {NOISE: b""}),
    "finger:Finger": Case(b"jon\r\n", b"Login: jon\r\nName: Jon Postel\r\n", {b"x": LONG_QUERY, NOISE: LONG_QUERY}),
    "gopher:Gopher": Case(b"nothing\r\n", NOT_FOUND, {b"../": NOT_FOUND, NOISE: NOT_FOUND}),
}


@pytest.mark.parametrize("name", CASES)
def test_strangers(name: str) -> None:
    """Who floods it is refused, who says half a thing and falls silent waits alone, and it is none the worse for it."""
    question, answer, strange = CASES[name]
    with Example(name, "tcp://127.0.0.1:0") as example:
        address = example.address()
        with testing.Stall(address, question[:-1]):
            assert answer in testing.ask(address, question)
            before = example.peak_memory()
            for piece, refusal in strange.items():
                said, _ = flood(address, b"", piece, MUCH)
                assert said.startswith(refusal)
            with testing.Reset(address, NOISE):
                pass
            assert answer in testing.ask(address, question)
            assert example.peak_memory() - before < BOUND
            assert "Exception occurred" not in example.end()
