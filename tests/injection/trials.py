"""One injection in a process of its own, which ends in time or is ended."""

from __future__ import annotations

import faulthandler
import io
import json
import logging
import os
import select
import signal
import sys
import tempfile
import threading
import time
from typing import Any, NamedTuple

from injection.failures import ERRORS, Failure
from injection.interrupts import Interrupt
from injection.lives import LIVES, MODELS, Findings, checked
from sockserve.testing import leaks

__all__ = ["KINDS", "Outcome", "Trial", "kinds_of", "models", "try_out"]

KINDS = ("interrupt", "second", *ERRORS)
"""KeyboardInterrupt; a second SIGTERM while the first one's handler runs; a call that fails with this error."""


class Trial(NamedTuple):
    """What is done where."""

    model: str
    life: str
    kind: str
    number: int
    """Which place or call; 0: none, they are counted only."""

    def __str__(self) -> str:
        return f"--model {self.model} --life {self.life} --kind {self.kind} --number {self.number}"


class Outcome(NamedTuple):
    """What was found."""

    count: int
    """How many places or calls there were until then."""
    place: str
    findings: list[str]


def models() -> list[str]:
    """Those that this platform has."""
    return [model for model in MODELS if MODELS[model] is not None]


def kinds_of(life: str) -> list[str]:
    """What can be injected in a life."""
    return [kind for kind in KINDS if kind != "second" or life == "program"]


def try_out(trial: Trial, limit: float) -> Outcome:
    """Run one trial in a forked process and say what was found."""
    with tempfile.TemporaryFile() as report:
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reader)
            os.setpgid(0, 0)
            _run(trial, limit, report.fileno())
        os.close(writer)
        findings = _wait_for_end(pid, reader, limit)
        os.close(reader)
        report.seek(0)
        text = report.read().decode(errors="replace")
    try:
        found = json.loads(text.splitlines()[0])
    except (ValueError, IndexError):
        return Outcome(0, "?", [*findings, f"it ended without a report: {text}"])
    return Outcome(found["count"], found["place"], found["findings"] + findings)


def _wait_for_end(pid: int, reader: int, limit: float) -> list[str]:
    """Return when a process has ended, and all that it made, which hold the other end of a pipe."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    deadline = time.monotonic() + 8 * limit
    findings = []
    ended = 0
    while not poll.poll(20):
        if not ended:
            ended = os.waitpid(pid, os.WNOHANG)[0]
            if ended:
                deadline = time.monotonic() + limit
        if time.monotonic() > deadline:
            findings.append("a process that it made is left" if ended else "the process does not end")
            break
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if not ended:
        os.waitpid(pid, 0)
    return findings


def _run(trial: Trial, limit: float, report: int) -> None:
    """Be the process of a trial."""
    # What a failing server writes is not read; the report says what a hang looks like.
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    sys.stderr = sys.stdout = io.StringIO()
    faulthandler.dump_traceback_later(6 * limit, exit=True, file=report)
    logger = logging.getLogger("sockserve")
    logger.addHandler(logging.StreamHandler(io.StringIO()))
    logger.propagate = False
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # One that comes a moment late ends nothing.
    signal.signal(signal.SIGTERM, (lambda *_: None) if trial.life == "program" else signal.SIG_DFL)
    findings = Findings(limit)
    injection: Any
    if trial.kind == "interrupt":
        injection = Interrupt(trial.number)
    elif trial.kind == "second":
        injection = Interrupt(trial.number, signal.SIGTERM, within_handler=True)
    else:
        injection = Failure(trial.number, trial.kind)
        injection.install()

    def tell() -> None:
        found = {"count": injection.count, "place": injection.place, "findings": findings}
        os.write(report, json.dumps(found).encode() + b"\n")
        os._exit(0)

    def give_up() -> None:
        deadline = time.monotonic() + 5 * limit
        while time.monotonic() < deadline:
            is_over.wait(deadline - time.monotonic())
            if is_over.is_set():
                return
        stack = "".join(leaks.stack_of(threading.main_thread())[-6:])
        findings.append(f"the main thread hangs:\n{stack}")
        tell()

    is_over = threading.Event()
    watch = threading.Thread(target=give_up, name="watch", daemon=True)
    watch.start()
    try:
        with checked(findings):
            LIVES[trial.life](injection, trial.model, findings)
    except BaseException as error:  # whatever comes is a finding
        findings.append(f"the trial itself: {error!r}")
    tell()
