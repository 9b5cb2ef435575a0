"""The live table: who is in it, as what, and from when to when."""

from __future__ import annotations

import concurrent.futures
import gc
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.handlers import handlers
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.core.active_requests import ActiveRequests
from sockserve.core.serving import table_of
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, connect

LOOPBACK = ("127.0.0.1", 0)
ECHO = handlers(sockserve).Echo


@pytest.fixture
def counters() -> sockserve.Counters:
    """Counters for one server."""
    return sockserve.Counters()


# what users see


def test_a_snapshot_tells_who_asks_since_when_and_where(running: Running) -> None:
    """Oldest first, each with its handler; and it stays as it was."""
    server = running(sockserve.ThreadingTCPServer(LOOPBACK, ECHO))
    before = time.monotonic()
    with connect(server) as first:
        wait_until(lambda: len(server.active_requests) == 1)
        with connect(server) as second:
            wait_until(
                lambda: all(each.handler for each in server.active_requests) and len(server.active_requests) == 2
            )
            snapshot = server.active_requests
            assert [each.client_address for each in snapshot] == [first.getsockname(), second.getsockname()]
            assert before <= snapshot[0].since <= snapshot[1].since <= time.monotonic()
            assert [each.state for each in snapshot] == ["handle", "handle"]
            assert all(isinstance(each.handler, ECHO) for each in snapshot)
    assert server.wait_idle(LIMIT)
    assert server.active_requests == ()
    assert len(snapshot) == 2


def test_the_state_follows_the_life_of_a_request(running: Running) -> None:
    """At each hook it is the word of that step."""
    states: list[tuple[str, str]] = []

    class Server(sockserve.ThreadingTCPServer):
        def note(self, hook: str) -> None:
            (request,) = self.active_requests
            states.append((hook, request.state))

        def verify_request(self, request: Any, client_address: Any) -> bool:
            self.note("verify_request")
            return True

        def make_thread(self, target: Callable[[], object]) -> threading.Thread:
            self.note("make_thread")
            return super().make_thread(target)

        def prepare_request(self, request: Any, client_address: Any) -> Any:
            self.note("prepare_request")
            return super().prepare_request(request, client_address)

        def finish_request(self, request: Any, client_address: Any) -> None:
            self.note("finish_request")
            raise ZeroDivisionError

        def handle_error(self, request: Any, client_address: Any) -> None:
            self.note("handle_error")

        def close_request(self, request: Any) -> None:
            self.note("close_request")
            super().close_request(request)

    server = running(Server(LOOPBACK, ECHO))
    assert ask(server, b"") == b""
    assert server.wait_idle(LIMIT)
    assert states == [
        ("verify_request", "verify"),
        ("make_thread", "dispatch"),
        ("prepare_request", "prepare"),
        ("finish_request", "handle"),
        ("handle_error", "error"),
        ("close_request", "shutdown"),
    ]


def test_equal_datagrams_are_told_apart(running: Running) -> None:
    """Two clients that say the same at the same time are two requests."""
    gate = handlers(sockserve).Gate
    server = running(sockserve.ThreadingUDPServer(LOOPBACK, gate))
    with connect(server) as client:
        for _ in range(3):
            client.send(b"same")
            assert gate.begun.take()
        assert len(server.active_requests) == 3
        gate.opened.set()
        assert [client.recv(4) for _ in range(3)] == [b"open"] * 3
    assert server.wait_idle(LIMIT)


def test_a_request_that_was_replaced_is_still_one(running: Running, counters: sockserve.Counters) -> None:
    """``prepare_request()`` may return another socket, as for TLS: the table follows it."""

    class Wrapped(socket.socket):
        pass

    class Server(sockserve.ThreadingTCPServer):
        def prepare_request(self, request: Any, client_address: Any) -> Any:
            family, kind, proto = request.family, request.type, request.proto
            return Wrapped(family, kind, proto, request.detach()), ("somebody", "else")

    server = running(Server(LOOPBACK, ECHO))
    server.add_observer(counters)
    with connect(server) as client:
        wait_until(lambda: server.active_requests and server.active_requests[0].handler)
        (request,) = server.active_requests
        assert request.client_address == ("somebody", "else")
        assert isinstance(request.handler.request, Wrapped)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert server.wait_idle(LIMIT)
    assert (counters.accepted, counters.handled, counters.active) == (1, 1, 0)


