"""Rows T1 to T10 of what is wrong with ``socketserver``'s threads: each test fails there and passes here.

T1 is cured there, and passes on both.
"""

# ruff: noqa: N802 - a test has the id of its row

from __future__ import annotations

import contextvars
import gc
import logging
import signal
import socket
import threading
import types
import weakref
from typing import Any

import pytest
from support.handlers import handlers
from support.log_watch import ExpectLog
from support.programs import Program
from support.under_test import LIMIT, S
from support.waiting import is_joining, wait_until

from sockserve.pytest_plugin import Running
from sockserve.testing import ask, call_within, connect

LOOPBACK = ("127.0.0.1", 0)


def test_T1_finished_threads_are_forgotten(running: Running) -> None:
    """After fifty requests one after the other the server holds on to none of the fifty threads, but the last ones."""
    threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    class Note(S.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            threads.add(threading.current_thread())

    server = running(S.ThreadingTCPServer(LOOPBACK, Note))

    def few_are_left() -> bool:
        # What the standard library forgets, it forgets when the next request comes.
        ask(server, b"")
        gc.collect()
        return len(threads) < 5

    for _ in range(50):
        ask(server, b"")
    wait_until(few_are_left)


def test_T2_close_waits_for_an_idle_client_only_so_long(running: Running, expect_log: ExpectLog) -> None:
    """After ``drain_timeout`` seconds the connection is cut, which ends the handler; then everything is over."""
    has_ended = threading.Event()

    class Idle(S.StreamRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.wfile.write(b"hello")
            assert self.rfile.read(1) == b""
            has_ended.set()

    expect_log(logging.WARNING, r"cut \('127\.0\.0\.1', \d+\), in progress for")
    server = running(S.ThreadingTCPServer(LOOPBACK, Idle), timeout=LIMIT)
    server.drain_timeout = 0.1
    with connect(server, timeout=LIMIT) as client:
        assert client.recv(100) == b"hello"
        server.shutdown()
        call_within(LIMIT, server.server_close)
        assert client.recv(100) == b""
        assert has_ended.wait(LIMIT)


INTERRUPTED = """
    import os, signal, threading
    from support.handlers import handlers
    from support.under_test import S
    from support.waiting import is_joining, wait_until, wait_until_blocked

    class Server(S.ThreadingTCPServer):
        drain_timeout = {drain_timeout}

    def tell():
        wait_until(lambda: is_joining(threading.main_thread()))
        wait_until_blocked(os.getpid())
        print("waiting")

    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Server(("127.0.0.1", 0), handlers(S).WriteFirst) as server:
        print(server.server_address[1])
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            threading.Thread(target=tell, daemon=True).start()
"""


def test_T3_ctrl_c_ends_the_program_within_drain_timeout() -> None:
    """The usual program ends by itself although a client stays connected."""
    with (
        Program(INTERRUPTED.format(drain_timeout=0.5)) as program,
        connect(("127.0.0.1", int(program.line()))) as client,
    ):
        assert client.recv(6) == b"hello\n"
        program.send(signal.SIGINT)
        assert program.status(LIMIT) == 0


def test_T3_second_ctrl_c_ends_the_program_at_once() -> None:
    """Whoever does not want to wait for ``drain_timeout`` presses Ctrl-C once more.

    With the standard library that never helps from CPython 3.13 on; before, it did by accident: the interrupted join()
    took the thread for ended.
    """
    with (
        Program(INTERRUPTED.format(drain_timeout=3600)) as program,
        connect(("127.0.0.1", int(program.line()))) as client,
    ):
        assert client.recv(6) == b"hello\n"
        program.send(signal.SIGINT)
        assert program.line() == "waiting"
        program.send(signal.SIGINT)
        assert program.status(LIMIT) == -signal.SIGINT
        assert "KeyboardInterrupt" in program.errors()


def test_T4_thread_that_cannot_start_is_an_error_of_its_request(running: Running, expect_log: ExpectLog) -> None:
    """That client is disconnected, and ``server_close()`` does not wait for a thread that never was."""
    expect_log(logging.ERROR, "can't start new thread")
    server = running(S.ThreadingTCPServer(LOOPBACK, handlers(S).Echo), timeout=LIMIT)
    # Not even the kernel finds that much room for the thread's stack.
    threading.stack_size(1 << 46)
    try:
        with socket.create_connection(server.server_address, LIMIT) as client:
            assert client.recv(1) == b""
    finally:
        threading.stack_size(0)
    server.shutdown()
    server.server_close()


def test_T5_the_number_of_threads_has_a_limit(running: Running) -> None:
    """Twenty clients at once are all served, by no more threads than ``max_workers``."""
    threads: set[int] = set()

    class Note(S.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.request.recv(1)
            threads.add(threading.get_ident())
            self.request.sendall(b"served")

    class Server(S.ThreadPoolMixIn, S.TCPServer):  # type: ignore[misc]
        request_queue_size = 20
        max_workers = 3

    server = running(Server(LOOPBACK, Note))
    clients = [connect(server, timeout=LIMIT) for _ in range(20)]
    for client in clients:
        client.sendall(b"!")
    for client in clients:
        assert client.recv(100) == b"served"
        client.close()
    assert 1 <= len(threads) <= 3


def test_T6_interpreter_shutdown_is_quiet() -> None:
    """A client who comes after the main thread's end gets its answer or none, but there is no traceback.

    The flaw is one of CPython 3.12.0 to 3.12.2, where no thread can be started any more from that moment on; with any
    other version the client is served, by the standard library too.
    """
    script = """
        import threading
        from support.handlers import handlers
        from support.under_test import S

        def tell():
            threading.main_thread().join()
            print("main thread has ended")

        server = S.ThreadingTCPServer(("127.0.0.1", 0), handlers(S).Echo)
        threading.Thread(target=tell, daemon=True).start()
        threading.Thread(target=server.serve_forever).start()
        print(server.server_address[1])
    """
    with Program(script) as program:
        address = ("127.0.0.1", int(program.line()))
        assert program.line() == "main thread has ended"
        answer = ask(address, b"late")
        if not answer:
            assert program.status(LIMIT) == 0
        assert answer in (b"late", b"")
        assert program.errors() == ""


def test_T7_live_threads_cost_nothing_at_an_accept(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fifty threads alive ten more requests ask none of the fifty how it is doing."""
    looks = []

    class Counted(threading.Thread):
        def is_alive(self) -> bool:
            looks.append(self)
            return super().is_alive()

    monkeypatch.setattr(threading, "Thread", Counted)
    gate = handlers(S).Gate
    server = running(S.ThreadingTCPServer(LOOPBACK, gate))
    clients = []
    for _ in range(50):
        clients.append(connect(server))
        assert gate.begun.take()
    looks.clear()
    for _ in range(10):
        clients.append(connect(server))
        assert gate.begun.take()
    assert len(looks) <= 20
    gate.opened.set()
    for client in clients:
        assert client.recv(4) == b"open"
        client.close()


def test_T8_datagram_workers_answer_before_the_socket_closes(running: Running) -> None:
    """``server_close()`` waits for the worker first: it answers on the server's own socket."""
    gate = handlers(S).Gate
    server = running(S.ThreadingUDPServer(LOOPBACK, gate), timeout=LIMIT)
    with connect(server, timeout=LIMIT) as client:
        client.send(b"?")
        assert gate.begun.wait()
        server.shutdown()
        closer = threading.Thread(target=server.server_close, daemon=True)
        closer.start()
        wait_until(lambda: is_joining(closer))
        gate.opened.set()
        assert client.recv(100) == b"open"
        closer.join(LIMIT)
        assert not closer.is_alive()


@pytest.mark.parametrize("server_class", ["TCPServer", "UDPServer"])
def test_T9_mixin_behind_the_server_is_refused(server_class: str) -> None:
    """The error says how the bases have to be ordered."""
    with pytest.raises(TypeError, match=rf"class Wrong\(ThreadingMixIn, {server_class}\)"):
        types.new_class("Wrong", (getattr(S, server_class), S.ThreadingMixIn))


def test_T10_make_thread_makes_the_threads(running: Running) -> None:
    """A subclass says what kind of thread serves its requests."""

    class Server(S.ThreadingTCPServer):  # type: ignore[misc]
        def make_thread(self, target: Any) -> threading.Thread:
            return threading.Thread(target=target, name="chosen")

    class TellName(S.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.request.sendall(threading.current_thread().name.encode())

    assert ask(running(Server(LOOPBACK, TellName)), b"") == b"chosen"


def test_T10_handlers_see_the_context_of_serve_forever(running: Running) -> None:
    """What the caller of ``serve_forever()`` set is visible, and what a handler sets is its own."""
    variable = contextvars.ContextVar("variable", default=b"unset")

    class Server(S.ThreadingTCPServer):  # type: ignore[misc]
        def serve_forever(self, poll_interval: float = 0.5) -> None:
            variable.set(b"set")
            super().serve_forever(poll_interval)

    class TellVariable(S.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.request.sendall(variable.get())
            variable.set(b"a handler's own")

    server = running(Server(LOOPBACK, TellVariable))
    assert [ask(server, b""), ask(server, b"")] == [b"set", b"set"]
