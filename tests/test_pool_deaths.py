"""Threads of a pool that die or do not start: the pool serves with what there is, and does not spin."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

import pytest
from support.log_watch import ExpectLog
from support.under_test import LIMIT

import sockserve
from sockserve.concurrency.pool.workers import PoolThread
from sockserve.concurrency.threads import WorkerThreads
from sockserve.core.loop import Loop
from sockserve.pytest_plugin import Running
from sockserve.testing import ask

LOOPBACK = ("127.0.0.1", 0)


class Echo(sockserve.BaseRequestHandler[Any, Any, Any]):
    """Sends back what comes."""

    def handle(self) -> None:
        """Answer."""
        self.request.sendall(self.request.recv(100))


def pool(handler: Any, **attributes: Any) -> Any:
    """A server with these attributes."""
    return type("Server", (sockserve.ThreadPoolTCPServer,), attributes)(LOOPBACK, handler)


def test_workers_that_die_at_once_are_replaced_after_a_pause(
    running: Running, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    """Each time they die, whatever of; as soon as one lives, it serves."""
    deaths = expect_log(logging.ERROR, "(?s)dies, another worker takes its place.*MemoryError")
    pauses: list[float] = []
    lives = PoolThread._work

    def dies(self: PoolThread) -> bool:
        if len(pauses) < 2:
            raise MemoryError
        return lives(self)

    monkeypatch.setattr(PoolThread, "_work", dies)
    server = pool(Echo, max_workers=1)
    make_acceptor = server._serving_make_acceptor

    def with_quick_timers(loop: Any, poll_interval: float) -> Any:
        def call_later(delay: float, callback: Any) -> Any:
            if callback.__name__ != "_try_to_start_again":
                return real(delay, callback)
            pauses.append(delay)
            return real(0.0, callback)

        real, loop.call_later = loop.call_later, call_later
        return make_acceptor(loop, poll_interval)

    server._serving_make_acceptor = with_quick_timers
    running(server)
    assert ask(server, b"hello", timeout=LIMIT) == b"hello"
    assert len(deaths.wait()) == 2
    assert len(pauses) == 2
    assert min(pauses) >= 0.5


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_a_pool_that_gets_no_more_threads_serves_with_those_it_has(
    running: Running, expect_log: ExpectLog, error: Exception
) -> None:
    """One line says so, and it tries again later."""
    told = expect_log(logging.WARNING, "goes on with 1 worker, because no thread starts")
    makes = threading.Thread

    def make_thread(self: Any, target: Any) -> threading.Thread:
        if self._serving_pool.workers:
            raise error
        return makes(target=target)

    server = running(pool(Echo, max_workers=3, min_workers=3, make_thread=make_thread))
    for _ in range(3):
        assert ask(server, b"hello", timeout=LIMIT) == b"hello"
    assert len(told.wait()) == 1


def test_a_pool_without_a_first_thread_does_not_begin(running: Running) -> None:
    """``serve_forever()`` raises what the system said, leaves nothing, and begins as soon as there are threads."""
    refused = [True]

    def make_thread(_: Any, target: Any) -> threading.Thread:
        if refused:
            raise RuntimeError("can't start new thread")
        return threading.Thread(target=target)

    server = pool(Echo, make_thread=make_thread)
    with pytest.raises(RuntimeError, match="can't start"):
        server.serve_forever()
    refused.clear()
    running(server)
    assert ask(server, b"hello", timeout=LIMIT) == b"hello"


class StartedAndInterrupted(threading.Thread):
    """Runs, though its ``start()`` raises what a signal handler raised."""

    def start(self) -> None:
        """Start it."""
        super().start()
        raise KeyboardInterrupt


def test_a_worker_whose_start_was_interrupted_ends_by_itself() -> None:
    """It runs: it alone strikes itself out, and the poller stays open for it."""
    with Loop() as loop, pool(Echo, make_thread=lambda _, target: StartedAndInterrupted(target=target)) as server:
        with pytest.raises(KeyboardInterrupt):
            server.attach(loop)
        assert server._serving_threads.join(LIMIT)
        assert not server._serving_pool.workers
        assert not server._serving_pool.idle


def test_an_interrupt_before_a_worker_starts_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The descriptors of the poller are closed: no thread uses it."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with Loop() as loop, pool(Echo) as server:
        with monkeypatch.context() as patch:
            patch.setattr(WorkerThreads, "append", interrupted)
            with pytest.raises(KeyboardInterrupt):
                server.attach(loop)
        assert not server._serving_pool.workers


def test_a_fork_while_a_thread_is_made_is_heard_by_the_pool(running: Running) -> None:
    """The child lets go of all that it shares with its parent, whatever the coordinator was about."""
    statuses: list[int] = []

    def make_thread(server: Any, target: Any) -> threading.Thread:
        if server._serving_pool is not None:
            pid = os.fork()
            if not pid:
                os._exit(int(server._serving_state.table.parking is not None))
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        return threading.Thread(target=target)

    server = running(pool(Echo, make_thread=make_thread, min_workers=2, max_workers=2))
    assert ask(server, b"served") == b"served"
    assert statuses == [0, 0]
