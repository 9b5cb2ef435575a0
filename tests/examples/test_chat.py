"""The chat: what one says the others hear, and nobody is held up by one who does not listen."""

from __future__ import annotations

import io
import socket
from typing import Self, cast

import pytest
from example import Example, flood

from sockserve import testing


class Member:
    """Somebody in the chat, for the length of a block."""

    def __init__(self, address: str, name: str) -> None:
        self.name = name
        self.connection = testing.connect(address, timeout=20)
        self.file = cast("io.TextIOWrapper", self.connection.makefile("rw", encoding="utf-8", newline="\n"))
        assert self.hears() == "Your name?"
        self.says(name)
        assert self.hears().startswith("Welcome, ")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.connection.close()

    def says(self, text: str) -> None:
        """Say a line."""
        self.file.write(f"{text}\n")
        self.file.flush()

    def hears(self) -> str:
        """The next line that is said."""
        return self.file.readline().removesuffix("\n")


def test_chat() -> None:
    """All others hear who came, what was said and who left, and never what could give orders to a terminal."""
    with Example("chat.py") as example:
        address = example.address()
        with Member(address, "ann") as ann:
            with Member(address, "bob") as bob:
                assert ann.hears() == "bob came"
                with Member(address, "c\x1b[2Jyd") as cyd:
                    assert ann.hears() == bob.hears() == "c[2Jyd came"
                    bob.says("hello \x07ü")
                    assert ann.hears() == cyd.hears() == "bob says hello ü"
                assert ann.hears() == bob.hears() == "c[2Jyd left"
            assert ann.hears() == "bob left"
        example.end()


@pytest.mark.parametrize("model", ["thread", "pool", "greenlet"])
def test_who_does_not_listen_is_cut_off(model: str) -> None:
    """Whoever speaks does not wait, and the others hear everything."""
    with Example("chat:Chat", "--model", model, "tcp://127.0.0.1:0") as example:
        address = example.address()
        with Member(address, "ann") as ann, Member(address, "bob") as bob:
            assert ann.hears() == "bob came"
            deaf = testing.connect(address, timeout=20)
            with deaf:
                deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                deaf.sendall(b"deaf\n")
                assert ann.hears() == bob.hears() == "deaf came"
                said = 0
                line = "x" * 900
                while (heard := bob.hears() if said else "") != "deaf left":
                    assert heard in ("", f"ann says {line}")
                    ann.says(line)
                    said += 1
                assert ann.hears() == "deaf left"
            ann.says("good")
            while (heard := bob.hears()) != "ann says good":
                assert heard == f"ann says {line}"
        example.end()


def test_strangers_in_the_chat() -> None:
    """A line without an end, or noise, ends with its sender; the others stay."""
    with Example("chat:Chat", "tcp://127.0.0.1:0") as example:
        address = example.address()
        with Member(address, "ann") as ann, testing.Stall(address, b"half a na"):
            before = example.peak_memory()
            for piece in (b"x", b"\xff\0", b"\x1b"):
                answer, _ = flood(address, b"", piece, 32 * 2**20)
                assert answer.startswith(b"Your name?\n")
                assert ann.hears() == "a guest came"
                assert ann.hears() == "a guest left"
            assert example.peak_memory() - before < 8 * 2**20
            with testing.Reset(address, b"rude\n"):
                assert ann.hears() == "rude came"
            assert ann.hears() == "rude left"
        assert "Exception" not in example.end()
