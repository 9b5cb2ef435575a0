"""Signals that are meant for worker processes, to a server without any."""

from __future__ import annotations

import signal

import pytest
from support.models import MODELS
from support.programs import Program
from support.under_test import LIMIT
from support.waiting import wait_until

PROGRAM = """
import os, signal
import sockserve
{before}
class Handler(sockserve.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"answer")

{session}
sockserve.serve(
    Handler, "tcp://127.0.0.1:0", model={model!r},
    ready=lambda servers: print(servers[0].server_address[1], flush=True),
)
signals = (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU)
print(all(signal.getsignal(signum) == signal.SIG_DFL for signum in signals), flush=True)
"""
WITHOUT_TERMINAL = "os.setsid()"


@pytest.mark.parametrize("model", MODELS)
def test_a_signal_for_workers_is_answered_by_a_line(model: str) -> None:
    """The server serves on, one line tells what each does with processes, and at the end they mean what they did."""
    signals = [signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU]
    with Program(PROGRAM.format(before="", session=WITHOUT_TERMINAL, model=model)) as program:
        assert int(program.line())
        for signum in signals:
            program.send(signum)
            wait_until(lambda: f"{signum.name} has no effect" in program.errors())  # noqa: B023
        program.send(signal.SIGTERM)
        assert program.line() == "True"
        assert program.status(LIMIT) == 0
        assert program.errors().count("has no effect") == len(signals)


@pytest.mark.parametrize(
    "meaning", ["signal.SIG_IGN", "lambda *_: print('heard', flush=True)"], ids=["ignored", "set by the program"]
)
def test_a_meaning_that_the_program_gave_stays(meaning: str) -> None:
    """An ignored signal stays ignored, a handler of the program hears it; nothing is logged."""
    before = f"signal.signal(signal.SIGHUP, {meaning})"
    with Program(PROGRAM.format(before=before, session="", model="thread")) as program:
        assert int(program.line())
        program.send(signal.SIGHUP)
        if "heard" in meaning:
            assert program.line() == "heard"
        program.send(signal.SIGTERM)
        assert program.line()
        assert program.status(LIMIT) == 0
        assert "has no effect" not in program.errors()
