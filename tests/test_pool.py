"""A pool of threads: how many there are, who takes what, and what happens when one dies or none is free."""

from __future__ import annotations

import contextlib
import contextvars
import http.server
import itertools
import logging
import select
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.handlers import handlers
from support.log_watch import ExpectLog
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, call_within, connect

LOOPBACK = ("127.0.0.1", 0)
ECHO = handlers(sockserve).Echo


@pytest.fixture(params=["epoll", "selector"])
def poller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the workers wait on: the platform's shared poller, or a selector with a leader."""
    if request.param == "selector":
        monkeypatch.delattr(select, "epoll")


class Crowd:
    """Handlers that are in ``handle()`` until ``opened``."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.opened = threading.Event()
        self.threads: set[threading.Thread] = set()
        crowd = self

        class Handler(sockserve.BaseRequestHandler[Any, Any, Any]):
            def handle(self) -> None:
                crowd.threads.add(threading.current_thread())
                crowd.begun.release()
                assert crowd.opened.wait(LIMIT)
                self.request.sendall(b"open")

        self.handler = Handler

    def enter(self, clients: contextlib.ExitStack, server: Any, count: int) -> list[socket.socket]:
        """Connect so many clients, and wait until a worker has each of them."""
        connected = [clients.enter_context(connect(server, timeout=LIMIT)) for _ in range(count)]
        for _ in connected:
            assert self.begun.acquire(timeout=LIMIT)
        return connected


@pytest.fixture
def crowd(expect_log: ExpectLog) -> Iterator[Crowd]:
    """Let go at the end, whatever happened."""
    # A busy machine may take a second to do what a test does while it holds all workers.
    expect_log(logging.WARNING, "workers? has been free", at_least=0)
    crowd = Crowd()
    yield crowd
    crowd.opened.set()


def pool(handler: Any = ECHO, **attributes: Any) -> Any:
    """A server with these attributes."""
    return type("Server", (sockserve.ThreadPoolTCPServer,), attributes)(LOOPBACK, handler)


def workers() -> list[str]:
    """The names of the threads of a pool."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("Server-")]


@pytest.mark.usefixtures("poller")
def test_more_clients_than_workers_wait_in_the_backlog(running: Running, crowd: Crowd) -> None:
    """With all workers busy nobody else is accepted; as soon as one is free the others are, and all are answered."""
    server = running(pool(crowd.handler, max_workers=3))
    with contextlib.ExitStack() as clients:
        served = crowd.enter(clients, server, 3)
        waiting = [clients.enter_context(connect(server, timeout=LIMIT)) for _ in range(5)]
        assert len(server.active_requests) == 3
        assert not crowd.begun.acquire(blocking=False)
        crowd.opened.set()
        assert [client.recv(100) for client in served + waiting] == [b"open"] * 8
    assert len(crowd.threads) <= 3


def test_threads_are_started_when_they_are_needed_and_end_when_they_are_not(running: Running, crowd: Crowd) -> None:
    """One waits from the start; there is always one that waits, up to the most; in the end the fewest are left."""
    server = running(pool(crowd.handler, min_workers=2, max_workers=4, idle_timeout=0.05))
    wait_until(lambda: len(workers()) == 2)
    with contextlib.ExitStack() as clients:
        for busy, threads in enumerate([2, 3, 4, 4], 1):
            crowd.enter(clients, server, 1)
            wait_until(lambda threads=threads: len(workers()) == threads)
            assert len(server.active_requests) == busy
        crowd.opened.set()
    wait_until(lambda: len(workers()) == 2)
    assert ask(server, b"") == b"open"


def test_threads_are_named_after_the_server(running: Running) -> None:
    """A thread's name is the class's name and a number."""
    running(pool(min_workers=3, max_workers=3))
    wait_until(lambda: len(set(workers())) == 3)
    assert all(name.removeprefix("Server-").isdigit() for name in workers())