# requests that a subclass serves in its own way


class Executing(sockserve.ThreadingMixIn, sockserve.TCPServer):
    """Submits ``process_request_thread()`` to an executor of one thread."""

    executor: concurrent.futures.ThreadPoolExecutor

    def process_request(self, request: Any, client_address: Any) -> None:
        """Submit it."""
        self.executor.submit(self.process_request_thread, request, client_address)


@pytest.fixture
def executing(running: Running, counters: sockserve.Counters) -> Iterator[Executing]:
    """Such a server, and its executor, which ends last."""
    server = Executing(LOOPBACK, ECHO)
    server.add_observer(counters)
    with concurrent.futures.ThreadPoolExecutor(1) as server.executor:
        yield running(server)
        server.drain(LIMIT)


def test_a_queued_request_is_in_progress(executing: Executing, counters: sockserve.Counters) -> None:
    """It is in the table until the executor has served it, and counts once."""
    with connect(executing) as first, connect(executing) as second:
        wait_until(lambda: [each.state for each in executing.active_requests] == ["handle", "kept"])
        assert (counters.accepted, counters.active, counters.handled) == (2, 2, 0)
        assert not executing.wait_idle(0)
        for client in (first, second):
            client.sendall(b"echo")
            client.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b"echo"
    assert executing.wait_idle(LIMIT)
    assert (counters.accepted, counters.active, counters.handled) == (2, 0, 2)


def test_a_drain_waits_for_queued_requests(executing: Executing) -> None:
    """Both end: the one in progress because its input does, the queued one in its turn."""
    with connect(executing) as first, connect(executing) as second:
        wait_until(lambda: [each.state for each in executing.active_requests] == ["handle", "kept"])
        second.shutdown(socket.SHUT_WR)
        assert executing.drain(LIMIT) == (2, 0)
        assert (first.recv(1), second.recv(1)) == (b"", b"")


class Keeping(sockserve.TCPServer):
    """Keeps its requests in a list."""

    kept: list[Any]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Keep it."""
        self.kept.append(request)


@pytest.fixture
def keeping(running: Running, counters: sockserve.Counters) -> Keeping:
    """Such a server."""
    server = Keeping(LOOPBACK, ECHO)
    server.kept = []
    server.add_observer(counters)
    return running(server)


@pytest.mark.usefixtures("short_grace")
def test_a_kept_request_is_never_cut(keeping: Keeping) -> None:
    """Neither by a drain, whose count it is not in, nor by the close."""
    with connect(keeping) as client:
        wait_until(lambda: [each.state for each in keeping.active_requests] == ["kept"])
        assert keeping.drain(0.01) == (0, 0)
        keeping.shutdown()
        keeping.server_close()
        (request,) = keeping.kept
        request.sendall(b"still open")
        assert client.recv(100) == b"still open"
        request.close()


def test_a_kept_request_is_over_when_it_is_forgotten(keeping: Keeping, counters: sockserve.Counters) -> None:
    """Or closed by whichever way: it is not the server's any more."""
    with connect(keeping), connect(keeping), connect(keeping):
        wait_until(lambda: [each.state for each in keeping.active_requests] == ["kept"] * 3)
        keeping.kept.pop().close()
        assert len(keeping.active_requests) == 2
        keeping.shutdown_request(keeping.kept.pop())
        last = keeping.kept.pop()
        keeping.close_request(last)
        assert keeping.wait_idle(LIMIT)
        del last
        gc.collect()
    assert keeping.active_requests == ()
    assert (counters.accepted, counters.active, counters.handled) == (3, 0, 3)


