"""Whole Python processes under test: what needs signals, limits or the end of an interpreter."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import textwrap
import types
from typing import Self

from support.under_test import LIMIT

from sockserve.testing import call_within

__all__ = ["START_LIMIT", "Program"]

START_LIMIT = max(LIMIT, 20.0)
"""Seconds in which a Python process starts, also on a busy machine."""

TESTS = pathlib.Path(__file__).parent.parent
SEARCH_PATH = os.pathsep.join([str(TESTS), str(TESTS.parent)])


class Program:
    """A Python process that runs ``script``, which may import the tests' own modules; killed if the block leaves it."""

    def __init__(self, script: str) -> None:
        self._script = textwrap.dedent(script)

    def __enter__(self) -> Self:
        self._errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", self._script],
            env={**os.environ, "PYTHONPATH": SEARCH_PATH},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            bufsize=1,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: types.TracebackType | None
    ) -> None:
        if error is not None:
            self.process.kill()
            self.process.wait()
            error.add_note(f"stderr of the program:\n{self.errors()}")
        with self.process, self._errors:
            self.process.kill()

    def ask(self, question: str, limit: float = START_LIMIT) -> str:
        """Write one line to its standard input and return the next line that it prints."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{question}\n")
        return self.line(limit)

    def line(self, limit: float = START_LIMIT) -> str:
        """Return the next line that it prints."""
        assert self.process.stdout is not None
        return call_within(limit, self.process.stdout.readline).rstrip("\n")

    def send(self, signum: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(signum)

    def status(self, limit: float) -> int:
        """Return its exit status once it has ended by itself."""
        return self.process.wait(limit)

    def errors(self) -> str:
        """Return what it has written to stderr so far."""
        # The program has the same file offset: it must not be moved.
        size = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), size, 0).decode()
