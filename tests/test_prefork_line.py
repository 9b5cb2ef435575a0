"""What workers and their supervisor tell each other arrives, whatever else lives, is stopped, or is a default."""

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
from support.prefork_program import Prefork, is_alive
from support.programs import Program
from support.under_test import LIMIT
from support.waiting import stop_process, wait_until

import sockserve
from sockserve.client import terminal
from sockserve.concurrency.prefork import parent_process
from sockserve.concurrency.prefork import protocol as terms
from sockserve.concurrency.prefork.parent_process import ParentProcess
from sockserve.concurrency.prefork.protocol import AWAKE, DRAIN, ENOUGH, LEAVE, LOOK, READY, STOPPED, Orders
from sockserve.concurrency.prefork.worker_handle import WorkerHandle
from sockserve.concurrency.prefork.worker_link import Link
from sockserve.pytest_plugin import Running
from sockserve.testing import call_within

LOOPBACK = ("127.0.0.1", 0)
ORDERS = Orders(0, is_anew=False, worker_timeout=None, max_requests=None, dump_signal=signal.SIGQUIT)


class One(sockserve.PreForkMixIn, sockserve.TCPServer):
    """One inline worker."""

    processes = 1


@pytest.fixture
def line() -> Iterator[tuple[WorkerHandle, Link]]:
    """Both ends of a line, in one process."""
    worker = WorkerHandle(ORDERS, 0, 0, 0)
    theirs = worker._theirs
    with worker.control, theirs:
        yield worker, Link(theirs, worker.page, ORDERS)


def fill(sock: socket.socket, word: bytes) -> None:
    """Send until there is no room."""
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(word, socket.MSG_DONTWAIT)


def the_worker_of(server: Any) -> WorkerHandle:
    """The only one, once it is ready."""
    workers: dict[int, WorkerHandle] = server._serving_supervisor.workers
    wait_until(lambda: [worker for worker in list(workers.values()) if worker.is_ready])
    return next(iter(workers.values()))


def test_an_order_is_heard_when_there_was_no_room_for_it(line: tuple[WorkerHandle, Link]) -> None:
    """Each is, in the order of their severity; given twice it is heard twice, given often not more."""
    worker, link = line
    fill(worker.control, LOOK)
    for order in (DRAIN, LEAVE, LEAVE, LOOK, LOOK, LOOK):
        worker.tell(order)
    assert link.next_orders() == LEAVE + LEAVE + DRAIN + LOOK + LOOK
    worker.tell(LEAVE)
    assert link.next_orders() == LEAVE


def test_a_word_is_heard_when_there_was_no_room_for_it(line: tuple[WorkerHandle, Link]) -> None:
    """What a worker says while its supervisor is stopped: each word once, and none a second time."""
    worker, link = line
    fill(link.control, AWAKE)
    for word in (READY, ENOUGH, STOPPED):
        link.tell(word)
    told, may_tell_more = worker.hear()
    assert may_tell_more
    assert set(told) == set(READY + ENOUGH + STOPPED + AWAKE)
    assert worker.hear() == (b"", True)


def test_a_stopped_worker_hears_shutdown_afterwards(running: Running) -> None:
    """However much it was told before."""
    server = running(One(LOOPBACK, handlers(sockserve).Echo))
    worker = the_worker_of(server)
    stop_process(worker.child.pid)
    try:
        fill(worker.control, LOOK)
        ends = threading.Thread(target=server.shutdown)
        ends.start()
        wait_until(lambda: worker.is_leaving)
    finally:
        os.kill(worker.child.pid, signal.SIGCONT)
    ends.join(LIMIT)
    assert not ends.is_alive()


def test_a_default_timeout_is_not_about_the_line(running: Running) -> None:
    """``socket.setdefaulttimeout()`` makes neither a worker nor a person's input end."""
    forever = threading.Event()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.05)
    try:
        server = running(One(LOOPBACK, handlers(sockserve).Echo))
        worker = the_worker_of(server)
        assert worker._theirs.gettimeout() is None
        begins, ends = os.pipe()
        with pytest.MonkeyPatch.context() as patch, os.fdopen(begins) as stdin:
            patch.setattr("sys.stdin", stdin)
            with terminal.input_as_socket() as ours:
                assert ours.gettimeout() is None
                forever.wait(0.2)
                os.write(ends, b"late")
                assert ours.recv(4) == b"late"
                os.close(ends)
                assert ours.recv(4) == b""
    finally:
        socket.setdefaulttimeout(before)
    assert list(server._serving_supervisor.workers.values()) == [worker]


