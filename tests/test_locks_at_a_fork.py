"""A lock that another thread holds at a fork is held for ever in the child: nothing there may wait for it."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from support.handlers import handlers
from support.models import HERE, mix_ins
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, connect

LOCKS = (type(threading.Lock()), type(threading.RLock()))


def values_of(owner: object) -> Iterator[object]:
    """What an object has in its attributes."""
    yield from getattr(owner, "__dict__", {}).copy().values()
    for name in getattr(type(owner), "__slots__", ()):
        yield getattr(owner, name, None)


def locks() -> dict[int, Any]:
    """Each lock that an object or a module of the package has, and those in its events."""
    owners: list[object] = [module for name, module in sys.modules.copy().items() if name.startswith("sockserve")]
    owners += [each for each in gc.get_objects() if str(type(each).__module__).startswith("sockserve")]
    owners += [each for each in gc.get_objects() if isinstance(each, sockserve.BaseServer)]
    found: dict[int, Any] = {}
    for owner in owners:
        for value in values_of(owner):
            lock = value._cond._lock if isinstance(value, threading.Event) else value  # type: ignore[attr-defined]
            if isinstance(lock, LOCKS):
                found[id(lock)] = lock
    return found


@contextlib.contextmanager
def all_held() -> Generator[None]:
    """Another thread holds all of those locks that are free, or will soon be."""
    held: list[Any] = []
    is_held, is_over = threading.Event(), threading.Event()

    def hold() -> None:
        held.extend(lock for lock in locks().values() if lock.acquire(timeout=0.02))
        is_held.set()
        is_over.wait(LIMIT)
        for lock in held:
            lock.release()

    thread = threading.Thread(target=hold)
    thread.start()
    assert is_held.wait(LIMIT)
    try:
        yield
    finally:
        is_over.set()
        thread.join(LIMIT)
    assert held


def child_of(function: Callable[[], object]) -> int:
    """The exit status of a child that was forked then, and calls this: 0 if it returned."""
    with all_held():
        pid = os.fork()
        if not pid:
            status = 1
            try:
                signal.alarm(int(LIMIT))
                function()
                status = 0
            finally:
                os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def made(model: str, handler: Any) -> Any:
    """A server of a model, whose requests are counted."""
    options = {"max_workers": 2, "slow_handler_warning": None, "observers": (sockserve.Counters(),)}
    return type("Server", (*mix_ins(model), sockserve.TCPServer), options)(("127.0.0.1", 0), handler)


@pytest.mark.parametrize("model", HERE)
def test_a_child_closes_what_another_thread_serves(running: Running, model: str) -> None:
    """Every verb of a server returns, and a client in service belongs to the parent."""
    server = running(made(model, handlers(sockserve).Echo))
    with connect(server) as client:
        wait_until(lambda: server.active_requests)

        def end() -> None:
            server.suspend()
            server.resume()
            server.shutdown()
            server.drain(0)
            server.add_observer(sockserve.Counters())
            server.server_close()
            gc.collect()

        assert child_of(end) == 0
        client.sendall(b"still here")
        client.shutdown(socket.SHUT_WR)
        assert client.makefile("rb").read() == b"still here"


@pytest.mark.parametrize("model", HERE)
def test_a_child_serves_anew(running: Running, model: str) -> None:
    """What another thread of the parent serves is served in the child, at an address of its own."""
    server = running(made(model, handlers(sockserve).Echo))
    assert ask(server, b"before") == b"before"

    def serve() -> None:
        server.socket.close()
        server.socket = socket.create_server(("127.0.0.1", 0))
        server.server_address = server.socket.getsockname()

        def client() -> None:
            server.wait_until_serving(LIMIT)
            assert ask(server, b"in the child") == b"in the child"
            server.shutdown()

        thread = threading.Thread(target=client)
        thread.start()
        server.serve_forever()
        thread.join(LIMIT)

    assert child_of(serve) == 0
    assert ask(server, b"after") == b"after"


@pytest.mark.parametrize("model", ["thread", "pool"])
def test_a_handlers_child_returns(running: Running, model: str) -> None:
    """A process that a handler forked comes to its end, with its request counted."""
    statuses: list[int] = []

    class Handler(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            data = self.rfile.readline()
            if data == b"fork\n":
                with all_held():
                    pid = os.fork()
                    if not pid:
                        signal.alarm(int(LIMIT))
                        return
                statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            self.wfile.write(data)

    server = running(made(model, Handler))
    # The child ends the connection, which is the parent's too.
    ask(server, b"fork\n")
    wait_until(lambda: statuses)
    assert statuses == [0]
    assert ask(server, b"after\n") == b"after\n"
