"""How the children of a forking server end: drained, cut, left behind, or hanging."""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import sys
import threading
from typing import Any

import pytest
from support.forking import Counted, SaysGoodbye
from support.handlers import Signal, handlers
from support.log_watch import ExpectLog
from support.serving import Operator, serve_with
from support.under_test import LIMIT
from support.waiting import is_asleep, wait_until, wait_until_blocked

import sockserve
from sockserve.concurrency import children
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, connect


def terminate(child: int) -> None:
    """Send SIGTERM to a child that waits for its client."""
    wait_until_blocked(child)
    os.kill(child, signal.SIGTERM)


def test_sigterm_drains_a_child(running: Running) -> None:
    """A child that gets SIGTERM, from whomever, sees the end of its input, and its answer arrives."""
    server = running(Counted(SaysGoodbye))
    with connect(server) as client, client.makefile("rb") as answer:
        terminate(int(answer.readline()))
        assert answer.read() == b"True"
    assert server.outcome() == (1, 0)
    assert not server.draining


class DeafOnce(SaysGoodbye):
    """Does not hear the first signal, as a child that gets it just before recv(2)."""

    def setup(self) -> None:
        """Lose it."""
        super().setup()
        before = signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, before))


def test_a_drain_reaches_a_child_that_did_not_hear_it(running: Running) -> None:
    """It is told again, whoever waits for it: with a loop in another thread, without a loop, and in ``serve()``."""
    server = running(Counted(DeafOnce))
    with connect(server) as client, client.makefile("rb") as answer:
        wait_until_blocked(int(answer.readline()))
        # Before, it would be this process that ends the child's input.
        wait_until(lambda: server.active_children)
        assert server.drain(LIMIT) == (1, 0)
        assert answer.read() == b"True"
    with Counted(DeafOnce) as server, connect(server) as client, client.makefile("rb") as answer:
        server.handle_request()
        wait_until_blocked(int(answer.readline()))
        assert server.drain(LIMIT) == (1, 0)
        assert answer.read() == b"True"

    def script(operator: Operator) -> None:
        with connect(operator.server) as client, client.makefile("rb") as answer:
            wait_until_blocked(int(answer.readline()))
            wait_until(lambda: operator.server.active_children)
            operator.signal()
            assert answer.read() == b"True"

    assert serve_with(script, DeafOnce, "tcp://127.0.0.1:0", model="fork", drain_timeout=LIMIT).handled == 1


def test_a_drain_at_the_moment_of_the_fork_reaches_the_child(running: Running) -> None:
    """A drain that begins when the parent gives up its copy of the connection ends the child's input all the same."""
    drained = []

    class Server(Counted):
        parent = os.getpid()

        def close_request(self, request: Any) -> None:
            super().close_request(request)
            if os.getpid() == self.parent and not drainer.ident:
                drainer.start()
                wait_until(lambda: is_asleep(sys._current_frames().get(drainer.ident or 0)))

    server = Server(SaysGoodbye)
    drainer = threading.Thread(target=lambda: drained.append(server.drain(LIMIT / 2)), daemon=True)
    running(server)
    with connect(server) as client, client.makefile("rb") as answer:
        assert answer.readline()
        assert answer.read() == b"True"
    drainer.join(LIMIT)
    assert drained == [(1, 0)]


