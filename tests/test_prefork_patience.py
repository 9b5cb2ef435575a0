"""Clients that keep the loop of an inline worker cost no worker, and others little time."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.handlers import handlers
from support.log_watch import ExpectLog
from support.prefork_program import Prefork
from support.under_test import LIMIT
from support.waiting import wait_until, wait_until_arrived

import sockserve
from sockserve.concurrency.prefork.patience import Patience
from sockserve.concurrency.prefork.protocol import BEAT, FREE, Orders
from sockserve.concurrency.prefork.worker_handle import WorkerHandle
from sockserve.concurrency.prefork.worker_link import Link
from sockserve.core.active_requests import LiveRequest
from sockserve.core.loop import Loop
from sockserve.core.serving import table_of
from sockserve.testing import connect

ORDERS = Orders(0, is_anew=False, worker_timeout=8.0, max_requests=None, dump_signal=signal.SIGQUIT)


class Held:
    """A worker whose loop serves one request, all in this process: nothing here depends on time."""

    def __init__(self, server: sockserve.TCPServer, worker: WorkerHandle, link: Link) -> None:
        self.server = server
        self.worker = worker
        self.page = worker.page
        self.patience = Patience(link, [server])
        self.stack = contextlib.ExitStack()
        self.lives: list[LiveRequest] = []

    def serve(self) -> socket.socket:
        """Accept one client, whose connection is returned, and serve nothing else from now on."""
        client = self.stack.enter_context(connect(self.server.server_address, timeout=LIMIT))
        request, address = self.server.socket.accept()
        self.stack.enter_context(request)
        for live in self.lives:
            table_of(self.server).discard(live)
        self.lives = [table_of(self.server).add(request, address)]
        self.stand_still(0.0)
        return client

    def stand_still(self, seconds: float) -> None:
        """The last beat was so long ago, and is another one than before."""
        self.page.beat()
        self.page.numbers[BEAT] -= int(seconds * 1e9)

    def free(self) -> None:
        """What the supervisor orders about the present beat."""
        self.worker.free(self.page.numbers[BEAT])
        self.patience.free()

    def has_input_ended(self) -> bool:
        """Whether the request's handler would read end-of-file."""
        request = self.lives[0].request
        request.setblocking(False)
        try:
            return bool(request.recv(1, socket.MSG_PEEK) == b"")
        except BlockingIOError:
            return False


@pytest.fixture
def held() -> Iterator[Held]:
    """Such a worker."""
    worker = WorkerHandle(ORDERS, 0, 0, 0)
    with worker.control, worker._theirs, Loop() as loop:
        loop.thread = threading.get_ident()
        link = Link(worker._theirs, worker.page, ORDERS)
        with sockserve.TCPServer(("127.0.0.1", 0), handlers(sockserve).Echo) as server:
            link._loop = loop
            it = Held(server, worker, link)
            with it.stack:
                yield it
            for live in it.lives:
                table_of(server).discard(live)


def test_first_the_input_ends_and_then_the_connection(held: Held, expect_log: ExpectLog) -> None:
    """Between both its handler can answer; a worker is not killed for its client."""
    expect_log(logging.WARNING, "the input of .* ends")
    expect_log(logging.WARNING, "cut ")
    client = held.serve()
    held.free()
    assert held.has_input_ended()
    held.lives[0].request.sendall(b"bye")
    assert client.recv(10) == b"bye"
    held.free()
    assert client.recv(10) == b""


def test_a_request_that_came_meanwhile_is_not_ended(held: Held) -> None:
    """The loop has turned between the supervisor's look and the worker's ear."""
    held.serve()
    held.worker.free(held.page.numbers[BEAT] - 1)
    held.patience.free()
    assert not held.has_input_ended()


def test_a_request_of_another_thread_is_not_ended(held: Held) -> None:
    """What a thread or a pool serves does not keep the loop."""
    held.serve()
    held.lives[0].thread = None
    held.free()
    assert not held.has_input_ended()


