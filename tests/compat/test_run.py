"""The comparison with the standard library notices whatever is worse, and whatever would make it worthless."""

from __future__ import annotations

import os
import pathlib
import select
import subprocess
import sys

import mixed_in
import pytest
import run
from run import Processes, Run, compare, judge
from support.under_test import LIMIT

pytest.importorskip("test.support", reason="this Python has none of CPython's own tests")

SAMPLE = """\
import os, signal, socketserver, subprocess, sys, unittest

ours = socketserver.BaseServer.__module__.startswith("sockserve")

class Sample(unittest.TestCase):
    def test_passes(self):
        socketserver.TCPServer(("127.0.0.1", 0), None).server_close()

    def test_fails_always(self):
        self.fail()

    def test_fails_with_ours(self):
        self.assertFalse(ours)

    def test_fails_in_a_subtest_with_ours(self):
        with self.subTest(case="a case"):
            self.assertFalse(ours)

    @unittest.skip("always")
    def test_is_skipped_always(self):
        pass

    def test_is_skipped_with_ours(self):
        if ours:
            self.skipTest("ours")

    @unittest.expectedFailure
    def test_fails_as_its_author_expects(self):
        self.fail()

    @unittest.expectedFailure
    def test_passes_with_ours_unexpectedly(self):
        self.assertTrue(ours)

    def test_leaves_a_process(self):
        code = "import os, signal; os.open(os.environ['FIFO'], os.O_WRONLY); print(flush=True); signal.pause()"
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        child.stdout.readline()
"""
CRASH = """\
import os, unittest

class Sample(unittest.TestCase):
    def test_a_passes(self):
        pass

    def test_b_crashes(self):
        os._exit(5)
"""
HANG = """\
import signal, unittest

class Sample(unittest.TestCase):
    def test_hangs(self):
        signal.pause()
"""
MIXED_IN = """\
import http.server, socketserver, unittest, sockserve

class Sample(unittest.TestCase):
    def test_mixed_in(self):
        for server in (http.server.HTTPServer, http.server.ThreadingHTTPServer, socketserver.ThreadingUDPServer):
            self.assertTrue(issubclass(server, sockserve.MIXIN), server)
        http.server.HTTPServer(("127.0.0.1", 0), None).server_close()
"""
FAILING_THREAD = """\
import socketserver, threading, unittest

class Sample(unittest.TestCase):
    def test_has_a_thread_that_fails(self):
        socketserver.TCPServer(("127.0.0.1", 0), None).server_close()
        thread = threading.Thread(target=socketserver.BaseServer.__module__.index, args=("socketserver",))
        thread.start()
        thread.join()
"""


ONCE = """\
import os, socketserver, unittest

class Sample(unittest.TestCase):
    def test_fails_once(self):
        socketserver.TCPServer(("127.0.0.1", 0), None).server_close()
        try:
            os.rmdir(os.environ["ONCE"])
        except FileNotFoundError:
            return
        self.fail()
"""


def ours(**changes: object) -> Run:
    """A run of one test that passed, with sockserve; or another one."""
    facts = {"ended": True, "implementation": "sockserve", "servers": 1, "outcomes": {"m.a": "passed"}, **changes}
    facts["details"] = dict.fromkeys(facts["outcomes"], "why")  # type: ignore[call-overload]
    return Run("m", **facts)  # type: ignore[arg-type]


def stdlib(**changes: object) -> Run:
    """A run of one test that passed, with the standard library; or another one."""
    return ours(**{"implementation": "socketserver", **changes})


def processes(tmp_path: pathlib.Path, code: str) -> Processes:
    """What runs ``code`` as the module ``sample``."""
    (tmp_path / "sample.py").write_text(code)
    result = Processes(str(tmp_path))
    result.environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    return result


