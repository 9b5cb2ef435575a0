"""A healthy worker is not killed as hung."""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

import pytest
from support.log_watch import ExpectLog
from support.under_test import LIMIT
from support.waiting import stop_process, wait_until

import sockserve
from sockserve.concurrency.prefork import hang_detection
from sockserve.concurrency.prefork.protocol import BEAT
from sockserve.concurrency.prefork.worker_commands import Duties
from sockserve.concurrency.prefork.worker_handle import WorkerHandle
from sockserve.pytest_plugin import Running
from sockserve.testing import connect


class Talk(sockserve.StreamRequestHandler):
    """Answers each line with the number of its process."""

    def handle(self) -> None:
        """Until end-of-file."""
        while self.rfile.readline():
            self.wfile.write(b"%d" % os.getpid())


class Threads(sockserve.PreForkMixIn, sockserve.ThreadingTCPServer):
    """One worker with threads."""

    processes = 1
    worker_timeout = 0.3


def the_worker_of(server: Any) -> WorkerHandle:
    """The only one, once it is ready."""
    workers: dict[int, WorkerHandle] = server._serving_supervisor.workers
    wait_until(lambda: [worker for worker in list(workers.values()) if worker.is_ready])
    return next(iter(workers.values()))


def test_a_worker_that_turns_again_is_not_killed(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was stopped, found silent, and went on before the verdict: its client keeps its connection."""
    monkeypatch.setattr(hang_detection, "STEP_TIME", 1.0)
    server = running(Threads(("127.0.0.1", 0), Talk))
    worker = the_worker_of(server)
    with connect(server, timeout=LIMIT) as client:
        client.sendall(b"\n")
        assert client.recv(100) == b"%d" % worker.child.pid
        stop_process(worker.child.pid)
        wait_until(lambda: worker.is_hung)
        os.kill(worker.child.pid, signal.SIGCONT)
        wait_until(lambda: not worker.is_hung)
        client.sendall(b"\n")
        assert client.recv(100) == b"%d" % worker.child.pid


def test_a_worker_with_a_debugger_is_not_killed(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it is traced; without the debugger the time runs anew."""
    traced = [True]
    asked: list[int] = []

    def is_traced(pid: int) -> bool:
        asked.append(pid)
        return traced[0]

    monkeypatch.setattr(hang_detection, "_is_traced", is_traced)
    monkeypatch.setattr(Threads, "worker_timeout", 0.1)
    server = running(Threads(("127.0.0.1", 0), Talk))
    worker = the_worker_of(server)
    with connect(server, timeout=LIMIT) as client:
        client.sendall(b"\n")
        client.recv(100)
        stop_process(worker.child.pid)
        wait_until(lambda: len(asked) > 2)
        os.kill(worker.child.pid, signal.SIGCONT)
        client.sendall(b"\n")
        assert client.recv(100) == b"%d" % worker.child.pid


def test_each_request_of_one_turn_is_a_beat(running: Running) -> None:
    """Each has the whole ``worker_timeout``, however many clients wait: none waits for the next turn's beat."""

    class Beat(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            (duties,) = (each for each in self.server.observers if isinstance(each, Duties))
            self.wfile.write(b"%d" % duties._link.page.numbers[BEAT])

    class One(sockserve.PreForkMixIn, sockserve.TCPServer):
        processes = 1

    server: Any = running(One(("127.0.0.1", 0), Beat))
    the_worker_of(server)
    clients = [connect(server, timeout=LIMIT) for _ in range(8)]
    beats = set()
    for client in clients:
        with client:
            beats.add(client.recv(100))
    assert len(beats) == len(clients)


def test_a_hung_worker_is_killed_though_no_request_can_be_ended(
    running: Running, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped alone it does not hear that it shall free its loop."""
    monkeypatch.setattr(hang_detection, "STEP_TIME", 0.1)
    expect_log(logging.ERROR, "hangs: its loop has not turned")
    reported = expect_log(logging.WARNING, "was killed by SIGKILL")
    # Within its first second that is a failed start, too.
    expect_log(logging.ERROR, "was killed by SIGKILL", at_least=0)
    server = running(Threads(("127.0.0.1", 0), Talk))
    worker = the_worker_of(server)
    with connect(server, timeout=LIMIT) as client:
        client.sendall(b"\n")
        client.recv(100)
        stop_process(worker.child.pid)
        assert client.recv(100) == b""
    # After a shutdown its end would be no news.
    reported.wait()
