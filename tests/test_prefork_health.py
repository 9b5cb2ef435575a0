"""A healthy worker is not killed as hung."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from prefork_program import Prefork
from under_test import LIMIT
from waiting import stop_process, wait_until

import sockserve
from sockserve.pytest_plugin import Running
from sockserve.testing import connect

PAUSE = 0.3


def test_a_worker_that_turns_again_is_not_killed() -> None:
    """It was stopped for longer than ``worker_timeout``, found silent, and went on: its client keeps its connection."""
    with Prefork("processes = 1", "worker_timeout = 0.5", mix_in="ThreadingMixIn") as server:
        (worker,) = server.wait_for_workers(1)
        with server.connect() as client:
            # The supervisor too: it finds the worker silent as soon as both go on.
            stop_process(server.pid)
            stop_process(worker)
            threading.Event().wait(1.0)
            server.send(signal.SIGCONT, server.pid)
            server.send(signal.SIGCONT, worker)
            threading.Event().wait(1.0)
            client.sendall(b"who\n")
            assert client.recv(100) == b"0 %d" % worker
        assert "hangs" not in server.errors()


def test_short_requests_in_one_turn_are_no_hang(running: Running) -> None:
    """Each has the whole ``worker_timeout``, however many clients wait."""

    class Slow(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            threading.Event().wait(PAUSE)
            self.wfile.write(b"%d" % os.getpid())

    class One(sockserve.PreForkMixIn, sockserve.TCPServer):
        processes = 1
        worker_timeout = 2 * PAUSE

    server: Any = running(One(("127.0.0.1", 0), Slow))
    wait_until(lambda: server._serving_supervisor.workers)
    clients = [connect(server, timeout=LIMIT) for _ in range(8)]
    answers = set()
    for client in clients:
        with client:
            answers.add(client.recv(100))
    assert len(answers) == 1
