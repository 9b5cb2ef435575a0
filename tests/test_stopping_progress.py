"""While a drain lasts the terminal says what it waits for, how long, and how to end it."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
from typing import Any

import pytest
from support import handlers
from support.programs import SEARCH_PATH
from support.serving import Operator, serve_with
from support.under_test import LIMIT

import sockserve
from sockserve import testing
from sockserve.run import stopping

TCP = "tcp://127.0.0.1:0"


def test_it_is_said_at_once_and_again(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the number of requests and the time that is left; not any more when all have ended."""
    monkeypatch.setattr(stopping, "PROGRESS", 0.01)
    caplog.set_level("INFO", "sockserve.progress")
    gate = handlers.handlers(sockserve).Gate

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "sockserve.progress"]

    def script(operator: Operator) -> None:
        with testing.Stall(operator.server) as client:
            assert gate.begun.wait()
            operator.signal()
            testing.call_within(LIMIT, lambda: _until(lambda: len(lines()) > 2))
            gate.opened.set()
            assert client.read() == b"open"

    serve_with(script, gate, TCP, model="thread", drain_timeout=30)
    assert set(lines()) == {"1 request in progress, up to 30 s; another signal (Ctrl-C) cuts"}


def _until(condition: Any) -> None:
    while not condition():
        select.select([], [], [], 0.005)


def test_nothing_is_said_where_nothing_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """A server without requests stops in silence."""
    caplog.set_level("INFO", "sockserve.progress")
    serve_with(lambda operator: operator.signal(), handlers.handlers(sockserve).Echo, TCP)
    assert [record for record in caplog.records if record.name == "sockserve.progress"] == []


PROGRAM = """
import threading
import sockserve
class Waits(sockserve.StreamRequestHandler):
    def handle(self):
        self.rfile.read()
        threading.Event().wait()
"""


def test_a_terminal_shows_it_and_a_pipe_does_not(tmp_path: Any) -> None:
    """The banner says how to stop; the first Ctrl-C says what it waits for, and the second one cuts."""
    (tmp_path / "waits.py").write_text(PROGRAM)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([SEARCH_PATH, str(tmp_path)])}
    command = [sys.executable, "-m", "sockserve", "waits:Waits", TCP]
    program = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""

    def read_until(pattern: bytes) -> re.Match[bytes]:
        nonlocal shown
        while (found := re.search(pattern, shown)) is None:
            assert select.select([ours], [], [], LIMIT)[0], shown
            shown += os.read(ours, 4096)
        return found

    try:
        port = int(read_until(rb"127\.0\.0\.1:(\d+)\r\n")[1])
        read_until(rb"Ctrl-C stops it and lets requests in progress end; a second Ctrl-C cuts them\.\r\n")
        with testing.connect(("127.0.0.1", port)) as client:
            client.sendall(b"x")
            client.shutdown(1)
            # Nothing but the handler's end of reading tells that it was begun.
            read_until_served(program.pid)
            program.send_signal(signal.SIGINT)
            read_until(rb"1 request in progress, up to 30 s; another signal \(Ctrl-C\) cuts\r\n")
            program.send_signal(signal.SIGINT)
            assert program.wait(LIMIT) == 0
    finally:
        program.kill()
        program.wait()
        os.close(ours)


def read_until_served(pid: int) -> None:
    """Return when the program has a thread for its request, beside the main one."""
    _until(lambda: len(os.listdir(f"/proc/{pid}/task")) > 1)
