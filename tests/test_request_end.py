"""The end of a request: the hooks that own it get it open, are called in pairs, and end no loop."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import queue
import socket
import threading
from typing import Any

import pytest
from support.certificates import client_context, server_context
from support.log_watch import ExpectLog
from support.models import HERE, SERVERS
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.core.active_requests import LiveRequest
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, connect

LOOPBACK = ("127.0.0.1", 0)
each_model = pytest.mark.parametrize("model", HERE)


class Upper(sockserve.StreamRequestHandler):
    """Answers one line."""

    def handle(self) -> None:
        """Answer."""
        self.wfile.write(self.rfile.readline().upper())


class Boom(sockserve.BaseRequestHandler):
    """Fails."""

    def handle(self) -> None:
        """Fail."""
        raise ValueError("Boom")


def make(model: str, handler: Any = Upper, **attributes: Any) -> Any:
    """Make a server with hooks of its own."""
    return type("Server", (SERVERS[model],), attributes)(LOOPBACK, handler)


# a failed handshake


def over_tls(server: Any, certificate: pathlib.Path) -> Any:
    """Let the server speak TLS."""
    server.socket = server_context(certificate).wrap_socket(server.socket, server_side=True)
    return server


@each_model
@pytest.mark.parametrize("is_hushed_up", [False, True])
def test_after_a_failed_handshake_finish_request_gives_back_what_process_request_took(
    running: Running, certificate: pathlib.Path, expect_log: ExpectLog, model: str, is_hushed_up: bool
) -> None:
    """It is called, with no handler, and sees the error; then the open request comes to the hooks of its end."""
    hooks: queue.Queue[Any] = queue.Queue()

    class Hooks:
        def process_request(self, request: Any, client_address: Any) -> None:
            hooks.put("process")
            super().process_request(request, client_address)  # type: ignore[misc]

        def finish_request(self, request: Any, client_address: Any) -> None:
            try:
                super().finish_request(request, client_address)  # type: ignore[misc]
            except sockserve.HandshakeError:
                hooks.put("finish")
                if not is_hushed_up:
                    raise

        def handle_error(self, request: Any, client_address: Any) -> None:
            hooks.put(("error", request.getpeername() == client_address))
            super().handle_error(request, client_address)  # type: ignore[misc]

        def shutdown_request(self, request: Any) -> None:
            hooks.put(("shutdown", bool(request.getpeername())))
            super().shutdown_request(request)  # type: ignore[misc]

    expect_log(logging.INFO, "refused .*TLS handshake failed", at_least=0 if is_hushed_up else 1)
    server = over_tls(type("Server", (Hooks, SERVERS[model]), {})(LOOPBACK, Boom), certificate)
    running(server)
    with connect(server, timeout=LIMIT) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        try:
            while client.recv(100):
                pass
        except ConnectionError:
            pass
    expected = ["process", "finish", ("error", True), ("shutdown", True)]
    if is_hushed_up:
        del expected[2]
    assert [hooks.get(timeout=LIMIT) for _ in expected] == expected
    assert server.wait_idle(LIMIT)
    assert hooks.empty()


def test_an_override_that_made_the_tls_socket_itself_leaves_it_to_the_server(
    running: Running, certificate: pathlib.Path, expect_log: ExpectLog
) -> None:
    """What ``prepare_request()`` wrapped and could not shake hands with is closed."""
    context = server_context(certificate)
    made: list[Any] = []

    class Server(sockserve.ThreadingTCPServer):
        def prepare_request(self, request: Any, client_address: Any) -> Any:
            made.append(context.wrap_socket(request, server_side=True, do_handshake_on_connect=False))
            return super().prepare_request(made[0], client_address)

    expected = expect_log(logging.INFO, "refused .*TLS handshake failed")
    server = running(Server(LOOPBACK, Upper))
    with connect(server, timeout=LIMIT) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        expected.wait()
        assert server.wait_idle(LIMIT)
        assert made[0].fileno() == -1


# who owns the end


@each_model
@pytest.mark.parametrize("case", ["refused", "unprepared", "failed", "verify raises"])
def test_shutdown_request_may_write_a_last_line(running: Running, expect_log: ExpectLog, model: str, case: str) -> None:
    """However the request ended, it is neither cut nor closed before."""

    class Hooks:
        def verify_request(self, request: Any, client_address: Any) -> bool:
            if case == "verify raises":
                raise ValueError("Boom")
            return case != "refused"

        def prepare_request(self, request: Any, client_address: Any) -> Any:
            if case == "unprepared":
                raise ValueError("Boom")
            return super().prepare_request(request, client_address)  # type: ignore[misc]

        def handle_error(self, request: Any, client_address: Any) -> None:
            request.sendall(b"error\n")
            super().handle_error(request, client_address)  # type: ignore[misc]

        def shutdown_request(self, request: Any) -> None:
            request.sendall(b"goodbye\n")
            super().shutdown_request(request)  # type: ignore[misc]

    expect_log(logging.ERROR, "Boom", at_least=0 if case == "refused" else 1)
    server = type("Server", (Hooks, SERVERS[model]), {})(LOOPBACK, Boom)
    last_words = b"goodbye\n" if case == "refused" else b"error\ngoodbye\n"
    assert ask(running(server), b"hello\n", timeout=LIMIT) == last_words


@each_model
def test_verify_request_may_hand_a_connection_on(running: Running, model: str) -> None:
    """What it keeps from ``shutdown_request()`` stays as it is when it returns False."""
    handed_on: queue.Queue[Any] = queue.Queue()

    class Hooks:
        def verify_request(self, request: Any, client_address: Any) -> bool:
            handed_on.put(request)
            return False

        def shutdown_request(self, request: Any) -> None:
            """Leave it open."""

    server = type("Server", (Hooks, SERVERS[model]), {})(LOOPBACK, Boom)
    with connect(running(server), timeout=LIMIT) as client, handed_on.get(timeout=LIMIT) as connection:
        assert server.wait_idle(LIMIT)
        client.sendall(b"hello")
        assert connection.recv(10) == b"hello"
        connection.sendall(b"goodbye")
        assert client.recv(10) == b"goodbye"


# what the client of a request that ends can see


@each_model
@pytest.mark.parametrize("case", ["handled", "failed", "refused"])
def test_a_client_that_sees_its_end_is_listed_no_more(
    running: Running, expect_log: ExpectLog, model: str, case: str
) -> None:
    """Already between the half-close and the close, for which ``wait_idle()`` waits all the same."""
    may_close = threading.Event()
    own_view: list[list[str]] = []

    def close_request(self: Any, request: Any) -> None:
        own_view.append([each.state for each in self.active_requests])
        assert may_close.wait(LIMIT)
        SERVERS[model].close_request(self, request)

    expect_log(logging.ERROR, "Boom", at_least=1 if case == "failed" else 0)
    hooks = {"close_request": close_request, "verify_request": lambda *_: case != "refused"}
    server = running(make(model, Boom if case == "failed" else Upper, **hooks))
    with connect(server, timeout=LIMIT) as client:
        try:
            client.sendall(b"" if case == "failed" else b"hello\n")
            assert client.recv(10) == (b"HELLO\n" if case == "handled" else b"")
            assert case != "handled" or client.recv(10) == b""
            assert server.active_requests == ()
            assert not server.wait_idle(0)
        finally:
            may_close.set()
        assert server.wait_idle(LIMIT)
    assert own_view == [["shutdown"]]


def test_a_request_that_its_subclass_ends_is_listed_no_more(running: Running) -> None:
    """A kept one, whose socket is still open when its client sees the end."""
    kept: queue.Queue[Any] = queue.Queue()

    class Server(sockserve.TCPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            kept.put(request)

        def close_request(self, request: Any) -> None:
            """Leave it open."""

    server = running(Server(LOOPBACK, Upper))
    with connect(server, timeout=LIMIT) as client, kept.get(timeout=LIMIT) as request:
        wait_until(lambda: [each.state for each in server.active_requests] == ["kept"])
        server.shutdown_request(request)
        assert client.recv(10) == b""
        assert server.active_requests == ()
        assert not server.wait_idle(0)
    assert server.wait_idle(LIMIT)


def test_a_client_that_does_not_take_its_end_over_tls_is_listed(running: Running, certificate: pathlib.Path) -> None:
    """Its worker waits for it, and a limit of connections of one client has to count that."""

    class Handler(sockserve.BaseRequestHandler):
        def handle(self) -> None:
            # Beneath TLS, whose records would have to be complete.
            self.request.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    socket.socket.send(self.request, bytes(65536))
            self.request.settimeout(LIMIT)

    class Server(sockserve.ThreadingTCPServer):
        _serving_patience = LIMIT

    server = running(over_tls(Server(LOOPBACK, Handler), certificate))
    with (
        connect(server, timeout=LIMIT) as plain,
        client_context(certificate).wrap_socket(plain, server_hostname="localhost") as client,
    ):
        wait_until(lambda: [each.state for each in server.active_requests] == ["shutdown"])
        while socket.socket.recv(client, 65536):
            pass
        assert server.active_requests == ()
    assert server.wait_idle(LIMIT)


@each_model
@pytest.mark.parametrize("hook", ["shutdown_request", "close_request"])
@pytest.mark.parametrize("case", ["handled", "refused", "failed"])
def test_an_error_of_closing_is_reported_once_and_ends_nothing(
    running: Running, expect_log: ExpectLog, model: str, hook: str, case: str
) -> None:
    """The connection is closed all the same, no hook is called twice, and the next client is served."""
    calls: list[str] = []
    ended = sockserve.Counters()

    def fail_once(self: Any, request: Any) -> None:
        calls.append(hook)
        if len(calls) == 1:
            raise OSError("cannot close")
        getattr(SERVERS[model], hook)(self, request)

    def verify_request(*_: Any) -> bool:
        return case != "refused" or len(calls) > 0

    class Handler(Upper):
        def handle(self) -> None:
            if case == "failed" and not calls:
                raise ValueError("Boom")
            super().handle()

    expected = expect_log(logging.ERROR, "cannot close")
    expect_log(logging.ERROR, "Boom", at_least=1 if case == "failed" else 0)
    server = make(model, Handler, **{hook: fail_once, "verify_request": verify_request})
    server.add_observer(ended)
    running(server)
    with connect(server, timeout=LIMIT) as client:
        client.sendall(b"first\n")
        try:
            while client.recv(100):
                pass
        except ConnectionError:
            pass
    assert server.wait_idle(LIMIT)
    assert ask(server, b"second\n", timeout=LIMIT) == b"SECOND\n"
    assert server.wait_idle(LIMIT)
    assert len(expected.wait()) == 1
    assert len(calls) == 2
    assert (ended.active, ended.accepted) == (0, 2)


# between dispatch and the end

THREADS = [sockserve.ThreadingTCPServer, sockserve.GreenletTCPServer]


@pytest.mark.parametrize("base", THREADS)
@pytest.mark.parametrize("error", [ValueError("Boom"), MemoryError("Boom")])
def test_an_override_of_process_request_thread_that_raises_is_reported(
    running: Running, expect_log: ExpectLog, base: Any, error: Exception
) -> None:
    """Its request is closed, and no longer in progress."""

    class Server(base):  # type: ignore[misc]
        def process_request_thread(self, request: Any, client_address: Any) -> None:
            raise error

    expect_log(logging.ERROR, "Boom")
    server = running(Server(LOOPBACK, Upper))
    assert ask(server, b"", timeout=LIMIT) == b""
    assert server.wait_idle(LIMIT)
    assert server.active_requests == ()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("base", [*THREADS, sockserve.ForkingTCPServer])
def test_an_override_of_process_request_thread_may_forget_its_request(running: Running, base: Any) -> None:
    """The connection is closed with the last reference to it."""

    class Server(base):  # type: ignore[misc]
        def process_request_thread(self, request: Any, client_address: Any) -> None:
            """Do nothing."""

    server = running(Server(LOOPBACK, Upper))
    assert ask(server, b"", timeout=LIMIT) == b""
    assert server.wait_idle(LIMIT)
    assert server.active_requests == ()


def test_an_override_of_process_request_thread_may_serve_it_in_another_thread(running: Running) -> None:
    """Until then the request is kept, and a drain waits for it."""
    kept: queue.Queue[Any] = queue.Queue()

    class Server(sockserve.ThreadingTCPServer):
        def process_request_thread(self, request: Any, client_address: Any) -> None:
            kept.put((request, client_address))

    server = running(Server(LOOPBACK, Upper))
    with connect(server, timeout=LIMIT) as client:
        request = kept.get(timeout=LIMIT)
        wait_until(lambda: [each.state for each in server.active_requests] == ["kept"])
        client.sendall(b"hello\n")
        other = threading.Thread(target=super(Server, server).process_request_thread, args=request)
        del request
        other.start()
        assert client.recv(10) == b"HELLO\n"
        other.join()
    assert server.wait_idle(LIMIT)


def test_a_worker_without_memory_before_it_has_begun_leaves_nothing_open(
    running: Running, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first thing that it does may fail already."""
    claim = LiveRequest.claim
    failures: list[Any] = []

    def fail_once(self: LiveRequest, owner: str) -> bool:
        if not failures:
            failures.append(self.client_address)
            raise MemoryError("Boom")
        return claim(self, owner)

    monkeypatch.setattr(LiveRequest, "claim", fail_once)
    expect_log(logging.ERROR, "Boom")
    server = running(sockserve.ThreadingTCPServer(LOOPBACK, Upper))
    assert ask(server, b"", timeout=LIMIT) == b""
    assert ask(server, b"hello\n", timeout=LIMIT) == b"HELLO\n"
    assert server.wait_idle(LIMIT)


def test_an_error_of_closing_the_parents_copy_does_not_end_the_childs_connection(
    running: Running, expect_log: ExpectLog
) -> None:
    """The child goes on with its answer."""
    parent = os.getpid()

    class Server(sockserve.ForkingTCPServer):
        def close_request(self, request: Any) -> None:
            if os.getpid() == parent:
                raise OSError("cannot close")
            super().close_request(request)

    expected = expect_log(logging.ERROR, "cannot close")
    server = running(Server(LOOPBACK, Upper))
    with connect(server, timeout=LIMIT) as client:
        expected.wait()
        client.sendall(b"hello\n")
        assert client.recv(10) == b"HELLO\n"
    assert server.wait_idle(LIMIT)
