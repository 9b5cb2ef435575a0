"""What watches over every other test sees what it has to see, in pytest sessions of its own."""

from __future__ import annotations

import os
import pathlib

import pytest

TESTS = pathlib.Path(__file__).parent

WATCHED = """
import logging, os, socket, threading
import pytest

log = logging.getLogger("sockserve.somewhere")

def in_child(function):
    pid = os.fork()
    if not pid:
        try:
            function()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)

def test_good(expect_log):
    expectation = expect_log(logging.ERROR, "Zero.*division")
    expect_log(logging.DEBUG, "^left$")
    expect_log(logging.WARNING, "maybe", at_least=0)
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("it raised")
    in_child(lambda: log.debug("left"))
    log.info("nobody minds")
    (line,) = expectation.wait()
    assert line.text.startswith("it raised")

def test_good_again():
    assert not log.isEnabledFor(logging.DEBUG)

def test_bad_log():
    log.warning("a surprise")

def test_bad_log_of_a_child():
    in_child(lambda: log.error("a child's surprise"))

def test_bad_level(expect_log):
    expect_log(logging.ERROR, "a matter of level", at_least=0)
    log.warning("a matter of level")

def test_bad_silence(expect_log):
    expect_log(logging.INFO, "what never comes")

def test_bad_thread_error():
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()

def test_bad_garbage():
    socket.socket()
"""

LEAKING = """
import threading

let_go = threading.Event()

def test_bad_thread():
    threading.Thread(target=let_go.wait).start()

def test_clean_up():
    let_go.set()
"""

HANGING = """
import os, signal, threading
from support.under_test import S

def test_is_stdlib():
    assert S.__name__ == "socketserver"

def test_leaves_a_thread_and_a_child():
    child = os.fork()
    if not child:
        signal.pause()
    print("child:", child)
    threading.Thread(target=threading.Event().wait).start()

def test_hangs():
    assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 30
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    threading.Event().wait()

def test_goes_on():
    pass
"""


class Watched:
    """A pytest session whose tests are watched as these are."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester

    def run(self, tests: str, *, changed: str = "") -> pytest.RunResult:
        """Run tests, with other limits perhaps."""
        self.pytester.makeconftest((TESTS / "conftest.py").read_text("utf-8") + changed)
        self.pytester.makepyfile(tests)
        return self.pytester.runpytest_subprocess("-W", "error", "-rA", timeout=120)


@pytest.fixture
def watched(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Run tests as a user of this directory would."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    return Watched(pytester)


def test_logs_and_errors_nobody_expected(watched: Watched) -> None:
    """Unexpected log records, missing ones, errors of threads and unclosed sockets fail a test; nothing else does."""
    result = watched.run(WATCHED)
    bad = (line for line in result.outlines if line.startswith(("ERROR test", "FAILED test")))
    assert {line.split("::")[1].split()[0] for line in bad} == {
        "test_bad_log",
        "test_bad_log_of_a_child",
        "test_bad_level",
        "test_bad_silence",
        "test_bad_thread_error",
        "test_bad_garbage",
    }
    result.stdout.fnmatch_lines_random(["*unexpected: *a child's surprise*", "*missing: INFO 'what never comes'*"])


def test_leaks(watched: Watched) -> None:
    """A thread that goes on is reported with the test that started it, and not with the next one."""
    result = watched.run(LEAKING, changed="LIMIT = 0.1")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["E *LeakError: left behind: thread *wait*", "ERROR *::test_bad_thread*"])


def test_a_session_against_the_stdlib_ends(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs is ended: a test in its main thread, threads and children with the session."""
    monkeypatch.setenv("SOCKSERVE_UNDER_TEST", "socketserver")
    result = watched.run(HANGING)
    result.assert_outcomes(passed=3, failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*TimeoutError: the test hangs for 30.0 seconds*"])
    (child,) = (int(line.split()[1]) for line in result.outlines if line.startswith("child: "))
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
