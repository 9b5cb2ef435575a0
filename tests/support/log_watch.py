"""What the log said during a test, and what the test expected it to say."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from typing import NamedTuple

from support.waiting import wait_until

__all__ = ["ExpectLog", "Expectation", "Line", "Log"]


class Line(NamedTuple):
    """One record of the log, with its traceback."""

    level: int
    text: str


class Expectation:
    """Records of one level that match one pattern."""

    def __init__(self, log: Log, level: int, pattern: str, at_least: int) -> None:
        self.log = log
        self.level = level
        self.pattern = re.compile(pattern)
        self.at_least = at_least

    def claims(self, line: Line) -> bool:
        """Say whether a record is one of those expected."""
        return line.level == self.level and self.pattern.search(line.text) is not None

    @property
    def lines(self) -> list[Line]:
        """Those that came so far."""
        return [line for line in self.log.read() if self.claims(line)]

    def wait(self, times: int = 1) -> list[Line]:
        """Return those that came, as soon as there are that many."""
        lines: list[Line] = []

        def are_there() -> bool:
            lines[:] = self.lines
            return len(lines) >= times

        wait_until(are_there, tell=lambda: f"logged {times} times: {self}; but: {self.log.read()}")
        return lines

    def __repr__(self) -> str:
        return f"{logging.getLevelName(self.level)} {self.pattern.pattern!r}"


class Log(logging.Handler):
    """Keeps what is logged in a file: a forked child shares nothing else with us, and each record is one write(2)."""

    def __init__(self) -> None:
        super().__init__()
        self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - the fixture closes it
        self.expectations: list[Expectation] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        os.write(self.file.fileno(), json.dumps([record.levelno, self.format(record)]).encode() + b"\n")

    def read(self) -> list[Line]:
        """Return all records so far."""
        size = os.fstat(self.file.fileno()).st_size
        return [Line(*json.loads(line)) for line in os.pread(self.file.fileno(), size, 0).splitlines()]

    def complaints(self) -> list[str]:
        """Name the records that were not expected, and the expected ones that did not come."""
        unexpected = (
            line
            for line in self.read()
            if line.level >= logging.WARNING and not any(each.claims(line) for each in self.expectations)
        )
        missing = (each for each in self.expectations if len(each.lines) < each.at_least)
        return [*(f"unexpected: {line}" for line in unexpected), *(f"missing: {each}" for each in missing)]


class ExpectLog:
    """The type of the fixture ``expect_log``."""

    def __init__(self, log: Log, logger: logging.Logger) -> None:
        self._log = log
        self._logger = logger

    def __call__(self, level: int, pattern: str, *, at_least: int = 1) -> Expectation:
        """Expect records of ``level`` that match ``pattern``, traceback included, anywhere in this test."""
        self._logger.setLevel(min(level, self._logger.getEffectiveLevel()))
        expectation = Expectation(self._log, level, pattern, at_least)
        self._log.expectations.append(expectation)
        return expectation
