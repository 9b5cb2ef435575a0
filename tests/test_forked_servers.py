"""What a forked process does with its copy of a server that its parent serves: end it, or serve it anew."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.handlers import handlers
from support.models import HERE, MODELS, mix_ins
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.concurrency.cooperative.sockets import CooperativeSocket
from sockserve.core.loop import Loop
from sockserve.core.source import Source
from sockserve.greenlets import spawn
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, connect

OPTIONS = {"max_workers": 2, "slow_handler_warning": None}


def made(model: str, handler: Any) -> Any:
    """A server of a model on a free port."""
    return type("Server", (*mix_ins(model), sockserve.TCPServer), OPTIONS)(("127.0.0.1", 0), handler)


def in_child(function: Callable[[], object]) -> int:
    """The exit status of a forked process that calls this: 0 if it returned true, 1 if not or if it raised."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(int(LIMIT))
            status = int(not function())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def asked_in_a_thread(server: Any, data: bytes) -> list[bytes]:
    """What a server said that this thread has served until a client in another one had its answer."""
    answers: list[bytes] = []

    def client() -> None:
        server.wait_until_serving(LIMIT)
        answers.append(ask(server, data))
        server.shutdown()

    thread = threading.Thread(target=client)
    thread.start()
    server.serve_forever()
    thread.join(LIMIT)
    return answers


