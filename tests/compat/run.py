"""CPython's own tests of everything that is built on socketserver, run against sockserve.

Each module runs in a process that ``python -m sockserve.dropin --children`` started. What does not pass is run once
more with the standard library's socketserver: nothing may fail, or be skipped, that passes there. A failure has to be
one twice, as with CPython's own ``regrtest --rerun``: some of its tests measure time, and the machine may be busy.
``--mixin pool`` and its like do the same with this mix-in in every server that the tests and the standard library make.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
ONE_MODULE = pathlib.Path(__file__).with_name("one_module.py")
MIXED_IN = pathlib.Path(__file__).with_name("mixed_in.py")

KILL_AFTER_SECONDS = 300
"""Backs up the limit inside of one_module.py, which ends a hang with a better report."""

LOG_TAIL = 4000
"""Characters of a process's output that a problem shows."""

MODULES = (
    "test.test_imaplib",
    "test.test_ssl",
    "test.test_xmlrpc",
    "test.test_logging",
    "test.test_asyncio.test_events",
    "test.test_asyncio.test_sock_lowlevel",
    "test.test_pydoc",
    "test.test_docxmlrpc",
    "test.test_urllib2_localnet",
    "test.test_httpservers",
    "test.test_socketserver",
    "test.test_httplib",
    "test.test_asyncio.test_streams",
    "test.test_wsgiref",
    "test.test_robotparser",
)
"""Every module of CPython 3.11 to 3.13 that starts a server of socketserver's, the longest first."""

EXPECTED_FAILURES = {
    "test.test_socketserver.MiscTestCase.test_all": "public is to it what has 'socketserver' for its __module__",
}
"""Test id -> why it cannot pass. One that passes after all is an error."""

SUITES = {
    "test.test_xmlrpc": "",
    "test.test_imaplib": "prefork",
    "test.test_logging": "prefork",
    "test.test_pydoc": "",
    "test.test_docxmlrpc": "",
    "test.test_urllib2_localnet": "prefork",
    "test.test_httpservers": "",
    "test.test_wsgiref": "",
    "test.test_robotparser": "",
}
"""The modules to run with a mix-in -> the one that they do not bear: they read what their handlers left in memory, and
test_logging's servers have a serve_forever() of their own."""

HAS_TO_BE_INLINE = {
    "pool": {
        "test.test_robotparser: ": "counts the threads while the server still runs, and the pool keeps its own",
    },
    "greenlet": {
        "test.test_robotparser: ": "counts the threads while the server still runs, and its watchdog is one",
    },
    "prefork": {
        "test.test_httpservers.RequestHandlerLoggingTestCase.": "reads what the handler wrote into this sys.stderr",
        "test.test_httpservers.SimpleHTTPServerTestCase.": "changes its directory after the workers began in another",
    },
}
"""Mix-in -> beginnings of test ids -> why they may fail with it, or pass by luck: they know where the handler runs."""

RANKS = ("passed", "skipped", "failed")
"""What can become of a test, the best first."""

PARENT = """\
import subprocess, sys
question = "import socketserver; print(socketserver.BaseServer.__module__)"
subprocess.run([sys.executable, "-c", question], check=True)
"""


@dataclasses.dataclass
class Run:
    """What became of the tests of a module in one process."""

    module: str
    outcomes: dict[str, str] = dataclasses.field(default_factory=dict)
    details: dict[str, str] = dataclasses.field(default_factory=dict)
    ended: bool = False
    implementation: str = "nobody"
    servers: int = 0
    status: int = 0
    seconds: float = 0
    log: str = ""

    def read(self, record: str) -> None:
        """Take in what one_module.py wrote, up to where it came to."""
        running: str | None = None
        for kind, subject, *details in map(json.loads, record.splitlines()):
            if kind == "ended":
                self.ended = True
                self.implementation, self.servers = subject["implementation"], subject["servers"]
            elif kind == "started":
                running = subject
            else:
                running = None
                self.outcomes[subject], self.details[subject] = kind, details[0]
        if running is not None:
            self.outcomes[running], self.details[running] = "failed", "the process ended in it"

    def count(self, outcome: str) -> int:
        """How many tests have this outcome."""
        return collections.Counter(self.outcomes.values())[outcome]


