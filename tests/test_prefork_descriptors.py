"""A worker process without a free descriptor keeps no client from the workers that have some."""

from __future__ import annotations

import logging
import os
import resource
from typing import Any

import pytest
from support.log_watch import ExpectLog
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.pytest_plugin import Running
from sockserve.testing import ask

LOOPBACK = ("127.0.0.1", 0)


class Exhausts(sockserve.BaseRequestHandler[Any, Any, Any]):
    """Says which process it is; b"exhaust" leaves that one without descriptors."""

    def handle(self) -> None:
        """Answer."""
        if self.request.recv(100) == b"exhaust":
            # Those that are open are the last that it has, and the next one would be this one's number or a higher one.
            free = os.dup(0)
            held = [free]
            while free < self.request.fileno():
                free = os.dup(0)
                held.append(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.request.fileno(), held[-1]))
        self.request.sendall(b"%d" % os.getpid())


class Inline(sockserve.PreForkMixIn, sockserve.TCPServer):
    """Two inline workers, whose loops no supervisor looks after."""

    processes = 2
    worker_timeout = None


class Threads(sockserve.PreForkMixIn, sockserve.ThreadingMixIn, sockserve.TCPServer):
    """Two that serve in threads."""

    processes = 2
    worker_timeout = None


class Pools(sockserve.PreForkMixIn, sockserve.ThreadPoolMixIn, sockserve.TCPServer):
    """Two that serve in pools."""

    processes = 2
    worker_timeout = None


@pytest.mark.parametrize("server_class", [Inline, Threads, Pools])
def test_the_others_take_what_it_was_woken_for(running: Running, expect_log: ExpectLog, server_class: Any) -> None:
    """Each client is answered, by the other worker, whichever of both the kernel wakes."""
    expect_log(logging.WARNING, "accepting pauses.*Too many open files", at_least=0)
    server = running(server_class(LOOPBACK, Exhausts))
    wait_until(lambda: sum(worker.is_ready for worker in list(server._serving_supervisor.workers.values())) == 2)
    exhausted = ask(server, b"exhaust", timeout=LIMIT)
    for _ in range(5):
        assert ask(server, b"", timeout=LIMIT) != exhausted