def test_a_drain_before_the_parent_knows_its_child_reaches_it(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drain that begins between the fork and its return in the parent is told to the child as well."""
    drained, open_pidfd = [], children.open_pidfd

    class Handler(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            wait_until(lambda: self.server.draining)

    def drain_first(pid: int) -> int | None:
        drainer.start()
        wait_until(lambda: is_asleep(sys._current_frames().get(drainer.ident or 0)))
        return open_pidfd(pid)

    monkeypatch.setattr(children, "open_pidfd", drain_first)
    server = running(Counted(Handler))
    drainer = threading.Thread(target=lambda: drained.append(server.drain(LIMIT / 2)), daemon=True)
    assert ask(server, b"") == b""
    drainer.join(LIMIT)
    assert drained == [(1, 0)]


def test_a_child_does_not_run_its_parents_handlers(running: Running) -> None:
    """SIGTERM to a child is no business of the function that the parent has set for it."""
    asked = Signal()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        server = running(Counted(SaysGoodbye))
        with connect(server) as client, client.makefile("rb") as answer:
            terminate(int(answer.readline()))
            assert answer.read() == b"True"
        assert server.outcome() == (1, 0)
        assert not asked.wait(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_close_kills_what_does_not_end(running: Running, expect_log: ExpectLog) -> None:
    """A child that still serves after ``drain_timeout`` is killed by server_close(), which says so."""
    cut = expect_log(logging.WARNING, r"cut \('127.0.0.1', \d+\), in progress for")
    killed = expect_log(logging.WARNING, "was killed by signal 9")
    server = running(Counted(SaysGoodbye, drain_timeout=0.05))
    with connect(server) as client, client.makefile("rb") as answer:
        assert answer.readline()
        server.shutdown()
        server.server_close()
        assert answer.read() == b""
    assert (len(cut.lines), len(killed.lines)) == (1, 1)
    assert server.outcome() == (0, 1)


def test_children_may_outlive_their_server(running: Running) -> None:
    """Without ``block_on_close`` server_close() returns while a child serves; who wants to waits for it afterwards."""
    gate = handlers(sockserve).Gate
    server = running(Counted(gate, block_on_close=False))
    with connect(server) as client:
        assert gate.begun.wait()
        server.shutdown()
        server.server_close()
        (child,) = server.active_children
        # It is a child of ours still, and serves.
        assert os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        gate.opened.set()
        assert client.recv(10) == b"open"
        server.collect_children(blocking=True)
    assert server.active_children == set()
    assert server.outcome() == (1, 0)


def test_a_child_ends_though_a_lock_of_its_streams_was_held(
    running: Running, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another thread was printing at the moment of the fork keeps no child for ever in the flush at its end."""
    killed = expect_log(logging.WARNING, f"was killed by signal {signal.SIGALRM:d}")
    begun, released, fork = threading.Event(), threading.Event(), os.fork

    class Terminal(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            begun.set()
            assert released.wait(LIMIT)
            return len(data)

    stdout = io.TextIOWrapper(io.BufferedWriter(Terminal()), line_buffering=True)
    printing = threading.Thread(target=stdout.write, args=["a line\n"], daemon=True)

    def fork_while_it_prints() -> int:
        printing.start()
        assert begun.wait(LIMIT)
        pid = fork()
        if pid:
            released.set()
            printing.join(LIMIT)
        return pid

    monkeypatch.setattr(children, "FLUSH_LIMIT", 0.1)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(os, "fork", fork_while_it_prints)
    server = running(Counted(handlers(sockserve).Echo))
    assert ask(server, b"hello") == b"hello"
    assert server.outcome() == (0, 1)
    assert len(killed.lines) == 1


def test_an_interrupt_after_the_fork_ends_its_request_once() -> None:
    """Ctrl-C just when the child has begun: the child goes on with the request, and its end is the only one."""

    class Server(Counted):
        parent = os.getpid()
        interrupts = 1

        def close_request(self, request: Any) -> None:
            super().close_request(request)
            if os.getpid() == self.parent and self.interrupts:
                self.interrupts -= 1
                raise KeyboardInterrupt

    with Server(handlers(sockserve).Echo) as server, connect(server) as client:
        with pytest.raises(KeyboardInterrupt):
            server.handle_request()
        client.shutdown(socket.SHUT_WR)
        server.server_close()
    assert server.active_children == set()
    counters = server.counters
    assert (counters.accepted, counters.active, counters.handled, counters.failed) == (1, 0, 1, 0)
