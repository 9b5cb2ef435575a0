"""Serving in threads: which of them a server waits for, and what becomes of their errors."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.handlers import Boom
from support.log_watch import ExpectLog
from support.under_test import LIMIT
from support.waiting import is_joining, wait_until

import sockserve
from sockserve.concurrency.threads import WorkerThreads
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, call_within, connect

LOOPBACK = ("127.0.0.1", 0)


class TellThread(sockserve.BaseRequestHandler[Any, Any, Any]):
    """Answers the name of its thread, and whether that is a daemon."""

    def handle(self) -> None:
        """Answer."""
        thread = threading.current_thread()
        self.request.sendall(f"{thread.name} {thread.daemon}".encode())


def make(handler: Any, **attributes: Any) -> Any:
    """Make a threading server with class attributes of its own."""
    return type("Server", (sockserve.ThreadingTCPServer,), attributes)(LOOPBACK, handler)


def test_threads_have_names_that_tell_whose_they_are(running: Running) -> None:
    """The class of the server and a number that no other thread has."""
    server = running(make(TellThread))
    names = {ask(server, b"").decode().split()[0] for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("Server-") for name in names)


def test_daemon_threads_is_read_when_a_thread_is_made(running: Running) -> None:
    """A program may decide after the construction, as Django's runserver does."""
    server = running(make(TellThread))
    assert ask(server, b"").endswith(b"False")
    server.daemon_threads = True
    assert ask(server, b"").endswith(b"True")