def forks_when_told(end: Callable[[], object]) -> type[Any]:
    """Handlers that echo, and fork a child for "fork", which does ``end()`` and returns from its handler."""

    class Handler(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            data = self.rfile.readline()
            if data == b"fork\n":
                pid = os.fork()
                if not pid:
                    signal.alarm(int(LIMIT))
                    end()
                    return
                os.waitpid(pid, 0)
            self.wfile.write(data)

    return Handler


@pytest.mark.parametrize("verb", ["shutdown", "suspend", "drain", "server_close"])
@pytest.mark.parametrize("model", MODELS)
def test_a_verb_in_a_child_returns_and_the_parent_serves_on(running: Running, model: str, verb: str) -> None:
    """A child that was forked by another thread than the loop's has nothing to wait for, and stops nothing."""
    server = running(made(model, handlers(sockserve).Echo))
    assert ask(server, b"before") == b"before"

    def call() -> bool:
        getattr(server, verb)()
        return True

    assert in_child(call) == 0
    assert [ask(server, b"after") for _ in range(3)] == [b"after"] * 3


@pytest.mark.parametrize("model", MODELS)
def test_a_child_serves_anew_what_its_parent_serves(running: Running, model: str) -> None:
    """``serve_forever()`` in a forked child claims a place of its own."""
    server = running(made(model, handlers(sockserve).Echo))
    assert ask(server, b"before") == b"before"

    def serve() -> bool:
        server.socket.close()
        server.socket = socket.create_server(("127.0.0.1", 0))
        server.server_address = server.socket.getsockname()
        return asked_in_a_thread(server, b"in the child") == [b"in the child"]

    assert in_child(serve) == 0
    assert [ask(server, b"after") for _ in range(3)] == [b"after"] * 3


@pytest.mark.parametrize("model", ["inline", "thread", "pool"])
def test_multiprocessing_serves_beside_its_parent(running: Running, model: str) -> None:
    """``Process(target=server.serve_forever)`` beside a served server shares its listener and its clients."""
    server = running(made(model, handlers(sockserve).Echo))
    assert ask(server, b"before") == b"before"
    other = multiprocessing.get_context("fork").Process(target=server.serve_forever)
    other.start()
    try:
        server.suspend()
        assert ask(server, b"in the child") == b"in the child"
        assert other.exitcode is None
        server.resume()
    finally:
        other.kill()
        other.join(LIMIT)
    assert [ask(server, b"after") for _ in range(3)] == [b"after"] * 3


@pytest.mark.parametrize("model", [model for model in HERE if model != "inline"])
def test_a_handlers_child_that_ends_leaves_the_parent_serving(running: Running, model: str) -> None:
    """``sys.exit()`` in a process that a handler forked ends that process; the parent has its clients and its loop."""
    server = running(made(model, forks_when_told(sys.exit)))
    with connect(server) as other:
        wait_until(lambda: server.active_requests)
        ask(server, b"fork\n")
        other.sendall(b"still here\n")
        assert other.makefile("rb").read() == b"still here\n"
    assert [ask(server, b"after\n") for _ in range(3)] == [b"after\n"] * 3


@pytest.mark.parametrize("model", ["thread", "pool"])
def test_a_handlers_child_that_returns_takes_no_client(running: Running, model: str) -> None:
    """A worker's thread in a child takes nothing more: it would take events that the parent is told once."""
    server = running(made(model, forks_when_told(lambda: None)))
    for _ in range(3):
        ask(server, b"fork\n")
        assert [ask(server, b"after\n") for _ in range(4)] == [b"after\n"] * 4


@pytest.mark.parametrize("model", HERE)
def test_a_loop_that_was_attached_before_a_fork_serves_in_the_child(model: str) -> None:
    """What does not run yet goes on in either process, with descriptors of its own."""
    with Loop() as loop, made(model, handlers(sockserve).Echo) as server:
        server.attach(loop)

        def serve() -> bool:
            answers: list[bytes] = []

            def client() -> None:
                answers.append(ask(server, b"in the child"))
                server.shutdown()

            thread = threading.Thread(target=client)
            thread.start()
            loop.run()
            thread.join(LIMIT)
            return answers == [b"in the child"]

        assert in_child(serve) == 0
        thread = threading.Thread(target=loop.run)
        thread.start()
        assert ask(server, b"after") == b"after"
        server.shutdown(LIMIT)
        thread.join(LIMIT)


def test_a_wake_up_before_the_first_wait_in_a_child_is_heard() -> None:
    """What a thread says after the loop's look, and before a child's loop has descriptors, ends its first wait."""

    class Told(Source):
        max_wait = None
        is_told = False

        def before_wait(self) -> None:
            if self.is_told:
                self.leave()
                return
            # As a thread does whose client was served meanwhile, by a worker of a pool.
            self.is_told = True
            loop.wake()

        def leave(self) -> None:
            loop.remove(self)

    def run() -> bool:
        loop.run()
        return True

    with Loop() as loop:
        loop.add(Told())
        assert in_child(run) == 0


def test_the_programs_wakeup_descriptor_is_given_back_in_a_child() -> None:
    """Also by a loop that was made in the parent, and opens its own descriptors in its first wait."""
    reader, writer = socket.socketpair()
    with reader, writer, Loop() as loop, made("inline", handlers(sockserve).Echo) as server:
        writer.setblocking(False)
        server.attach(loop)

        def serve() -> bool:
            before = signal.set_wakeup_fd(writer.fileno())
            try:
                loop.call_soon(server.shutdown)
                loop.run()
            finally:
                found = signal.set_wakeup_fd(before)
            return found == writer.fileno()

        assert in_child(serve) == 0


@pytest.mark.parametrize("model", MODELS)
def test_a_client_in_service_outlives_a_child_that_ends(running: Running, model: str) -> None:
    """Whatever a child unwinds and collects at its end, a connection that the parent serves goes on, at once too."""
    server = running(made(model, forks_when_told(lambda: None)))
    with connect(server) as client:
        wait_until(lambda: server.active_requests)

        def end() -> bool:
            server.shutdown()
            server.server_close()
            gc.collect()
            return not server.active_requests

        assert in_child(end) == 0
        client.sendall(b"still here\n")
        assert client.makefile("rb").read() == b"still here\n"


def test_a_forked_greenlets_child_serves_no_other_client(running: Running) -> None:
    """A child that goes on in its loop has the worker that forked, and no other: those are the parent's."""
    child, parent = socket.socketpair()
    parent.settimeout(LIMIT)

    class Handler(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            while data := self.rfile.readline():
                if data == b"fork\n" and not os.fork():
                    signal.alarm(int(LIMIT))
                    waits = CooperativeSocket(fileno=child.detach())
                    # In the first turn of the loop of this process, which looks for what the others wait for.
                    spawn(waits.sendall, b"waits")
                    os._exit(int(waits.recv(10) != b"end"))
                self.wfile.write(data)

    server = running(made("greenlet", Handler))
    try:
        with connect(server) as one, connect(server) as other:
            wait_until(lambda: len(server.active_requests) == 2)
            one.sendall(b"fork\n")
            one.settimeout(LIMIT)
            assert one.recv(100) == b"fork\n"
            assert parent.recv(10) == b"waits"
            other.settimeout(LIMIT)
            for _ in range(20):
                other.sendall(b"x\n")
                assert other.recv(100) == b"x\n"
            parent.sendall(b"end")
        assert os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]) == 0
    finally:
        child.close()
        parent.close()
