"""Rows F1 to F7 of what is wrong with ``socketserver.ForkingMixIn``: each test fails there and passes here."""

# ruff: noqa: N802 - a test has the id of its row

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.handlers import Signal, handlers
from support.scripts import run_script
from support.under_test import LIMIT, S

from sockserve.pytest_plugin import Running
from sockserve.testing import ask, call_within, connect

LOOPBACK = ("127.0.0.1", 0)


def forking(gate: Any, **attributes: Any) -> Any:
    """A forking server with attributes of its own; against the stdlib, too, it is to leave its loop quickly."""
    return type("Server", (S.ForkingTCPServer,), attributes)(LOOPBACK, gate)


def test_F1_a_child_does_not_keep_the_port(running: Running) -> None:
    """Once the parent has closed its listener nobody is left who would accept, though a child still serves."""
    gate = handlers(S).Gate
    server = running(forking(gate, block_on_close=False), poll_interval=0.01)
    with connect(server) as client:
        assert gate.begun.wait()
        server.shutdown()
        server.server_close()
        with pytest.raises(ConnectionRefusedError):
            connect(server.server_address).close()
        gate.opened.set()
        assert client.recv(10) == b"open"
    server.collect_children(blocking=True)


def test_F2_a_full_server_can_be_shut_down(running: Running) -> None:
    """With ``max_children`` at work and another client waiting, shutdown() returns."""
    gate = handlers(S).Gate
    server = running(forking(gate, max_children=1), poll_interval=0.01)
    with connect(server) as served, connect(server):
        assert gate.begun.wait()
        call_within(LIMIT, server.shutdown)
        gate.opened.set()
        assert served.recv(10) == b"open"


def test_F3_exit_statuses_of_other_children_are_left_alone(running: Running) -> None:
    """A full server reaps its own children only: what subprocess started reports its exit status to subprocess."""
    gate = handlers(S).Gate
    server = running(forking(gate, max_children=1), poll_interval=0.001)
    with connect(server) as client:
        assert gate.begun.wait()
        statuses = {subprocess.run(["/bin/sh", "-c", "exit 7"], check=False).returncode for _ in range(50)}
        gate.opened.set()
        assert client.recv(10) == b"open"
    assert statuses == {7}


def test_F4_handle_request_reaps_the_children_that_have_ended() -> None:
    """In a loop over handle_request() the children that ended are reaped by the next call, not only after silence."""
    with forking(handlers(S).Echo) as server:
        for _ in range(5):
            client = call_and_ask(server.handle_request, server)
            assert client == b"hello"
            (child,) = server.active_children
            # The child is a zombie now, and stays one.
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)


def call_and_ask(handle_request: Callable[[], object], server: Any) -> bytes:
    """Let a server take one request in a thread; return the answer."""
    thread = threading.Thread(target=handle_request, daemon=True)
    thread.start()
    answer = ask(server, b"hello")
    thread.join(LIMIT)
    assert not thread.is_alive()
    return answer


def test_F5_the_mixins_timeout_is_not_that_of_handle_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """``ForkingMixIn.timeout`` is there for those who read it, and a server without a time-out of its own waits on."""
    assert S.ForkingTCPServer.timeout == 300
    # Or this test would have to wait that long.
    monkeypatch.setattr(S.ForkingMixIn, "timeout", 0.001)
    timed_out = Signal()
    with forking(handlers(S).Echo, handle_timeout=lambda _: timed_out.set()) as server:
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        assert not timed_out.wait(0.3)
        assert ask(server, b"hello") == b"hello"
        thread.join(LIMIT)
        assert not thread.is_alive()


def test_F7_what_a_child_prints_and_logs_gets_out() -> None:
    """Buffered output of a handler, printed or logged, is written when its child ends, and the parent's only once."""
    output = run_script("""
import logging, logging.handlers, socket, sys

class Handler(S.BaseRequestHandler):
    def handle(self):
        print("printed by the child")
        log.warning("logged by the child")
        self.request.sendall(b"done")

log = logging.getLogger("program")
log.propagate = False
log.addHandler(logging.handlers.MemoryHandler(100, target=logging.StreamHandler(sys.stdout)))
print("printed by the parent")
with S.ForkingTCPServer(("127.0.0.1", 0), Handler) as server:
    with socket.create_connection(server.server_address) as client:
        server.handle_request()
        assert client.recv(10) == b"done"
""")
    assert sorted(output.splitlines()) == ["logged by the child", "printed by the child", "printed by the parent"]
