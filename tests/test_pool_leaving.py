"""A pool's loop ends in time although a worker is within a ``get_request()`` that does not return."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
from support.log_watch import ExpectLog
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.core.serving import table_of
from sockserve.pytest_plugin import Running
from sockserve.testing import call_within, connect

LOOPBACK = ("127.0.0.1", 0)


class Echo(sockserve.BaseRequestHandler[Any, Any, Any]):
    """Sends back what comes."""

    def handle(self) -> None:
        """Answer."""
        self.request.sendall(self.request.recv(100))


class Slow(sockserve.ThreadPoolTCPServer):
    """Its ``get_request()`` waits until ``opened``."""

    max_workers = 2

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.begun = threading.Event()
        self.opened = threading.Event()

    def get_request(self) -> Any:
        """Wait first."""
        self.begun.set()
        assert self.opened.wait(LIMIT)
        return super().get_request()


@pytest.mark.usefixtures("short_grace")
def test_the_loop_ends_without_a_worker_that_does_not_return(running: Running, expect_log: ExpectLog) -> None:
    """One line says so; the listener blocks again as soon as that worker is done, and no sooner."""
    told = expect_log(logging.WARNING, "the loop ends although get_request")
    server = Slow(LOOPBACK, Echo)
    mode = server.socket.gettimeout()
    running(server)
    try:
        with connect(server) as client:
            client.settimeout(LIMIT)
            client.sendall(b"x")
            assert server.begun.wait(LIMIT)
            call_within(LIMIT, server.shutdown)
            assert len(told.wait()) == 1
            assert server.socket.gettimeout() == 0
            # One that waits for the worker, and none for each look.
            assert len(table_of(server).watchers) <= 1
            server.opened.set()
            assert client.recv(1) == b"x"
            wait_until(lambda: server.socket.gettimeout() == mode)
            wait_until(lambda: not table_of(server).watchers)
    finally:
        server.opened.set()


def test_changes_while_it_waits_leave_no_watcher(running: Running) -> None:
    """A worker that returns in time is waited for, however often something else changes meanwhile."""
    server = Slow(LOOPBACK, Echo)
    mode = server.socket.gettimeout()
    running(server)
    with connect(server) as client:
        client.settimeout(LIMIT)
        client.sendall(b"x")
        assert server.begun.wait(LIMIT)
        stopping = threading.Thread(target=server.shutdown)
        stopping.start()
        table = table_of(server)
        for _ in range(5):
            wait_until(lambda: bool(table.watchers))
            assert len(table.watchers) == 1
            table.touch()
        server.opened.set()
        assert client.recv(1) == b"x"
        stopping.join(LIMIT)
        assert server.socket.gettimeout() == mode
        assert not table.watchers
