"""Serving in child processes: what becomes of the children, and what of their parent."""

from __future__ import annotations

import errno
import logging
import logging.handlers
import os
import pathlib
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from typing import Any

import pytest
from support.forking import LOOPBACK, Counted, SaysGoodbye
from support.handlers import Boom, handlers
from support.log_watch import ExpectLog
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, call_within, connect, leaks


def raises(_: Any) -> None:
    """Fail as a handler."""
    raise Boom


def exits(_: Any) -> None:
    """Leave the child as a program does."""
    sys.exit(0)


def leaves(_: Any) -> None:
    """Leave the child at once."""
    os._exit(3)


def is_killed(_: Any) -> None:
    """Let the kernel end the child."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("handle", "level", "log"),
    [
        (raises, logging.ERROR, "Boom"),
        (exits, None, ""),
        (leaves, None, ""),
        (is_killed, logging.WARNING, "the child that served .* was killed by signal 9"),
    ],
)
def test_the_parent_learns_that_a_child_failed(
    running: Running, expect_log: ExpectLog, handle: Any, level: int | None, log: str
) -> None:
    """However a child ends without an answer, its client sees the end, and the request counts as failed, once."""
    if level is not None:
        expect_log(level, log)
    server = running(Counted(type("Handler", (sockserve.BaseRequestHandler,), {"handle": handle})))
    assert ask(server, b"") == b""
    assert server.outcome() == (0, 1)


def test_the_parents_observers_hear_of_it_in_the_parent(running: Running) -> None:
    """What happens to a request that a child serves is told once, in the process that accepted it."""
    told: list[tuple[str, int]] = []

    def hear(word: str) -> Any:
        return lambda *_: told.append((word, os.getpid()))

    words = ("accept", "verify", "dispatch", "prepare", "handle", "error", "shutdown")
    server = sockserve.ForkingTCPServer(LOOPBACK, handlers(sockserve).Echo)
    server.add_observer(type("Observer", (sockserve.Observer,), {f"on_{word}": hear(word) for word in words})())
    assert ask(running(server), b"hello") == b"hello"
    assert server.wait_idle(LIMIT)
    assert told == [(word, os.getpid()) for word in ("accept", "verify", "dispatch", "handle", "shutdown")]


@pytest.mark.parametrize("max_children", [1, 3])
def test_no_more_than_max_children_serve_at_once(running: Running, max_children: int) -> None:
    """Clients beyond that wait in the backlog; as soon as a child has ended the next is served."""
    gate = handlers(sockserve).Gate
    server = running(Counted(gate, max_children=max_children))
    clients = [connect(server) for _ in range(max_children + 2)]
    for _ in range(max_children):
        assert gate.begun.take()
    assert not gate.begun.wait(0.05)
    wait_until(lambda: len(server.active_children) == max_children)
    gate.opened.set()
    for client in clients:
        assert client.recv(10) == b"open"
        client.close()
    assert server.outcome() == (max_children + 2, 0)


def test_max_children_is_read_when_it_is_used(running: Running) -> None:
    """A server that is full takes one more as soon as it may have more children."""
    gate = handlers(sockserve).Gate
    server = running(Counted(gate, max_children=1))
    with connect(server), connect(server):
        assert gate.begun.take()
        server.max_children = 2
        server.suspend()
        server.resume()
        assert gate.begun.take()
        gate.opened.set()


def test_handle_request_waits_for_a_child_when_there_are_too_many() -> None:
    """Without a loop a full server takes its request as soon as a child has ended, and not before."""
    gate = handlers(sockserve).Gate
    with Counted(gate, max_children=1) as server, connect(server) as first, connect(server) as second:
        server.handle_request()
        assert gate.begun.take()
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        assert not gate.begun.wait(0.05)
        gate.opened.set()
        assert first.recv(10) == b"open"
        assert second.recv(10) == b"open"
        thread.join(LIMIT)
        assert not thread.is_alive()


def test_handle_timeout_reaps() -> None:
    """A call of handle_request() in which no request came leaves no child that has ended."""
    with Counted(handlers(sockserve).Echo, timeout=0.01) as server:
        with connect(server) as client:
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            server.handle_request()
            assert client.recv(100) == b"hello"
        (child,) = server.active_children
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        server.handle_request()
        assert server.active_children == set()


def test_our_mix_in_reaps_under_the_stdlibs_handle_request() -> None:
    """On a server class of the standard library children that ended do not pile up either."""

    class Server(sockserve.ForkingMixIn, socketserver.TCPServer):
        pass

    with Server(LOOPBACK, handlers(sockserve).Echo) as server:
        for _ in range(4):
            thread = threading.Thread(target=server.handle_request, daemon=True)
            thread.start()
            assert ask(server, b"hello") == b"hello"
            thread.join(LIMIT)
            children = server.active_children
            assert children is not None
            assert len(children) == 1
            os.waitid(os.P_PID, children.pop(), os.WEXITED | os.WNOWAIT)


def test_subprocesses_report_to_who_started_them(running: Running) -> None:
    """While children come and go, in the parent and in the children, exit statuses reach subprocess unharmed."""

    class Handler(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            status = subprocess.run(["/bin/sh", "-c", "exit 5"], check=False).returncode
            self.request.sendall(str(status).encode())

    server = running(Counted(Handler, max_children=2))
    for _ in range(10):
        with connect(server) as client, connect(server) as another:
            assert subprocess.run(["/bin/sh", "-c", "exit 7"], check=False).returncode == 7
            assert (client.recv(10), another.recv(10)) == (b"5", b"5")


def test_a_child_that_somebody_else_reaped_is_forgotten() -> None:
    """A program with a waitpid(-1) of its own takes statuses away; the server neither fails nor waits for ever."""
    gate = handlers(sockserve).Gate
    server = Counted(gate)
    with server, connect(server) as client:
        server.handle_request()
        assert gate.begun.wait()
        gate.opened.set()
        assert client.recv(10) == b"open"
        assert os.waitpid(-1, 0)[0] in server.active_children
        server.collect_children()
        assert server.active_children == set()
        assert server.wait_idle(LIMIT)


def test_a_program_that_ignores_sigchld_can_serve(running: Running) -> None:
    """Where the kernel reaps all children by itself there is nothing left to wait for, and nothing waits."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        server = running(Counted(handlers(sockserve).Echo, max_children=1))
        for _ in range(3):
            assert ask(server, b"hello") == b"hello"
        assert server.outcome() == (3, 0)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_fork_that_fails_is_an_error_of_its_request(
    running: Running, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a process to be had a client is turned away, the next is served, and SIGTERM is not held back."""
    expected = expect_log(logging.ERROR, f"(?s)Exception occurred.*{os.strerror(errno.EAGAIN)}")
    fork = os.fork
    server = running(Counted(handlers(sockserve).Echo))

    def no_fork() -> int:
        monkeypatch.setattr(os, "fork", fork)
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", no_fork)
    assert ask(server, b"") == b""
    assert ask(server, b"hello") == b"hello"
    assert len(expected.wait()) == 1
    assert server.outcome() == (1, 1)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EMFILE])
def test_without_pidfd_children_are_reaped_all_the_same(
    running: Running, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Where the kernel has no descriptor for a child, for ever or for now, the server looks often."""

    def no_pidfd(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pidfd_open", no_pidfd)
    server = running(Counted(handlers(sockserve).Echo, max_children=1), poll_interval=60)
    for _ in range(3):
        assert ask(server, b"hello") == b"hello"
    wait_until(lambda: not server.active_children)
    assert server.outcome() == (3, 0)
    gate = handlers(sockserve).Gate
    server.RequestHandlerClass = gate
    with connect(server) as client:
        assert gate.begun.wait()
        server.shutdown()
        gate.opened.set()
        call_within(LIMIT, server.server_close)
        assert client.recv(10) == b"open"


def test_requests_leave_no_descriptor_in_the_parent(running: Running) -> None:
    """After each request a running server comes to have the descriptors again that it had before."""
    server = running(Counted(handlers(sockserve).Echo))
    before = leaks.take_inventory().descriptors
    for _ in range(10):
        assert ask(server, b"hello") == b"hello"
        wait_until(lambda: leaks.take_inventory().descriptors == before)


def test_a_server_sleeps_while_a_child_serves(running: Running) -> None:
    """The end of a child wakes the loop once, though a younger child holds a copy of every descriptor of the parent."""
    ticks = []
    server = Counted(SaysGoodbye)
    server.add_observer(type("Observer", (sockserve.Observer,), {"on_tick": lambda *_: ticks.append(1)})())
    running(server)
    with connect(server) as older, connect(server) as younger:
        assert older.recv(10)
        assert younger.recv(10)
        older.sendall(b"bye\n")
        wait_until(lambda: len(server.active_children) == 1)
        before = len(ticks)
        assert not threading.Event().wait(0.1)
        assert len(ticks) - before < 5
        younger.sendall(b"bye\n")
    assert server.outcome() == (2, 0)


def test_a_child_knows_of_its_own_request_only(running: Running) -> None:
    """Requests that other children serve are not in a child's table: it could not wait for their end."""

    class Handler(SaysGoodbye):
        def handle(self) -> None:
            self.wfile.write(str(len(self.server.active_requests)).encode())
            self.rfile.readline()

    server = running(Counted(Handler))
    with connect(server) as older, connect(server) as younger:
        assert (older.recv(10), younger.recv(10)) == (b"1", b"1")
        assert len(server.active_requests) == 2
        for client in (older, younger):
            client.sendall(b"bye\n")


def test_a_child_leaves_the_path_of_its_server_alone(running: Running, tmp_path: pathlib.Path) -> None:
    """A Unix server serves a second client after the first one's child has ended."""
    server = running(sockserve.ForkingUnixStreamServer(str(tmp_path / "server"), handlers(sockserve).Echo))
    for _ in range(2):
        assert ask(server, b"hello") == b"hello"
        wait_until(lambda: not server.active_children)
        assert (tmp_path / "server").is_socket()


def test_a_server_without_a_socket_attribute_can_fork(running: Running) -> None:
    """The mix-in needs no more of a server than the hooks: get_request() and fileno() may come from anywhere."""

    class Server(sockserve.ForkingMixIn, sockserve.BaseServer[Any, Any]):
        def __init__(self) -> None:
            super().__init__(LOOPBACK, handlers(sockserve).Echo)
            self.listener = socket.create_server(LOOPBACK)

        def fileno(self) -> int:
            return self.listener.fileno()

        def get_request(self) -> Any:
            return self.listener.accept()

        def close_request(self, request: socket.socket) -> None:
            request.close()

        def server_close(self) -> None:
            super().server_close()
            self.listener.close()

    server = running(Server())
    assert ask(server.listener.getsockname(), b"hello") == b"hello"