class Processes:
    """Starts test processes. Neither they nor what they start outlive the call that runs them."""

    def __init__(self, directory: str, mixin: str | None = None) -> None:
        self.directory = directory
        self.mixin = mixin
        self.running: set[subprocess.Popen[bytes]] = set()
        self.is_ending = False
        # This checkout, whatever is installed. With the standard library too: the drop-in is the only difference.
        path = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}

    def run(self, module: str, *, dropin: bool, tests: Iterable[str] = ()) -> Run:
        """Run these tests of a module, or all."""
        result = Run(module)
        directory = pathlib.Path(tempfile.mkdtemp(dir=self.directory))
        record, log, working_directory = directory / "record", directory / "log", directory / "cwd"
        record.touch()
        working_directory.mkdir()
        options = ["-m", "sockserve.dropin", "--children"] if dropin else []
        if dropin and self.mixin is not None:
            options += [str(MIXED_IN), self.mixin]
        started = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *options, str(ONE_MODULE), module, str(record), *tests],
                cwd=working_directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.running.add(process)
        if self.is_ending:
            kill_group(process)
        limit = threading.Timer(KILL_AFTER_SECONDS, process.kill)
        limit.start()
        try:
            # Not reaped before its group is killed: until then the number cannot be another process's.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        finally:
            limit.cancel()
            self.running.discard(process)
            kill_group(process)
        result.status, result.seconds = process.wait(), time.monotonic() - started
        result.log = log.read_text("utf-8", "replace")
        result.read(record.read_text("utf-8"))
        return result

    def kill_all(self) -> None:
        """End what runs, and from now on whatever is started."""
        self.is_ending = True
        for process in list(self.running):
            kill_group(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a group, and all of the group that is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def judge(ours: Run, stdlib: Run | None, expected: Iterable[str]) -> list[str]:
    """Return a text for everything that is worse with sockserve, or that makes the comparison worthless.

    ``stdlib`` has the outcomes of at least those tests that neither passed in ``ours`` nor are expected to fail.
    """
    problems = []
    if not ours.ended:
        problems.append(f"{ours.module}: ended early, with status {ours.status}\n{ours.log[-LOG_TAIL:]}")
    elif ours.implementation.split(".")[0] != "sockserve" or not ours.servers:
        problems.append(f"{ours.module}: {ours.servers} servers of {ours.implementation}: the drop-in was not in force")
    if not ours.count("passed"):
        problems.append(f"{ours.module}: no test passed")
    if stdlib is not None and not (stdlib.ended and stdlib.implementation == "socketserver"):
        problems.append(
            f"{ours.module}: nothing to compare with, {stdlib.implementation}'s run ended with status"
            f" {stdlib.status}\n{stdlib.log[-LOG_TAIL:]}"
        )
    for test, outcome in ours.outcomes.items():
        theirs = stdlib.outcomes.get(test, "not run") if stdlib else "not run"
        if outcome != "passed" and test not in expected and theirs not in RANKS[RANKS.index(outcome) :]:
            details = ours.details[test] or ours.log[-LOG_TAIL:]
            problems.append(f"{test}: {outcome}, with the standard library {theirs}\n{details}")
    problems += [
        f"{test}: {ours.outcomes.get(test, 'not run')}; remove it from EXPECTED_FAILURES"
        for test in expected
        if ours.outcomes.get(test) != "failed"
    ]
    return problems


def compare(processes: Processes, module: str) -> tuple[Run, list[str]]:
    """Run a module with sockserve, and as much of it as has to be with the standard library; return the problems."""
    expected = [test for test in EXPECTED_FAILURES if test.startswith(f"{module}.")]
    ours = processes.run(module, dropin=True)
    left_out = tuple(HAS_TO_BE_INLINE.get(processes.mixin or "", ()))
    ours.outcomes = {test: outcome for test, outcome in ours.outcomes.items() if not test.startswith(left_out)}
    doubtful = [test for test, outcome in ours.outcomes.items() if outcome != "passed" and test not in expected]
    stdlib = processes.run(module, dropin=False, tests=doubtful) if doubtful else None
    failed = [test for test in doubtful if ours.outcomes[test] == "failed"]
    if failed and stdlib and ours.ended and judge(ours, stdlib, expected):
        again = processes.run(module, dropin=True, tests=failed)
        ours.outcomes.update((test, "passed") for test in failed if again.outcomes.get(test) == "passed")
    return ours, judge(ours, stdlib, expected)


def check_children(processes: Processes) -> list[str]:
    """Return a problem if the drop-in is not in force in a Python that a program starts."""
    command = [sys.executable, "-m", "sockserve.dropin", "--children", "-c", PARENT]
    run = subprocess.run(
        command, env=processes.environment, cwd=processes.directory, capture_output=True, text=True, check=False
    )
    supplier = run.stdout.strip()
    if supplier.split(".")[0] == "sockserve":
        return []
    return [f"a child process has the socketserver of {supplier or 'nobody'}\n{run.stderr}"]


def find_missing(modules: Iterable[str]) -> list[str]:
    """Return those of the modules that this Python does not have."""
    missing = []
    for module in modules:
        try:
            found = importlib.util.find_spec(module) is not None
        except ImportError:
            found = False
        if not found:
            missing.append(module)
    return missing


def run_all(modules: Sequence[str], jobs: int, mixin: str | None) -> bool:
    """Run and judge the modules, ``jobs`` at a time; print the report, return whether there is nothing to complain."""
    started = time.monotonic()
    runs: list[Run] = []
    with (
        tempfile.TemporaryDirectory(prefix="compat-") as directory,
        concurrent.futures.ThreadPoolExecutor(jobs) as executor,
    ):
        processes = Processes(directory, mixin)
        problems = check_children(processes)
        try:
            pending = [executor.submit(compare, processes, module) for module in modules]
            for future in concurrent.futures.as_completed(pending):
                run, found = future.result()
                runs.append(run)
                problems += found
                print(
                    f"{run.module:36} {'worse' if found else 'ok':6} {run.count('passed'):4} passed"
                    f" {run.servers:5} servers {run.seconds:4.0f} s",
                    flush=True,
                )
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            processes.kill_all()
            raise
    for problem in problems:
        print(f"\nFAILED {problem}")
    passed, skipped = (sum(run.count(outcome) for run in runs) for outcome in ("passed", "skipped"))
    listed = sum(run.outcomes.get(test) == "failed" for run in runs for test in EXPECTED_FAILURES)
    print(
        f"\nPython {platform.python_version()}: {passed} passed, {len(problems)} failed, {listed} failed as listed,"
        f" {skipped} skipped, {time.monotonic() - started:.0f} s"
    )
    return not problems


def main() -> int:
    """Return the exit status: 1 if anything is worse with sockserve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", metavar="MODULE", nargs="*", help="such as test.test_logging (default: all)")
    parser.add_argument("--jobs", type=int, default=4, metavar="N", help="modules at the same time (default: 4)")
    parser.add_argument(
        "--mixin", choices=list(HAS_TO_BE_INLINE), help="put this into each server (default: as the tests are)"
    )
    options = parser.parse_args()
    suites = [suite for suite, unfit in SUITES.items() if unfit != options.mixin]
    modules = options.modules or (suites if options.mixin else MODULES)
    if missing := find_missing(["test.support", *modules]):
        parser.exit(
            1,
            f"{sys.executable} does not have {', '.join(missing)}.\n"
            "Linux distributions package CPython's tests apart: on Debian, libpython3.N-testsuite has them.\n",
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return 0 if run_all(modules, options.jobs, options.mixin) else 1


if __name__ == "__main__":
    sys.exit(main())
