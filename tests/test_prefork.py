"""Serving in worker processes: what they do with requests, and what becomes of them when the server stops."""

from __future__ import annotations

import contextlib
import errno
import http.server
import logging
import os
import signal
import socketserver
import threading
from typing import Any

import pytest
from support.handlers import Signal, handlers
from support.log_watch import ExpectLog
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.concurrency.cpus import cpu_count
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, call_within, connect, leaks

LOOPBACK = ("127.0.0.1", 0)


class Two(sockserve.PreForkMixIn, sockserve.TCPServer):
    """Two inline workers."""

    processes = 2


class TwoInThreads(sockserve.PreForkMixIn, sockserve.ThreadingMixIn, sockserve.TCPServer):
    """Two workers that serve in threads."""

    processes = 2


class OverStdlib(sockserve.PreForkMixIn, socketserver.TCPServer):
    """Two workers of a standard library's server."""

    processes = 2


class OverStdlibInThreads(sockserve.PreForkMixIn, sockserve.ThreadingMixIn, socketserver.TCPServer):
    """The same with threads of ours."""

    processes = 2


class Who(sockserve.StreamRequestHandler):
    """Tells which worker it runs in, and keeps it busy until its client leaves."""

    def handle(self) -> None:
        """Answer."""
        self.wfile.write(b"%d %d\n" % (self.server.worker_id, os.getpid()))
        self.rfile.read()


def worker_of(server: Any) -> tuple[int, int]:
    """The number and the process id of the worker that takes the next connection."""
    number, pid = map(int, ask(server, b"").split())
    return number, pid


def workers_of(server: Any, count: int = 2) -> dict[int, int]:
    """The process ids of all workers, by their numbers."""
    with contextlib.ExitStack() as clients:
        answers = [clients.enter_context(connect(server)).makefile("rb") for _ in range(count)]
        return dict(tuple(map(int, clients.enter_context(answer).readline().split())) for answer in answers)


@pytest.mark.parametrize("server_class", [Two, TwoInThreads, OverStdlib, OverStdlibInThreads])
def test_workers_answer(running: Running, server_class: Any) -> None:
    """Every client is answered by a worker; then the server stops and leaves nobody."""
    server = running(server_class(LOOPBACK, Who), poll_interval=0.01)
    found = {worker_of(server) for _ in range(20)}
    assert {number for number, _ in found} <= {0, 1}
    assert os.getpid() not in {pid for _, pid in found}
    assert server.worker_id is None


def test_a_request_goes_on_after_shutdown_until_the_close(running: Running) -> None:
    """shutdown() returns while a worker serves; nobody accepts then, and server_close() waits for the answer."""
    gate = handlers(sockserve).Gate
    server = running(Two(LOOPBACK, gate))
    with connect(server) as client:
        assert gate.begun.wait()
        call_within(LIMIT, server.shutdown)
        closing = threading.Thread(target=server.server_close)
        closing.start()
        gate.opened.set()
        assert client.recv(10) == b"open"
        closing.join(LIMIT)
        assert not closing.is_alive()


def test_a_worker_that_takes_too_long_is_cut(running: Running, expect_log: ExpectLog) -> None:
    """After drain_timeout server_close() cuts what is in progress, and a worker that ignores that is killed."""
    expect_log(logging.WARNING, "cut")
    expect_log(logging.WARNING, "does not end; it is killed")

    class Deaf(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"!")
            threading.Event().wait()

    server = running(Two(LOOPBACK, Deaf))
    server.drain_timeout = 0.1
    with connect(server) as client:
        assert client.recv(1) == b"!"
        server.shutdown()
        server.server_close()
        assert client.recv(10) == b""


def test_a_drain_ends_the_workers_and_resume_begins_anew(running: Running) -> None:
    """drain() says how many requests finished; nobody serves then, until resume()."""
    server = running(Two(LOOPBACK, handlers(sockserve).Echo))
    with connect(server) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert server.drain(LIMIT) == (1, 0)
        assert client.recv(1) == b""
    assert server.draining
    server.resume()
    assert ask(server, b"hello") == b"hello"


def test_it_serves_again_after_shutdown() -> None:
    """A second serve_forever() has workers again, on the same socket."""
    with Two(LOOPBACK, Who) as server:
        timeout = server.socket.gettimeout()
        for _ in range(2):
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            assert server.wait_until_serving(LIMIT)
            assert worker_of(server)
            server.shutdown()
            thread.join(LIMIT)
    assert timeout is None


def test_a_second_serve_forever_is_refused(running: Running) -> None:
    """While one runs the other raises, and the first goes on."""
    server = running(Two(LOOPBACK, Who))
    with pytest.raises(sockserve.AlreadyServingError):
        server.serve_forever()
    assert worker_of(server)


def test_a_closed_server_cannot_serve() -> None:
    """As any other server, it says so."""
    server = Two(LOOPBACK, Who)
    server.server_close()
    with pytest.raises(sockserve.ServerClosedError):
        server.serve_forever()


def test_shutdown_before_the_start_ends_it_at_once() -> None:
    """The first serve_forever() returns."""
    with Two(LOOPBACK, Who) as server:
        server.shutdown()
        call_within(LIMIT, server.serve_forever)