def test_what_is_not_worse_is_no_problem() -> None:
    """Passed; failed or skipped with both; failed there and skipped here."""
    assert not judge(ours(), None, [])
    for here, there in (("failed", "failed"), ("skipped", "skipped"), ("skipped", "failed")):
        both = {"m.a": "passed", "m.b": here}, {"m.b": there}
        assert not judge(ours(outcomes=both[0]), stdlib(outcomes=both[1]), [])


@pytest.mark.parametrize(("here", "there"), [("failed", "passed"), ("failed", "skipped"), ("skipped", "passed")])
def test_what_is_worse_is_a_problem(here: str, there: str) -> None:
    """It says which test, both outcomes, and why."""
    problems = judge(ours(outcomes={"m.a": "passed", "m.b": here}), stdlib(outcomes={"m.b": there}), [])
    assert problems == [f"m.b: {here}, with the standard library {there}\nwhy"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"implementation": "socketserver"}, "1 servers of socketserver: the drop-in was not in force"),
        ({"servers": 0}, "0 servers of sockserve: the drop-in was not in force"),
        ({"outcomes": {}}, "no test passed"),
        ({"ended": False, "status": -11, "log": "a stack"}, "ended early, with status -11\na stack"),
    ],
)
def test_a_run_that_proves_nothing_is_a_problem(changes: dict[str, object], problem: str) -> None:
    """Not our servers, none at all, no test, or not all of them."""
    assert judge(ours(**changes), None, []) == [f"m: {problem}"]


@pytest.mark.parametrize("changes", [{"implementation": "sockserve"}, {"ended": False}])
def test_a_comparison_with_anything_else_is_a_problem(changes: dict[str, object]) -> None:
    """The standard library's run has to be one, and complete."""
    both = {"m.a": "passed", "m.b": "failed"}
    (problem,) = judge(ours(outcomes=both), stdlib(outcomes=both, **changes), [])
    assert problem.startswith("m: nothing to compare with")


def test_the_list_of_expected_failures_cannot_rot() -> None:
    """A listed test may fail; one that passes, is skipped or is gone has to leave the list."""
    assert not judge(ours(outcomes={"m.a": "passed", "m.b": "failed"}), None, ["m.b"])
    assert judge(ours(), None, ["m.a"]) == ["m.a: passed; remove it from EXPECTED_FAILURES"]
    assert judge(ours(), None, ["m.b"]) == ["m.b: not run; remove it from EXPECTED_FAILURES"]


def test_a_module_is_run_with_both_and_compared(tmp_path: pathlib.Path) -> None:
    """Of all that can become of a test, only what is worse with sockserve is reported; no process survives."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    started = processes(tmp_path, SAMPLE)
    started.environment["FIFO"] = str(fifo)
    result, problems = compare(started, "sample")
    # End-of-file: no process has the other end any more.
    assert select.select([reader], [], [], LIMIT)[0]
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert result.servers == 1
    heads = sorted(problem.partition("\n")[0].removeprefix("sample.Sample.") for problem in problems)
    assert heads == [
        "test_fails_in_a_subtest_with_ours: failed, with the standard library passed",
        "test_fails_with_ours: failed, with the standard library passed",
        "test_is_skipped_with_ours: skipped, with the standard library passed",
        "test_passes_with_ours_unexpectedly: failed, with the standard library passed",
    ]


@pytest.mark.parametrize("mixin", run.HAS_TO_BE_INLINE)
def test_a_mix_in_is_in_every_server(tmp_path: pathlib.Path, mixin: str) -> None:
    """In those that the module makes, in the standard library's, and in the place of ``ThreadingMixIn``."""
    if mixin == "greenlet":
        pytest.importorskip("greenlet")
    started = processes(tmp_path, MIXED_IN.replace("MIXIN", mixed_in.MIXINS[mixin]))
    started.mixin = mixin
    result, problems = compare(started, "sample")
    assert problems == []
    assert (result.count("passed"), result.servers) == (2, 1)