def test_whoever_waits_hears_of_the_close_of_a_kept_request(keeping: Keeping) -> None:
    """Although the object lives on."""
    with connect(keeping):
        wait_until(lambda: [each.state for each in keeping.active_requests] == ["kept"])
        answers: list[bool] = []
        waiting = threading.Thread(target=lambda: answers.append(keeping.wait_idle(LIMIT)))
        waiting.start()
        wait_until(lambda: table_of(keeping).watchers)
        begin = time.monotonic()
        keeping.close_request(keeping.kept[0])
        waiting.join(LIMIT)
        assert answers == [True]
        assert time.monotonic() - begin < LIMIT / 2


@pytest.mark.parametrize("kind", ["stream", "datagram"])
def test_a_request_served_by_an_override_is_over_when_that_returns(
    running: Running, counters: sockserve.Counters, kind: str
) -> None:
    """The recipe of the standard library's documentation: finish it, shut it down."""

    class Own:
        def process_request(self: Any, request: Any, client_address: Any) -> None:
            self.finish_request(request, client_address)
            self.shutdown_request(request)

    base: Any = sockserve.TCPServer if kind == "stream" else sockserve.UDPServer
    server = running(
        type("OwnServer", (Own, base), {})(LOOPBACK, ECHO if kind == "stream" else handlers(sockserve).EchoDatagram)
    )
    server.add_observer(counters)
    assert ask(server, b"own way") == b"own way"
    assert server.wait_idle(LIMIT)
    wait_until(lambda: counters.active == 0)
    assert (counters.accepted, counters.handled) == (1, 1)


# the table itself


def test_the_table_finds_by_identity() -> None:
    """What was entered is found until it is struck out; striking out twice is no error."""
    table = ActiveRequests()
    request = ("data", 1)
    equal = (*request,)
    live = table.add(request, "peer")
    assert table.find(request) is live
    assert table.find(equal) is None
    table.discard(live)
    table.discard(live)
    assert table.find(request) is None
    assert table.all() == []


def test_every_change_is_told_once() -> None:
    """To those who asked for the next one, from whichever thread they asked."""
    table = ActiveRequests()
    for change in (lambda: table.add(object(), "peer"), lambda: table.discard(table.all()[0]), table.touch):
        events = [table.next_change() for _ in range(3)]
        assert not any(event.is_set() for event in events)
        change()
        assert all(event.is_set() for event in events)
        assert table.watchers == []


def test_the_table_is_exact_under_threads() -> None:
    """Ten threads that enter and strike out a thousand requests each leave an empty table."""
    table = ActiveRequests()

    def work() -> None:
        for _ in range(1000):
            live = table.add(object(), "peer")
            assert live in table.all()
            table.discard(live)

    with concurrent.futures.ThreadPoolExecutor(10) as executor:
        for future in [executor.submit(work) for _ in range(10)]:
            future.result()
    assert table.all() == []


# one record for many requests


def test_whoever_has_looked_at_a_request_keeps_it_as_it_was(running: Running) -> None:
    """Datagrams that the loop serves one after the other may share a record, but none that somebody got hold of."""
    found: list[Any] = []

    class Handler(sockserve.BaseRequestHandler[Any, Any]):
        def handle(self) -> None:
            data, sock = self.request
            found.extend(table_of(self.server).all())
            (active,) = self.server.active_requests
            assert active.handler is self
            assert active.client_address == self.client_address
            sock.sendto(data, self.client_address)

    server = running(sockserve.UDPServer(LOOPBACK, Handler))
    with connect(server) as client:
        for word in (b"one", b"two", b"three"):
            client.send(word)
            assert client.recv(10) == word
    assert server.wait_idle(LIMIT)
    assert [live.request[0] for live in found] == [b"one", b"two", b"three"]
    assert [live.handler.request for live in found] == [live.request for live in found]