def test_one_loop_is_not_run_by_several_processes() -> None:
    """attach() is refused."""
    with Two(LOOPBACK, Who) as server, sockserve.Loop() as loop, pytest.raises(TypeError, match="serve_forever"):
        server.attach(loop)


def test_each_place_has_a_socket_where_the_port_may_be_shared(running: Running) -> None:
    """With allow_reuse_port every worker answers on a listener of its own, and none is left after the close."""

    class Sharing(Two):
        allow_reuse_port = True

    class Inode(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"%d %d\n" % (self.server.worker_id, os.fstat(self.server.fileno()).st_ino))

    server = running(Sharing(LOOPBACK, Inode))
    sockets: dict[int, int] = {}

    def both_answered() -> bool:
        sockets.update([worker_of(server)])
        return len(sockets) == 2

    wait_until(both_answered)
    assert len(set(sockets.values())) == 2
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionRefusedError):
        connect(server.server_address)


@pytest.mark.parametrize("forking", [sockserve.ForkingMixIn, socketserver.ForkingMixIn])
def test_forks_in_forks_are_refused(forking: Any) -> None:
    """A combination that makes no sense is a TypeError that says why, when the class is made."""
    with pytest.raises(TypeError, match="a fork per request"):
        type("S", (sockserve.PreForkMixIn, forking, sockserve.TCPServer), {})


def test_a_wrong_order_is_refused() -> None:
    """Behind the server class, or behind what runs a loop of its own, the mix-in would have no effect."""

    class Loops:
        def serve_forever(self, poll_interval: float = 0.5) -> None:
            """Something else."""

    with pytest.raises(TypeError, match=r"class S\(PreForkMixIn, TCPServer\)"):
        type("S", (sockserve.TCPServer, sockserve.PreForkMixIn), {})
    with pytest.raises(TypeError, match="write PreForkMixIn before it"):
        type("S", (Loops, sockserve.PreForkMixIn, sockserve.TCPServer), {})


def test_without_pidfd_workers_are_replaced_all_the_same(
    running: Running, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel has no descriptor for a process, the supervisor looks often."""
    expect_log(logging.WARNING, "was killed by SIGKILL")

    def no_pidfd(*_: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", no_pidfd)
    server = running(Two(LOOPBACK, handlers(sockserve).Echo))
    wait_until(lambda: len(leaks.child_processes()) == 2)
    pids = set(leaks.child_processes())
    os.kill(min(pids), signal.SIGKILL)
    wait_until(lambda: len(set(leaks.child_processes()) - pids) == 1)
    assert ask(server, b"hello") == b"hello"


def test_a_fork_that_fails_is_tried_again(
    running: Running, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a process to be had at first, the workers come a little later."""
    expect_log(logging.ERROR, f"worker 0 cannot be made: .*{os.strerror(errno.EAGAIN)}")
    fork = os.fork

    def no_fork() -> int:
        monkeypatch.setattr(os, "fork", fork)
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", no_fork)
    server = running(Two(LOOPBACK, Who))
    assert worker_of(server)


def test_the_processes_are_the_cpus_by_default() -> None:
    """As many as this process may use."""
    assert cpu_count() == len(os.sched_getaffinity(0))


class Greets(http.server.BaseHTTPRequestHandler):
    """Answers a GET, silently."""

    def do_GET(self) -> None:
        """Greet."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("mix_in", [None, sockserve.ThreadingMixIn, sockserve.ThreadPoolMixIn])
def test_the_standard_librarys_http_server(running: Running, mix_in: Any, expect_log: ExpectLog) -> None:
    """http.server runs in workers, and each is replaced after its number of requests."""
    # On a fast machine five requests are over within a second, twice in a row.
    expect_log(logging.WARNING, "early end number", at_least=0)
    bases = (sockserve.PreForkMixIn, *([mix_in] if mix_in else []), http.server.HTTPServer)
    attributes = {"processes": 1, "max_requests": 5, "max_requests_jitter": 0}
    server = running(type("Server", bases, attributes)(LOOPBACK, Greets), poll_interval=0.01)
    first = set(leaks.child_processes())

    def has_been_replaced() -> bool:
        assert ask(server.server_address, b"GET / HTTP/1.0\r\n\r\n").endswith(b"hello")
        return not set(leaks.child_processes()) & first

    wait_until(has_been_replaced)


def test_a_worker_that_is_late_serves_nobody_after_shutdown() -> None:
    """``shutdown()`` does not wait for one that is still being set up; that one ends without having accepted."""
    begun, may_go_on = Signal(), Signal()

    class Server(sockserve.PreForkMixIn, sockserve.TCPServer):
        processes = 1

        def setup_worker(self) -> None:
            begun.set()
            may_go_on.wait()

    server = Server(LOOPBACK, handlers(sockserve).WriteFirst)
    loop = threading.Thread(target=server.serve_forever)
    loop.start()
    assert begun.take()
    call_within(LIMIT, server.shutdown)
    loop.join()
    with connect(server) as client, contextlib.suppress(ConnectionError):
        may_go_on.set()
        server.server_close()
        assert client.recv(10) == b""