@pytest.mark.parametrize("mixin", run.HAS_TO_BE_INLINE)
def test_a_suite_passes_with_a_mix_in(tmp_path: pathlib.Path, mixin: str) -> None:
    """The quickest of those whose clients talk to a server that runs meanwhile; ``--mixin`` alone runs them all."""
    if mixin == "greenlet":
        pytest.importorskip("greenlet")
    result, problems = compare(Processes(str(tmp_path), mixin), "test.test_docxmlrpc")
    assert problems == []
    assert result.servers > 5


def test_what_has_to_be_inline_is_not_judged(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither when it fails nor when it passes; the rest is."""
    started = processes(tmp_path, SAMPLE)
    started.environment["FIFO"] = os.devnull
    started.mixin = "pool"
    tests = ("sample.Sample.test_fails", "sample.Sample.test_passes_with_ours")
    monkeypatch.setitem(run.HAS_TO_BE_INLINE, "pool", dict.fromkeys(tests, "why"))
    _, problems = compare(started, "sample")
    assert [problem.partition(":")[0] for problem in problems] == ["sample.Sample.test_is_skipped_with_ours"]


def test_a_crash_is_blamed_on_the_test_that_ran(tmp_path: pathlib.Path) -> None:
    """What came before is kept."""
    result = processes(tmp_path, CRASH).run("sample", dropin=True)
    assert not result.ended
    assert result.status == 5
    assert result.outcomes == {"sample.Sample.test_a_passes": "passed", "sample.Sample.test_b_crashes": "failed"}


def test_a_hang_is_ended(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However early the limit comes, the run is one that ended early."""
    monkeypatch.setattr(run, "KILL_AFTER_SECONDS", 1)
    result = processes(tmp_path, HANG).run("sample", dropin=False)
    assert not result.ended
    assert result.status < 0


def test_an_exception_in_a_thread_is_noticed(tmp_path: pathlib.Path) -> None:
    """Where every test passes too; the report shows it."""
    _, problems = compare(processes(tmp_path, FAILING_THREAD), "sample")
    (problem,) = problems
    assert problem.startswith("sample: left no thread, no child process and no unreported exception: failed, with the")
    assert "ValueError: substring not found" in problem


def test_what_fails_has_to_fail_twice(tmp_path: pathlib.Path) -> None:
    """A test that passes when it is run again has passed."""
    started = processes(tmp_path, ONCE)
    started.environment["ONCE"] = str(tmp_path / "once")
    (tmp_path / "once").mkdir()
    result, problems = compare(started, "sample")
    assert problems == []
    assert result.outcomes["sample.Sample.test_fails_once"] == "passed"
    assert not (tmp_path / "once").exists()


def test_a_drop_in_that_does_not_reach_children_is_noticed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a child that ignores the environment."""
    assert not run.check_children(Processes(str(tmp_path)))
    monkeypatch.setattr(run, "PARENT", run.PARENT.replace('"-c"', '"-I", "-c"'))
    assert run.check_children(Processes(str(tmp_path))) == ["a child process has the socketserver of socketserver\n"]


def test_the_command_fails_without_the_tests_of_cpython() -> None:
    """It says what is missing."""
    command = [sys.executable, run.__file__, "test.no_such_module"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert f"{sys.executable} does not have test.no_such_module" in ended.stderr


def test_the_command_passes_and_fails_with_a_count(tmp_path: pathlib.Path) -> None:
    """Status 0 and 1; the last line counts."""
    for code, status, counts in (
        (SAMPLE, 1, "4 failed"),
        (FAILING_THREAD.replace("index", "find"), 0, "2 passed, 0 fail"),
    ):
        environment = processes(tmp_path, code).environment
        environment["FIFO"] = os.devnull
        command = [sys.executable, run.__file__, "sample"]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (ended.returncode, counts in ended.stdout.splitlines()[-1]) == (status, True), ended.stdout
