"""What the client for people shows on a terminal: text, and nothing that steers the terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.handlers import handlers
from support.programs import START_LIMIT

import sockserve
from sockserve.client.terminal import TerminalText
from sockserve.pytest_plugin import Running

H = handlers(sockserve)

HOSTILE = b"\x1b]0;title\x07caf\xc3\xa9\t\x9b2J \xc2\x9b31m over\rwritten\r\nlast\n\xe2\x82"


def shown(*pieces: bytes) -> str:
    """What becomes of the pieces of one answer."""
    text = TerminalText()
    return "".join([*(text.feed(piece) for piece in pieces), text.feed(b"", is_all=True)])


def test_only_text_is_shown() -> None:
    """Escapes, the controls of 8 bits, lone carriage returns and broken characters are shown as backslash escapes."""
    expected = "\\x1b]0;title\\x07café\t\\x9b2J \\x9b31m over\\rwritten\r\nlast\n\\xe2\\x82"
    assert shown(HOSTILE) == expected


@given(st.lists(st.binary(max_size=8) | st.sampled_from([b"\r", b"\n", b"\xc2", b"\x9b", b"\x1b[", b"\xe2\x82\xac"])))
def test_pieces_are_shown_as_the_whole(pieces: list[bytes]) -> None:
    """Wherever an answer is cut, the text is the same, and printable but for the ends of lines and tabs."""
    text = shown(*pieces)
    assert text == shown(b"".join(pieces))
    assert re.sub("\r\n|\n|\t", "", text).isprintable()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_an_answer_is_made_safe_for_a_terminal_only(is_terminal: bool, running: Running) -> None:
    """A terminal gets escapes as text; a file or a program gets the bytes of the server."""
    server = running(sockserve.ThreadingTCPServer(("127.0.0.1", 0), H.Echo))
    address = f"tcp://127.0.0.1:{server.server_address[1]}"
    command = [sys.executable, "-m", "sockserve.client", address, "--line", "\x1b[2Jhello"]
    ours, theirs = pty.openpty() if is_terminal else os.pipe()
    with open(ours, "rb", buffering=0) as output:
        subprocess.run(command, stdout=theirs, timeout=START_LIMIT, check=True)
        told = output.read(1000)
        os.close(theirs)
    assert told.strip() == (b"\\x1b[2Jhello" if is_terminal else b"\x1b[2Jhello")