def test_an_observer_is_heard_from_the_next_request_of_a_batch_on(
    running: Running, counters: sockserve.Counters
) -> None:
    """Also if a handler adds it while the loop takes what waits, and until a handler takes it away."""

    class Handler(sockserve.BaseRequestHandler[Any, Any]):
        def handle(self) -> None:
            data, sock = self.request
            if data == b"add":
                self.server.add_observer(counters)
            elif data == b"remove":
                self.server.remove_observer(counters)
            elif data == b"last":
                sock.sendto(data, self.client_address)

    server = sockserve.UDPServer(LOOPBACK, Handler)
    with connect(server) as client:
        for word in (b"before", b"add", b"counted", b"counted", b"remove", b"after", b"last"):
            client.send(word)
        running(server)
        assert client.recv(10) == b"last"
    assert server.wait_idle(LIMIT)
    # The one that removes it was accepted while it listened.
    assert (counters.accepted, counters.handled, counters.active) == (3, 3, 0)


def test_a_hook_put_on_the_server_by_a_handler_is_called_for_the_next_request(running: Running) -> None:
    """Within a batch, too."""
    asked: list[bytes] = []

    class Handler(sockserve.BaseRequestHandler[Any, Any]):
        def handle(self) -> None:
            data, sock = self.request
            if data == b"first":
                self.server.verify_request = lambda request, _: not asked.append(request[0])
            elif data == b"last":
                sock.sendto(data, self.client_address)

    server = sockserve.UDPServer(LOOPBACK, Handler)
    with connect(server) as client:
        for word in (b"first", b"second", b"last"):
            client.send(word)
        running(server)
        assert client.recv(10) == b"last"
    assert asked == [b"second", b"last"]


@pytest.mark.parametrize("family", ["tcp", "udp"])
def test_what_goes_wrong_with_one_request_is_not_found_in_the_next(running: Running, family: str) -> None:
    """A refusal, an error and a detached one between others that the loop serves."""
    heard: list[tuple[bytes, str]] = []

    class Server(sockserve.UDPServer if family == "udp" else sockserve.TCPServer):  # type: ignore[misc]
        def verify_request(self, request: Any, client_address: Any) -> bool:
            return family == "tcp" or request[0] != b"refused"

        def handle_error(self, request: Any, client_address: Any) -> None:
            heard.append((b"error", self.active_requests[0].state))

    class Handler(sockserve.BaseRequestHandler[Any, Any]):
        def handle(self) -> None:
            word = self.request[0] if family == "udp" else self.request.recv(10)
            (live,) = self.server.active_requests
            assert live.handler is self
            heard.append((word, live.state))
            if word == b"crash":
                raise ZeroDivisionError
            if word == b"detached":
                kept = self.detach_request()
                if family == "tcp":
                    kept.close()
            elif family == "udp" and word == b"last":
                self.request[1].sendto(word, self.client_address)

    server = running(Server(LOOPBACK, Handler))
    words = [b"one", b"crash", b"two", b"detached", b"three", b"refused", b"last"]
    if family == "udp":
        with connect(server) as client:
            for word in words:
                client.send(word)
            assert client.recv(10) == b"last"
    else:
        words.remove(b"refused")
        for word in words:
            assert ask(server, word) == b""
    assert server.wait_idle(LIMIT)
    expected = [(word, "handle") for word in words if word != b"refused"]
    expected.insert(2, (b"error", "error"))
    assert heard == expected
    assert server.active_requests == ()


def test_a_request_whose_connection_is_closed_is_over(running: Running) -> None:
    """A client that has seen the end of its connection is in no list, though its entry may go a moment later."""
    seen: list[object] = []

    class Server(sockserve.ThreadingTCPServer):
        def close_request(self, request: Any) -> None:
            seen.append([live.state for live in self.active_requests])
            super().close_request(request)
            seen.append(self.active_requests)

    assert ask(running(Server(LOOPBACK, ECHO)), b"hello") == b"hello"
    wait_until(lambda: len(seen) == 2)
    assert seen == [["shutdown"], ()]