@pytest.fixture
def gate() -> Any:
    """A handler that says when it begins and waits until it may go on, by events of this process alone."""
    begun, opened = threading.Event(), threading.Event()

    class Gate(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            begun.set()
            assert opened.wait(LIMIT)
            self.request.sendall(b"open")

    Gate.begun, Gate.opened = begun, opened  # type: ignore[attr-defined]
    return Gate


def test_close_waits_for_its_threads(running: Running, gate: Any) -> None:
    """server_close() returns when the last handler has answered; a second one returns at once."""
    server = running(make(gate))
    with connect(server) as client:
        assert gate.begun.wait(LIMIT)
        server.shutdown()
        closer = threading.Thread(target=server.server_close, daemon=True)
        closer.start()
        wait_until(lambda: is_joining(closer))
        assert server.draining
        gate.opened.set()
        assert client.recv(10) == b"open"
        closer.join(LIMIT)
        assert not closer.is_alive()
        assert not server.draining
    call_within(LIMIT, server.server_close)


@pytest.mark.parametrize("attributes", [{"daemon_threads": True}, {"block_on_close": False}], ids=str)
def test_close_does_not_wait_for_what_it_is_told_to_leave(
    running: Running, gate: Any, attributes: dict[str, bool]
) -> None:
    """Neither a daemon thread nor any, without ``block_on_close``, holds up server_close(), and none is cut by it."""
    server = running(make(gate, **attributes))
    with connect(server) as client:
        assert gate.begun.wait(LIMIT)
        server.shutdown()
        call_within(LIMIT, server.server_close)
        gate.opened.set()
        assert client.recv(10) == b"open"


def test_a_daemon_that_make_thread_made_is_not_waited_for(running: Running, gate: Any) -> None:
    """What counts is the thread itself, not the attribute."""

    def make_thread(_: Any, target: Callable[[], object]) -> threading.Thread:
        return threading.Thread(target=target, daemon=True)

    server = running(make(gate, make_thread=make_thread))
    with connect(server) as client:
        assert gate.begun.wait(LIMIT)
        server.shutdown()
        call_within(LIMIT, server.server_close)
        gate.opened.set()
        assert client.recv(10) == b"open"


def test_a_handler_may_close_its_server(running: Running) -> None:
    """server_close() from a worker waits for all others, and not for itself."""

    class Handler(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            self.server.shutdown()
            self.server.server_close()
            self.request.sendall(b"closed")

    assert ask(running(make(Handler)), b"") == b"closed"


def test_a_server_can_serve_again_after_close(running: Running) -> None:
    """With a new socket the same object serves in threads as before."""
    server = make(TellThread)
    for _ in range(2):
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        assert ask(server, b"").startswith(b"Server-")
        server.shutdown()
        thread.join(LIMIT)
        server.server_close()
        server.socket = sockserve.TCPServer(LOOPBACK, TellThread).socket
    assert ask(running(server), b"").startswith(b"Server-")


@pytest.fixture
def uncaught(monkeypatch: pytest.MonkeyPatch) -> list[type[BaseException]]:
    """The types of what threads let out."""
    caught: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: caught.append(args.exc_type))
    return caught


def test_an_error_of_handle_error_ends_only_its_thread(running: Running, uncaught: list[type[BaseException]]) -> None:
    """What an override of handle_error() raises is the thread's end; the client sees the end, others are served."""

    def handle_error(*_: object) -> None:
        raise KeyError("in handle_error")

    class Handler(TellThread):
        def handle(self) -> None:
            if self.request.recv(10) == b"raise":
                raise Boom
            super().handle()

    server = running(make(Handler, handle_error=handle_error))
    assert ask(server, b"raise") == b""
    assert ask(server, b"") != b""
    wait_until(lambda: uncaught)
    assert uncaught == [KeyError]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_is_no_exception_ends_only_its_thread(
    running: Running, uncaught: list[type[BaseException]], error: type[BaseException]
) -> None:
    """sys.exit() in a handler ends the request, which counts as failed, and not the server; nothing is reported."""

    class Handler(TellThread):
        def handle(self) -> None:
            if self.request.recv(10) == b"raise":
                raise error
            super().handle()

    server = make(Handler)
    counters = sockserve.Counters()
    server.add_observer(counters)
    running(server)
    assert ask(server, b"raise") == b""
    assert ask(server, b"") != b""
    assert server.wait_idle(LIMIT)
    assert (counters.failed, counters.handled) == (1, 1)
    # The interpreter itself is silent about SystemExit only.
    wait_until(lambda: error is SystemExit or uncaught == [error])


def test_a_make_thread_that_fails_is_an_error_of_its_request(running: Running, expect_log: ExpectLog) -> None:
    """A client whose thread cannot be made sees the end, and the next one is served."""
    expected = expect_log(logging.ERROR, "(?s)Exception occurred.*Boom")
    fails = iter([True, False])

    def make_thread(server: Any, target: Callable[[], object]) -> threading.Thread:
        if next(fails):
            raise Boom
        return sockserve.ThreadingTCPServer.make_thread(server, target)

    server = running(make(TellThread, make_thread=make_thread))
    assert ask(server, b"") == b""
    assert ask(server, b"").startswith(b"Server-")
    assert len(expected.wait()) == 1


class Holder:
    """What a program puts in the place of the list of threads: it needs two methods."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.joined = 0

    def append(self, thread: threading.Thread) -> None:
        """Remember it."""
        self.threads.append(thread)

    def join(self) -> None:
        """Wait for all."""
        self.joined += 1
        for thread in self.threads:
            thread.join()


def test_a_program_may_keep_the_threads_itself(running: Running) -> None:
    """An object that a program assigns to ``_threads`` is given each thread, and asked to wait for them at the end."""
    server = running(make(TellThread))
    server._threads = holder = Holder()
    assert ask(server, b"").startswith(b"Server-")
    server.shutdown()
    server.server_close()
    assert len(holder.threads) == 1
    assert holder.joined == 1


def test_the_threads_of_a_server_can_be_looked_at(running: Running, gate: Any) -> None:
    """``_threads`` is there before the first request, has a length, and yields those that are waited for."""
    server = running(make(gate))
    assert list(server._threads) == []
    with connect(server) as client:
        assert gate.begun.wait(LIMIT)
        (thread,) = server._threads
        assert thread.is_alive()
        assert len(server._threads) == 1
        gate.opened.set()
        assert client.recv(10) == b"open"
        thread.join(LIMIT)
    wait_until(lambda: len(server._threads) == 0)


@pytest.fixture
def sleeper() -> Iterator[threading.Thread]:
    """A thread that runs until the test ends."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait, args=(LIMIT,))
    thread.start()
    yield thread
    end.set()
    thread.join()


def test_join_gives_up_in_time(sleeper: threading.Thread) -> None:
    """With a thread that goes on, join() says no after its time-out, and the thread is still waited for."""
    threads = WorkerThreads()
    threads.append(sleeper)
    assert not threads.join(0.01)
    assert not threads.join(0)
    assert list(threads) == [sleeper]


def test_what_is_not_waited_for_can_be_removed_and_finished(sleeper: threading.Thread) -> None:
    """Neither call has an effect on a thread that was never appended."""
    threads = WorkerThreads()
    threads.finished(sleeper)
    threads.remove(sleeper)
    assert len(threads) == 0
    assert threads.join(0)


def test_the_calling_thread_is_not_joined() -> None:
    """A thread that waits for all does not wait for itself."""
    threads = WorkerThreads()
    threads.append(threading.main_thread())
    assert threading.current_thread() is threading.main_thread()
    assert threads.join(0)


def test_handlers_run_at_the_same_time(running: Running) -> None:
    """Three clients whose handlers wait for each other are all served."""
    barrier = threading.Barrier(3)

    class Handler(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            barrier.wait(LIMIT)
            self.request.sendall(b"together")

    server = running(make(Handler))
    clients = [connect(server) for _ in range(3)]
    assert [client.recv(10) for client in clients] == [b"together"] * 3
    for client in clients:
        client.close()
