"""Children of a request: reaped and told once whatever interrupts, signalled only while they are ours."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.forking import Counted, interrupted
from support.handlers import handlers
from support.log_watch import ExpectLog
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.concurrency import children
from sockserve.concurrency.children import Child
from sockserve.concurrency.forks import ForkDispatcher
from sockserve.core.deferral import Deferral
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, call_within


def ended_process(status: int = 7) -> int:
    """One that has ended, and was not reaped."""
    pid = os.fork()
    if pid == 0:
        os._exit(status)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


@contextlib.contextmanager
def waiting_process() -> Iterator[int]:
    """One that waits for a signal; reaped in the end, if it still is there."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.fixture(params=[True, False], ids=["pidfd", "no pidfd"])
def _pidfd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a descriptor of the process, and where there is none to be had."""
    if not request.param:
        monkeypatch.setattr(children, "open_pidfd", lambda _pid: None)


CALLS = ["waitid", "waitpid", "told"]


@pytest.mark.usefixtures("_pidfd")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupted_reap_loses_nothing(monkeypatch: pytest.MonkeyPatch, call: str, moment: str) -> None:
    """Ctrl-C before or after any step: told once and forgotten, at the latest the next time."""
    statuses, interrupts = [], [None]
    dispatcher = ForkDispatcher(lambda: 1)

    def interrupting(real: Callable[..., Any]) -> Callable[..., Any]:
        def interrupted(*args: Any) -> Any:
            if moment == "before" and interrupts:
                interrupts.pop()
                signal.raise_signal(signal.SIGINT)
            result = real(*args)
            if interrupts:
                interrupts.pop()
                signal.raise_signal(signal.SIGINT)
            return result

        return interrupted

    tell = interrupting(statuses.append) if call == "told" else statuses.append
    child = dispatcher.adopt(ended_process(), tell)
    if call != "told":
        monkeypatch.setattr(os, call, interrupting(getattr(os, call)))
    with pytest.raises(KeyboardInterrupt):
        dispatcher.reap_all()
    assert not interrupts
    call_within(LIMIT, lambda: dispatcher.close(None))
    assert statuses == [7]
    assert child.pidfd is None
    assert not dispatcher.children


def test_a_second_interrupt_within_the_first_loses_nothing() -> None:
    """Ctrl-C twice while the status is told: it is told in the next call."""
    statuses, interrupts = list[int](), [signal.SIGINT, signal.SIGINT]

    def tell(status: int) -> None:
        while interrupts:
            signal.raise_signal(interrupts.pop())
        statuses.append(status)

    dispatcher = ForkDispatcher(lambda: 1)
    dispatcher.adopt(ended_process(), tell)
    with pytest.raises(KeyboardInterrupt):
        dispatcher.reap_all()
    assert call_within(LIMIT, lambda: dispatcher.close(None))
    assert statuses == [7]


def test_a_look_at_children_that_live_defers_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes in each turn of a loop, and nothing is to be protected before a child has ended."""
    entered, defer = list[Deferral](), Deferral.__enter__

    def enter(deferral: Deferral) -> Deferral:
        entered.append(deferral)
        return defer(deferral)

    monkeypatch.setattr(Deferral, "__enter__", enter)
    statuses = list[int]()
    dispatcher = ForkDispatcher(lambda: 1)
    with waiting_process() as pid:
        dispatcher.adopt(pid, statuses.append)
        dispatcher.reap_all()
        dispatcher.reap()
        assert entered == []
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        dispatcher.reap_all()
    assert statuses == [-signal.SIGKILL]
    assert entered


def test_an_error_in_what_is_told_is_raised_once() -> None:
    """It is the program's, and no reason to keep the child."""

    def tell(_status: int) -> None:
        raise ValueError

    child = Child(ended_process(), tell)
    with pytest.raises(ValueError, match=r"^$"):
        child.reap()
    assert not child.reap()
    child.close()


@pytest.mark.usefixtures("_pidfd")
def test_a_number_that_another_wait_has_freed_gets_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A waitpid(-1) of the program took the status away: the number may be another process's by now."""
    killed = list[tuple[int, int]]()
    child = Child(ended_process(), lambda _status: None)
    os.waitpid(child.pid, 0)
    monkeypatch.setattr(os, "kill", lambda *args: killed.append(args))
    child.cut()
    child.drain()
    assert killed == []
    child.close()