def test_the_next_silent_client_has_half_the_time_if_another_waits(held: Held, expect_log: ExpectLog) -> None:
    """And the one after it a quarter; without another client it may go on."""
    expect_log(logging.WARNING, "the input of .* ends")
    held.serve()
    assert held.patience.longest_wait() is None
    held.free()
    held.serve()
    held.stand_still(4.5)
    held.patience.look()
    assert not held.has_input_ended()
    with connect(held.server.server_address, timeout=LIMIT):
        held.stand_still(3.0)
        held.patience.look()
        assert not held.has_input_ended()
        held.stand_still(4.5)
        held.patience.look()
        assert held.has_input_ended()
    held.server.socket.accept()[0].close()
    held.serve()
    with connect(held.server.server_address, timeout=LIMIT):
        held.stand_still(2.5)
        held.patience.look()
        assert held.has_input_ended()


def test_a_client_that_has_spoken_has_the_whole_time(held: Held, expect_log: ExpectLog) -> None:
    """Its handler may be computing the answer, whatever others waited for before."""
    expect_log(logging.WARNING, "the input of .* ends")
    held.serve()
    held.free()
    client = held.serve()
    client.sendall(b"x")
    wait_until_arrived(client)
    assert held.lives[0].request.recv(1) == b"x"
    with connect(held.server.server_address, timeout=LIMIT):
        held.stand_still(7.5)
        held.patience.look()
        assert not held.has_input_ended()


def test_a_loop_that_serves_nothing_gives_all_the_whole_time_again(held: Held, expect_log: ExpectLog) -> None:
    """Then there is nothing to look at before the next order."""
    expect_log(logging.WARNING, "the input of .* ends")
    held.serve()
    held.free()
    assert held.patience.longest_wait() is not None
    table_of(held.server).discard(held.lives.pop())
    held.patience.look()
    assert held.patience.longest_wait() is None


def test_an_order_is_waited_for_with_a_limit(held: Held) -> None:
    """Without one there is nothing to do when the time is over, and an order ends the wait."""
    link = held.patience._link
    assert link.next_orders(0.0) == b""
    held.worker.free(0)
    assert link.next_orders(None) == FREE


@pytest.mark.parametrize("says", [b"", b"stay\n"])
def test_silent_clients_cost_no_worker(says: bytes) -> None:
    """Whether they have said a part or nothing at all: the next client is served by one that was there before."""
    with Prefork("worker_timeout = 0.3") as server, contextlib.ExitStack() as stack:
        workers = server.wait_for_workers()
        for _ in range(6):
            stack.enter_context(connect(server.address, timeout=LIMIT)).sendall(says)
        assert server.who()[1] in workers
        assert "hangs" not in server.errors()
        assert "SIGKILL" not in server.errors()


def test_a_handler_that_ignores_the_end_of_its_input_is_cut(running: Any, expect_log: ExpectLog) -> None:
    """It writes without end to a client that does not read; its worker goes on."""
    expect_log(logging.WARNING, "the input of .* ends")
    expect_log(logging.WARNING, "cut ")
    expect_log(logging.ERROR, "", at_least=0)

    class Flood(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            if self.rfile.readline() == b"who\n":
                self.wfile.write(b"%d" % os.getpid())
                return
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(bytes(65536))

    class One(sockserve.PreForkMixIn, sockserve.TCPServer):
        processes = 1
        worker_timeout = 0.3

    server = running(One(("127.0.0.1", 0), Flood))
    workers = server._serving_supervisor.workers
    wait_until(lambda: workers)
    (pid,) = workers
    with connect(server, timeout=LIMIT) as flooded, connect(server, timeout=LIMIT) as good:
        flooded.sendall(b"flood\n")
        good.sendall(b"who\n")
        assert good.recv(100) == b"%d" % pid