def test_make_thread_chooses_the_thread(running: Running) -> None:
    """An override may give it another name, class or kind."""
    seen: list[threading.Thread] = []

    class Server(sockserve.ThreadPoolTCPServer):
        daemon_threads = True

        def make_thread(self, target: Any) -> threading.Thread:
            thread = super().make_thread(target)
            thread.name = "mine"
            seen.append(thread)
            return thread

    server = running(Server(LOOPBACK, ECHO))
    assert ask(server, b"hello") == b"hello"
    assert {(thread.name, thread.daemon) for thread in seen} == {("mine", True)}


def test_the_last_that_waits_sleeps(running: Running, crowd: Crowd) -> None:
    """With ``idle_timeout = 0`` a worker that is needed, because all others are busy, does not spin."""
    server = running(pool(crowd.handler, max_workers=3, idle_timeout=0))
    with contextlib.ExitStack() as clients:
        crowd.enter(clients, server, 1)
        wait_until(lambda: len(workers()) == 2)
        threading.Event().wait(0.1)
        begun = time.process_time()
        threading.Event().wait(0.2)
        assert time.process_time() - begun < 0.1
        crowd.opened.set()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_worker_that_dies_is_replaced(running: Running, expect_log: ExpectLog, error: type[BaseException]) -> None:
    """What is no Exception ends the thread; the log says so, and another serves on."""
    expected = expect_log(logging.ERROR, f"(?s)Server-.* dies, another worker takes its place.*{error.__name__}")

    class Handler(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            if self.request.recv(100) == b"die":
                raise error
            self.request.sendall(b"alive")

    server = running(pool(Handler, max_workers=1))
    for _ in range(3):
        assert ask(server, b"die") == b""
        assert ask(server, b"live") == b"alive"
    assert len(expected.wait(3)) == 3


def test_what_handle_error_raises_ends_only_the_worker(running: Running, expect_log: ExpectLog) -> None:
    """An override that raises again, as werkzeug's, costs a thread and nothing else."""
    expect_log(logging.ERROR, "(?s)takes its place.*Boom")

    class Server(sockserve.ThreadPoolTCPServer):
        max_workers = 1

        def handle_error(self, request: Any, client_address: Any) -> None:
            raise  # noqa: PLE0704 - it is called inside the `except`

    server = running(Server(LOOPBACK, handlers(sockserve).Crash))
    assert ask(server, b"1") == b""
    assert ask(server, b"2") == b""


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


def test_of_what_a_request_leaves_behind_the_next_sees_what_is_the_threads(running: Running) -> None:
    """A time-out goes with its connection; a ``threading.local`` stays, which is where programs keep connections."""
    kept = threading.local()

    class Handler(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            kept.requests = getattr(kept, "requests", 0) + 1
            self.request.sendall(f"{self.request.gettimeout()} {kept.requests}".encode())
            self.request.settimeout(LIMIT)

    server = running(pool(Handler, max_workers=1))
    assert [ask(server, b"") for _ in range(3)] == [b"None 1", b"None 2", b"None 3"]


def test_context_variables_are_fresh_for_each_request() -> None:
    """A request sees those of whoever called ``serve_forever()``, and none that another request set."""

    class Handler(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            self.request.sendall(VARIABLE.get().encode())
            VARIABLE.set("another's")

    server = pool(Handler, max_workers=1)

    def serve() -> None:
        VARIABLE.set("the server's")
        server.serve_forever()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert [ask(server, b"") for _ in range(3)] == [b"the server's"] * 3
    finally:
        server.shutdown()
        server.server_close()
        thread.join(LIMIT)


@pytest.mark.usefixtures("poller")
def test_the_coordinator_is_responsive_while_all_workers_are_busy(running: Running, crowd: Crowd) -> None:
    """``service_actions()`` goes on, and ``shutdown()`` returns while they still work; they work on."""
    turns = threading.Semaphore(0)

    class Server(sockserve.ThreadPoolTCPServer):
        max_workers = 2

        def service_actions(self) -> None:
            turns.release()

    server = running(Server(LOOPBACK, crowd.handler), poll_interval=0.01)
    with contextlib.ExitStack() as clients:
        busy = crowd.enter(clients, server, 2)
        while turns.acquire(blocking=False):
            pass
        for _ in range(3):
            assert turns.acquire(timeout=LIMIT)
        call_within(LIMIT, server.shutdown)
        assert len(server.active_requests) == 2
        crowd.opened.set()
        assert [client.recv(100) for client in busy] == [b"open"] * 2


def test_nobody_free_for_a_second_is_one_warning(running: Running, crowd: Crowd, expect_log: ExpectLog) -> None:
    """It says how many clients wait, and that once for as long as nobody is free."""
    expected = expect_log(logging.WARNING, "none of 2 workers has been free for 1 s, and 3 or more clients wait")
    server = running(pool(crowd.handler, max_workers=2))
    with contextlib.ExitStack() as clients:
        crowd.enter(clients, server, 2)
        for _ in range(3):
            clients.enter_context(connect(server, timeout=LIMIT))
        assert len(expected.wait()) == 1
        crowd.opened.set()


def test_a_thread_that_cannot_start_is_one_fewer(running: Running, crowd: Crowd, expect_log: ExpectLog) -> None:
    """The pool goes on with those it has and says so; without a single one it does not begin."""
    refused = expect_log(logging.WARNING, "goes on with 2 workers, because no thread starts: can't start new thread")
    may_start = 2

    class Unstartable(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    class Server(sockserve.ThreadPoolTCPServer):
        max_workers = 3

        def make_thread(self, target: Any) -> threading.Thread:
            nonlocal may_start
            may_start -= 1
            return super().make_thread(target) if may_start >= 0 else Unstartable(target=target)

    server = running(Server(LOOPBACK, crowd.handler))
    with contextlib.ExitStack() as clients:
        crowd.enter(clients, server, 2)
        # As long as nobody is free: a third is not wanted any more when one is.
        refused.wait()
        waiting = clients.enter_context(connect(server, timeout=LIMIT))
        crowd.opened.set()
        assert waiting.recv(100) == b"open"
    with Server(LOOPBACK, ECHO) as another, pytest.raises(RuntimeError, match="can't start new thread"):
        another.serve_forever()


def test_a_handler_may_stop_the_server(running: Running) -> None:
    """``shutdown()`` in a worker returns when the loop has ended; the answer arrives, and nobody else is served."""

    class Handler(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            self.server.shutdown()
            self.request.sendall(b"stopped: %d" % self.server.wait_until_serving(0))

    server = running(pool(Handler))
    assert ask(server, b"") == b"stopped: 0"


@pytest.mark.usefixtures("poller")
def test_a_suspended_pool_takes_nothing_and_a_resumed_one_does(running: Running) -> None:
    """After ``wait_idle()`` on a suspended server not one request comes; ``resume()`` lets them in."""
    server = running(pool(min_workers=4, max_workers=4))
    for _ in range(20):
        with contextlib.ExitStack() as clients:
            for _ in range(4):
                clients.enter_context(connect(server)).close()
            server.suspend()
            assert server.wait_idle(LIMIT)
            with connect(server, timeout=LIMIT) as client:
                client.sendall(b"hello")
                assert server.active_requests == ()
                server.resume()
                assert client.recv(100) == b"hello"


@pytest.mark.usefixtures("poller")
def test_a_pool_serves_again_after_it_stopped() -> None:
    """Each stay in a loop has threads of its own, and none is left between."""
    server = pool(min_workers=2, max_workers=4)
    for _ in range(3):
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert ask(server, b"hello") == b"hello"
        server.shutdown()
        thread.join(LIMIT)
        wait_until(lambda: workers() == [])
    server.server_close()


def test_single_requests_are_served_by_the_caller() -> None:
    """``handle_request()`` needs no pool."""
    threads = []

    class Handler(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            threads.append(threading.current_thread())

    with pool(Handler) as server, connect(server):
        server.handle_request()
    assert threads == [threading.current_thread()]


def test_several_pools_in_one_loop() -> None:
    """A pool may be one of several servers that one thread coordinates."""
    servers = [pool(max_workers=2) for _ in range(3)]
    with sockserve.Loop() as loop:
        for server in servers:
            server.attach(loop)
        thread = threading.Thread(target=loop.run)
        thread.start()
        assert [ask(server, b"hello") for server in servers] == [b"hello"] * 3
        for server in servers:
            server.shutdown()
        thread.join(LIMIT)
    for server in servers:
        server.server_close()


MIX_INS = [sockserve.ThreadingMixIn, sockserve.ForkingMixIn, socketserver.ThreadingMixIn, socketserver.ForkingMixIn]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("mix_in", MIX_INS)
def test_a_senseless_combination_is_refused(mix_in: Any, before: bool) -> None:
    """A thread or a process for each request, in a pool of threads, is a TypeError that says why."""
    bases = (mix_in, sockserve.ThreadPoolMixIn) if before else (sockserve.ThreadPoolMixIn, mix_in)
    with pytest.raises(TypeError, match=f"serve their requests themselves, and {mix_in.__name__} gives"):
        type("Server", (*bases, sockserve.TCPServer), {})


def test_the_wrong_order_is_refused() -> None:
    """Behind the server class the mix-in would have no effect."""
    with pytest.raises(TypeError, match=r"write class Server\(ThreadPoolMixIn, TCPServer\)"):
        type("Server", (sockserve.TCPServer, sockserve.ThreadPoolMixIn), {})


class Page(http.server.BaseHTTPRequestHandler):
    """Answers with the thread that serves."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(threading.current_thread().name.encode())

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


@pytest.mark.usefixtures("poller")
def test_a_standard_librarys_server_is_served_by_the_pool(running: Running) -> None:
    """``class Server(ThreadPoolMixIn, http.server.HTTPServer)`` has the pool's threads, table, and quick shutdown."""

    class Server(sockserve.ThreadPoolMixIn, http.server.HTTPServer):
        max_workers = 2

    server = running(Server(LOOPBACK, Page), poll_interval=LIMIT)
    answers = [ask(server.server_address, b"GET / HTTP/1.0\r\n\r\n") for _ in range(5)]
    assert all(b"\r\n\r\nServer-" in answer for answer in answers)


def test_overrides_behind_the_mix_in_are_called(running: Running) -> None:
    """The mix-in takes the place of no hook that a server class overrides."""
    called = []

    class Base(http.server.HTTPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            called.append("process_request")
            super().process_request(request, client_address)

        def verify_request(self, request: Any, client_address: Any) -> bool:
            called.append("verify_request")
            return super().verify_request(request, client_address)

        def shutdown(self) -> None:
            called.append("shutdown")
            super().shutdown()

    class Server(sockserve.ThreadPoolMixIn, Base):
        pass

    server = running(Server(LOOPBACK, Page))
    assert b"Server-" in ask(server.server_address, b"GET / HTTP/1.0\r\n\r\n")
    server.shutdown()
    assert called == ["verify_request", "process_request", "shutdown"]


def test_datagrams_are_served_by_several_threads(running: Running) -> None:
    """One that takes long holds up nobody else."""
    opened = threading.Event()

    class Handler(sockserve.DatagramRequestHandler[Any, Any]):
        def handle(self) -> None:
            if self.packet == b"wait":
                assert opened.wait(LIMIT)
            self.wfile.write(self.packet)

    class Server(sockserve.ThreadPoolUDPServer):
        max_workers = 2

    server = running(Server(LOOPBACK, Handler))
    with connect(server, timeout=LIMIT) as slow:
        slow.send(b"wait")
        for number in itertools.islice(itertools.count(), 20):
            assert ask(server, b"%d" % number) == b"%d" % number
        opened.set()
        assert slow.recv(100) == b"wait"