@pytest.mark.usefixtures("_pidfd")
def test_nothing_is_reaped_or_closed_while_a_signal_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread reaps and closes then: number and descriptor stay the child's until it is sent."""
    sent = list[bool]()
    with waiting_process() as pid:
        child = Child(pid, lambda _status: None)

        def reap_and_close() -> None:
            child.reap()
            child.close()

        other = threading.Thread(target=reap_and_close)

        def holding(real: Callable[..., Any]) -> Callable[..., Any]:
            def send(number: int, signum: int, *args: Any) -> None:
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                other.start()
                other.join(0.05)
                sent.append(other.is_alive() and (child.pidfd in (None, number)))
                real(number, signum, *args)

            return send

        os.kill(pid, signal.SIGKILL)
        monkeypatch.setattr(signal, "pidfd_send_signal", holding(signal.pidfd_send_signal))
        monkeypatch.setattr(os, "kill", holding(os.kill))
        monkeypatch.setattr(child, "_look", lambda: False)
        child.cut()
        monkeypatch.undo()
        other.join(LIMIT)
    assert sent == [True]
    child.close()


def test_a_forked_process_signals_no_child_of_its_parent() -> None:
    """A copy of the server that drains or cuts in another process does not end the parent's children."""
    with waiting_process() as pid:
        child = Child(pid, lambda _status: None)
        other = os.fork()
        if other == 0:
            child.cut()
            os._exit(0)
        os.waitpid(other, 0)
        assert not child.has_ended()
        child.close()


def test_a_fork_while_another_thread_looks_at_a_child_ends_in_no_lock() -> None:
    """The new process lets go of its parent's child though its copy of the child's lock is held for good."""
    with waiting_process() as pid:
        dispatcher = ForkDispatcher(lambda: 1)
        child = dispatcher.adopt(pid, lambda _status: None)
        holds, may_go = threading.Event(), threading.Event()

        def hold() -> None:
            with child._hold:
                holds.set()
                may_go.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        holds.wait()
        other = os.fork()
        if other == 0:
            os._exit(int(child.pidfd is not None or bool(dispatcher.children)))
        may_go.set()
        holder.join()
        ended = Child(other, lambda _status: None)
        if sys.platform == "linux":
            select.select([ended.pidfd], [], [], LIMIT)
        has_ended = ended.has_ended()
        ended.cut()
        assert os.waitpid(other, 0)[1] == 0
        assert has_ended
        ended.close()
        dispatcher.forked()


FAILURES = [errno.EMFILE, errno.ENOMEM, errno.EAGAIN]


@pytest.mark.parametrize("number", FAILURES, ids=errno.errorcode.get)
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_fork_that_fails_costs_that_request(
    running: Running, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog, number: int, nth: int
) -> None:
    """Each that fails is reported, and its client's connection closed; those before and after it are served."""
    fork, count = os.fork, iter(range(1, 10))

    def fail() -> int:
        if next(count) == nth:
            raise OSError(number, os.strerror(number))
        return fork()

    expect_log(40, os.strerror(number))
    server = running(Counted(handlers(sockserve).Echo))
    monkeypatch.setattr(os, "fork", fail)
    assert [ask(server, b"hello") for _ in range(4)] == [b"" if k == nth else b"hello" for k in range(1, 5)]
    assert server.outcome() == (3, 1)
    assert server.active_children == set()


@pytest.mark.parametrize("number", FAILURES, ids=errno.errorcode.get)
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_pidfd_that_fails_costs_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch, number: int, nth: int
) -> None:
    """Every client is served, and every child reaped."""
    pidfd_open, count = os.pidfd_open, iter(range(1, 10))

    def fail(pid: int, flags: int = 0) -> int:
        if next(count) == nth:
            raise OSError(number, os.strerror(number))
        return pidfd_open(pid, flags)

    server = running(Counted(handlers(sockserve).Echo))
    monkeypatch.setattr(os, "pidfd_open", fail)
    assert [ask(server, b"hello") for _ in range(4)] == [b"hello"] * 4
    assert server.outcome() == (4, 0)
    assert server.active_children == set()


def test_a_signal_that_another_thread_gets_does_not_orphan_the_child(
    monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    """The main thread holds signals back while it forks; one that another thread gets raises there all the same."""
    fork = os.fork

    def fork_and_interrupt() -> int:
        pid = fork()
        if pid:
            monkeypatch.setattr(os, "fork", fork)
            other = threading.Thread(
                target=lambda: (
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT}),
                    signal.pthread_kill(threading.get_ident(), signal.SIGINT),
                )
            )
            other.start()
            other.join()
        return pid

    expect_log(30, "in progress for")
    expect_log(30, "was killed by signal 9")
    _, child = interrupted(monkeypatch, fork_and_interrupt)
    wait_until(lambda: not os.path.exists(f"/proc/{child}"))
