"""Run one of CPython's own test modules in this process, and write down what became of each test.

Arguments: the module, the file to write, then the ids of the tests to run (none: all). The file has one JSON list a
line, written at once, so that a crash loses nothing: ["started", id], [outcome, id, details], and ["ended", facts].
Knows nothing of sockserve: it runs the same with and without the drop-in.
"""

from __future__ import annotations

import faulthandler
import functools
import json
import socketserver
import sys
import threading
import unittest
from collections.abc import Callable, Iterator
from typing import Any

from test import support
from test.support import threading_helper

LIMIT_SECONDS = 240
"""A hang ends with the stack of every thread. The longest module takes a fifth of this on an idle machine."""

ENVIRONMENT = "left no thread, no child process and no unreported exception"
"""A test id like any other, so that it is compared with the standard library's outcome as they are."""

RESOURCES = {"test.test_socketserver": ["network", "walltime"]}
"""There, "network" lets the module run at all, on loopback; elsewhere it allows to ask hosts on the internet."""

OTHER_RESOURCES = ["walltime"]


class Recorder(unittest.TestResult):
    """Writes one outcome for each test: the worst of what it and its subtests report."""

    RANKS = ("passed", "skipped", "failed")

    def __init__(self, path: str) -> None:
        super().__init__()
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as this process lives
        self.running: str | None = None
        self.outcome = self.details = ""

    def write(self, *line: object) -> None:
        """Add a line, in the kernel's hands when this returns."""
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def startTest(self, test: unittest.TestCase) -> None:
        """Note which test a crash would be in."""
        super().startTest(test)
        self.running, self.outcome, self.details = test.id(), "passed", ""
        self.write("started", self.running)

    def stopTest(self, test: unittest.TestCase) -> None:
        """Write the outcome of the test that was started."""
        super().stopTest(test)
        if self.running is not None:  # Python 3.12.1 stops a skipped test that it has not started.
            self.write(self.outcome, self.running, self.details)
            self.running = None

    def add(self, test: unittest.TestCase, outcome: str, details: str) -> None:
        """Take what is reported of the running test; write at once what concerns a whole class or module."""
        if self.running is None:
            self.write(outcome, test.id(), details)
        elif self.RANKS.index(outcome) > self.RANKS.index(self.outcome):
            self.outcome, self.details = outcome, details

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        """Take an error, or a failure."""
        self.add(test, "failed", self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    addFailure = addError

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        """Take the failure of a subtest as the test's."""
        if err is not None:
            self.addError(subtest, err)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        """Take that a test was skipped."""
        self.add(test, "skipped", reason)

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        """Take a success that is a failure."""
        self.add(test, "failed", "unexpected success")


def each_test(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """Every test of a suite and the suites in it, in the order in which they would run."""
    for member in suite:
        if isinstance(member, unittest.TestSuite):
            yield from each_test(member)
        else:
            yield member


def count_servers() -> list[object]:
    """Return a list that grows with every server that is initialised in this process."""
    servers: list[object] = []
    original = socketserver.BaseServer.__init__

    @functools.wraps(original)
    def counting(*args: Any, **kwargs: Any) -> None:
        servers.append(None)
        original(*args, **kwargs)

    socketserver.BaseServer.__init__ = counting  # type: ignore[method-assign]
    return servers


def note_unreported_exceptions() -> None:
    """Make an exception that ends a thread, or is lost in a destructor, visible in ``support.environment_altered``."""

    def noting(report: Callable[[Any], object]) -> Callable[[Any], object]:
        def note(args: Any) -> None:
            support.environment_altered = True
            report(args)

        return note

    threading.excepthook = noting(threading.excepthook)
    sys.unraisablehook = noting(sys.unraisablehook)


def main() -> None:
    """Run the tests that the command line names."""
    module, path, *wanted = sys.argv[1:]
    del sys.argv[1:]
    support.verbose = False
    support.use_resources = RESOURCES.get(module, OTHER_RESOURCES)
    faulthandler.enable()
    faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
    servers = count_servers()
    note_unreported_exceptions()
    threads = threading_helper.threading_setup()

    suite = unittest.defaultTestLoader.loadTestsFromName(module)
    chosen = [test for test in each_test(suite) if test.id() in wanted]
    # What is wanted but is no test, such as "setUpClass (...)", comes of running the whole.
    if wanted and {test.id() for test in chosen} == set(wanted):
        suite = unittest.TestSuite(chosen)
    recorder = Recorder(path)
    suite.run(recorder)

    threading_helper.threading_cleanup(*threads)
    support.reap_children()
    recorder.write("failed" if support.environment_altered else "passed", f"{module}: {ENVIRONMENT}", "")
    recorder.write("ended", {"implementation": socketserver.BaseServer.__module__, "servers": len(servers)})


if __name__ == "__main__":
    main()