HELPED = """
import os, threading, sockserve
{before}
class Who(sockserve.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"%d" % os.getpid())
class Server(sockserve.PreForkMixIn, sockserve.{mix_in}TCPServer):
    processes = 2
def help():
    server.wait_until_serving()
    pid = os.fork()
    if pid == 0:
        os.close(1)
        threading.Event().wait()
    workers = list(server._serving_supervisor.workers)
    print(pid, *workers, flush=True)
with Server(("127.0.0.1", 0), Who) as server:
    threading.Thread(target=help, daemon=True).start()
    {serve}
"""

SERVE = "server.serve_forever()"
SERVE_IN_A_THREAD = "t = threading.Thread(target=server.serve_forever); t.start(); t.join()"
NO_PIDFD = """
import sockserve.concurrency.prefork.parent_process as parent_process
parent_process.open_pidfd = lambda pid: None
parent_process.POLL_WITHOUT_PIDFD = 0.1
"""


@pytest.mark.parametrize("mix_in", ["", "Threading"])
@pytest.mark.parametrize("serve", [SERVE, SERVE_IN_A_THREAD])
@pytest.mark.parametrize("before", ["", NO_PIDFD], ids=["pidfd", "none"])
def test_workers_end_with_their_supervisor_beside_a_helper(mix_in: str, serve: str, before: str) -> None:
    """The helper has a copy of the other end of their lines, and lives on."""
    script = HELPED.replace("{mix_in}", mix_in).replace("{serve}", serve).replace("{before}", before)
    with Program(script) as program:
        helper, *workers = map(int, program.line().split())
        try:
            program.process.kill()
            wait_until(lambda: not any(map(is_alive, workers)))
            assert is_alive(helper)
        finally:
            os.kill(helper, signal.SIGKILL)


def test_a_parent_that_ended_before_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor for it, too: the process has another parent then."""
    monkeypatch.setattr(parent_process, "open_pidfd", lambda _: None)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x")
        parent = ParentProcess()
        monkeypatch.setattr(os, "getppid", os.getpid)
        assert parent.wait_for(ours)
        monkeypatch.setattr(os, "getppid", lambda: 0)
        assert parent.wait_for(ours)
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert not parent.wait_for(ours)
        parent.close()


def test_a_parent_is_watched_without_poll_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program that gevent has patched."""
    monkeypatch.delattr("select.poll")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x")
        parent = ParentProcess()
        assert parent.wait_for(ours)
        parent.close()


FORKS = """
def verify_request(self, request, client_address):
    if not hasattr(self, "helper"):
        self.helper = os.fork()
        if not self.helper:
            request.close()
            os.close(1)
            threading.Event().wait()
        print(self.helper, flush=True)
    return True
"""


@pytest.mark.parametrize("mix_in", ["", "ThreadingMixIn", "ThreadPoolMixIn"])
@pytest.mark.parametrize("shares", ["", "allow_reuse_port = True"])
def test_what_a_worker_forked_is_not_waited_for(mix_in: str, shares: str) -> None:
    """The server and its worker end while the helper lives on."""
    with Prefork("processes = 1", shares, FORKS, mix_in=mix_in) as server:
        server.wait_for_workers(1)
        server.who()
        helper = int(server.program.line())
        try:
            server.send(signal.SIGTERM)
            assert server.status() == 0
            assert is_alive(helper)
        finally:
            os.kill(helper, signal.SIGKILL)


def test_without_memory_for_its_page_a_worker_is_made_later(
    running: Running, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor says so and goes on."""
    expect_log(logging.ERROR, "worker 0 cannot be made: .*memory", at_least=2)
    original = terms.mmap.mmap
    errors: list[BaseException] = [OSError(12, "Cannot allocate memory"), MemoryError("no memory")]

    def scarce(*args: Any) -> Any:
        if errors:
            raise errors.pop()
        return original(*args)

    monkeypatch.setattr(terms.mmap, "mmap", scarce)
    server = running(One(LOOPBACK, handlers(sockserve).Echo))
    assert call_within(LIMIT, the_worker_of, server).is_ready
    assert not errors


NO_THREAD = """
def setup_worker(self): pass
import sockserve.concurrency.prefork.worker_main as worker_process
class Scarce(threading.Thread):
    def start(self):
        if self.name == "sockserve-control" and not os.path.exists({path!r}):
            os.close(os.open({path!r}, os.O_CREAT))
            raise RuntimeError("can't start new thread")
        super().start()
worker_process.threading = type("threading", (), {{"Thread": Scarce}})
"""


def test_a_worker_that_cannot_start_its_thread_is_replaced(tmp_path: Any) -> None:
    """The supervisor tells why, and the next one serves."""
    with Prefork("processes = 1", NO_THREAD.format(path=str(tmp_path / "once"))) as server:
        server.who()
        assert "can't start new thread, before it was ready" in server.errors()
