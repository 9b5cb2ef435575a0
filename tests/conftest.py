"""What holds for every test: it leaves nothing behind, and the log says nothing that the test did not expect.

Each request goes through its states as ``sockserve/core/request_states.py`` says; else the log complains.

Against the stdlib (``under_test``) neither is asked for: there, hangs are ended instead.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import pathlib
import select
import selectors
import signal
import sys
from collections.abc import Iterator

import pytest
from support.certificates import make_certificate
from support.handlers import KEEPS_CLASSES, Signal
from support.log_watch import ExpectLog, Log
from support.request_states import watch_states
from support.under_test import IS_STDLIB, LIMIT

from sockserve import pytest_plugin
from sockserve.core.loop import Loop
from sockserve.testing import leaks

pytest_plugins = ["pytester"]

if KEEPS_CLASSES:
    # What a class keeps is no leak of a server's.
    list_all = leaks._descriptors
    leaks._descriptors = lambda: {
        fd: at for fd, at in list_all().items() if not any(fd in each.fds() for each in Signal.kept)
    }

HANG_LIMIT = 30.0
"""Seconds after which a test against the stdlib is ended in its main thread."""


def pytest_configure(config: pytest.Config) -> None:
    """Have the plugin when sockserve is not installed, too."""
    if not config.pluginmanager.has_plugin("sockserve"):
        config.pluginmanager.register(pytest_plugin, "sockserve")
    watch_states()
    if IS_STDLIB:
        # What a flaw left behind must not fail the next test as well.
        for each in ("PytestUnhandledThreadExceptionWarning", "PytestUnraisableExceptionWarning"):
            config.addinivalue_line("filterwarnings", f"ignore::pytest.{each}")


def pytest_collection_finish() -> None:
    """Take what all test modules have made out of the collections with which each test looks for what it left."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A PEM file with a certificate for loopback and its key, made once."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cut has 0.3 seconds to end, for tests in which it does not."""
    for name, module in list(sys.modules.items()):
        if name.startswith("sockserve.") and hasattr(module, "CUT_GRACE"):
            monkeypatch.setattr(module, "CUT_GRACE", 0.3)


@pytest.fixture(params=["epoll", "selectors"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    """A loop over each of the pollers; gevent takes epoll away in the same way."""
    if request.param == "selectors":
        monkeypatch.delattr(select, "epoll")
        monkeypatch.setattr(selectors, "DefaultSelector", selectors.PollSelector)
    with Loop() as made:
        yield made


@pytest.fixture
def expect_log(request: pytest.FixtureRequest) -> Iterator[ExpectLog]:
    """Claim log records of this process and its forked children: ``expect_log(logging.ERROR, "Boom").wait()``.

    A record of WARNING or above that no expectation claims fails the test, and so does an expectation of which fewer
    than ``at_least`` records came until the end.
    """
    logger = logging.getLogger("sockserve")
    level = logger.level
    log = Log()
    logger.addHandler(log)
    yield ExpectLog(log, logger)
    logger.removeHandler(log)
    logger.setLevel(level)
    complaints = log.complaints()
    log.file.close()
    if complaints and not IS_STDLIB and not pytest_plugin.has_failed(request.node):
        pytest.fail("\n".join(complaints), pytrace=False)


@pytest.fixture(autouse=True)
def leaves_nothing_behind(
    request: pytest.FixtureRequest,
    expect_log: ExpectLog,  # noqa: ARG001 - its end comes after ours: what still ends may still log
) -> Iterator[None]:
    """Fail a test that leaves a thread, a descriptor or a child process behind."""
    if IS_STDLIB:
        with _ended_when_it_hangs():
            yield
        return
    Signal.kept.clear()
    before = leaks.take_inventory()
    yield
    for each in Signal.kept:
        each.close()
    if not pytest_plugin.has_failed(request.node):
        leaks.check_leaks(before, timeout=LIMIT)


@contextlib.contextmanager
def _ended_when_it_hangs() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise TimeoutError(f"the test hangs for {HANG_LIMIT} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, HANG_LIMIT, HANG_LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Leave without waiting for what hangs in the stdlib: its threads are no daemons."""
    if IS_STDLIB:
        session.config.add_cleanup(lambda: _leave(exitstatus))


def _leave(exitstatus: int) -> None:
    for pid in leaks.child_processes():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exitstatus)
