"""Rows L7 to L9 and L13 to L15 of what is wrong with ``socketserver``'s loop: each test fails there and passes here.

L15 is cured there: it passes on both.
"""

# ruff: noqa: N802 - a test has the id of its row

from __future__ import annotations

import errno
import logging
import math
import os
import re
import socket
import threading
import time
from typing import Any

import pytest
from support.counting_server import LOOPBACK, CountingServer
from support.handlers import Boom, Signal, handlers
from support.log_watch import ExpectLog
from support.programs import Program
from support.under_test import LIMIT, S
from support.waiting import wait_until

from sockserve.pytest_plugin import Running
from sockserve.testing import ask, call_within, connect

FOR_EVER = 3600.0
"""Seconds of a poll_interval that no test lives to see the end of."""

# errors of accept


def test_L7_descriptor_exhaustion_backs_off() -> None:
    """Without a free descriptor the loop tries ever more rarely, says so twice, and serves whoever waited."""
    script = """
        import os, resource, sys, threading
        from support.handlers import handlers
        from support.under_test import S

        class Server(S.TCPServer):
            attempts = 0

            def get_request(self):
                self.attempts += 1
                return super().get_request()

            def close_request(self, request):
                super().close_request(request)
                closed.set()

        closed = threading.Event()
        server = Server(("127.0.0.1", 0), handlers(S).Echo)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_address[1])
        taken = []
        for line in sys.stdin:
            if line == "exhaust\\n":
                # The first connection's descriptor shall not come free later.
                closed.wait()
                resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
                try:
                    while True:
                        taken.append(os.dup(0))
                except OSError as error:
                    print(error.strerror)
            elif line == "release\\n":
                while taken:
                    os.close(taken.pop())
                print("released")
            else:
                print(server.attempts)
    """
    with Program(script) as program:
        address = ("127.0.0.1", int(program.line()))
        assert ask(address, b"before") == b"before"
        attempts = int(program.ask("attempts"))
        assert program.ask("exhaust") == os.strerror(errno.EMFILE)
        begin = time.monotonic()
        with connect(address) as client:
            client.sendall(b"patient")
            client.shutdown(socket.SHUT_WR)
            wait_until(lambda: int(program.ask("attempts")) > attempts)
            threading.Event().wait(0.5)
            failed = int(program.ask("attempts")) - attempts
            seconds = time.monotonic() - begin
            # 5 ms doubling up to one second, so it takes 2**n * 5 ms to come to the n-th attempt.
            assert 1 <= failed <= 2 + math.log2(1 + seconds / 0.005) + seconds
            assert program.ask("release") == "released"
            assert client.recv(100) == b"patient"
        pause, end = program.errors().splitlines()
        assert os.strerror(errno.EMFILE) in pause
        assert re.search(r"after \d+ failed attempts?", end)


@pytest.mark.parametrize(
    ("number", "level"),
    [(errno.ECONNABORTED, logging.DEBUG), (errno.EIO, logging.WARNING)],
    ids=["by the peer", "unforeseen"],
)
def test_L8_error_of_accept_leaves_a_trace(running: Running, expect_log: ExpectLog, number: int, level: int) -> None:
    """The log tells of every error of ``get_request()``, and the loop goes on."""

    class Failing(CountingServer):
        def get_request(self) -> Any:
            if self.attempts == 0:
                self.attempts = 1
                raise OSError(number, os.strerror(number))
            return super().get_request()

    reported = expect_log(level, re.escape(os.strerror(number)))
    expect_log(logging.WARNING, "accepting again", at_least=0)
    server = running(Failing(handlers(S).Echo), timeout=LIMIT)
    with connect(server):
        reported.wait()
    assert ask(server, b"next") == b"next"


class Reporting(CountingServer):
    """Keeps what is reported to ``handle_error()``."""

    def __init__(self, handler: Any) -> None:
        super().__init__(handler)
        self.reported: list[tuple[Any, Any]] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep what it is called with."""
        self.reported.append((request, client_address))


def test_L9_error_in_verify_request_is_reported(running: Running) -> None:
    """The request is closed, ``handle_error()`` hears of it once, and the next client is served."""

    class Suspicious(Reporting):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            if self.attempts == 1:
                raise Boom("verify_request raised")
            return bool(super().verify_request(request, client_address))

    server = running(Suspicious(handlers(S).Echo), timeout=LIMIT)
    with connect(server, timeout=LIMIT) as client:
        assert client.recv(1) == b""
        wait_until(lambda: server.reported)
        ((request, client_address),) = server.reported
        assert client_address == client.getsockname()
        wait_until(lambda: request.fileno() == -1)
    assert ask(server, b"next", timeout=LIMIT) == b"next"


def test_L9_error_in_get_request_is_reported(running: Running, expect_log: ExpectLog) -> None:
    """An error that is no OSError ends the loop as little: the client who waits is served after it."""

    class Failing(Reporting):
        def get_request(self) -> Any:
            if self.attempts == 0:
                self.attempts += 1
                raise Boom("get_request raised")
            return super().get_request()

    expect_log(logging.WARNING, "accepting pauses", at_least=0)
    expect_log(logging.WARNING, "accepting again", at_least=0)
    server = running(Failing(handlers(S).Echo), timeout=LIMIT)
    assert ask(server, b"patient", timeout=LIMIT) == b"patient"
    assert server.reported == [(None, None)]


# one listener, several who accept


def test_L13_loser_of_a_race_does_not_block_in_accept(running: Running) -> None:
    """If another process takes the connection that the loop woke for, the loop can still be stopped."""
    was_robbed = Signal()

    class Robbed(CountingServer):
        def get_request(self) -> Any:
            if self.attempts == 0:
                # What another process with the same listener does.
                with self.socket.dup() as same_listener:
                    same_listener.accept()[0].close()
                was_robbed.set()
            return super().get_request()

    server = running(Robbed(handlers(S).Echo), timeout=LIMIT)
    with connect(server):
        assert was_robbed.wait()
        call_within(LIMIT, server.shutdown)
        assert server.has_ended.wait(LIMIT)


def test_L14_ready_listener_is_drained_in_one_turn(running: Running) -> None:
    """Twenty clients that wait cost one turn of the loop, and one more at most for those that just came."""
    gate = handlers(S).Gate

    class Counting(S.ThreadingTCPServer):  # type: ignore[misc]
        request_queue_size = 128
        turns = 0

        def service_actions(self) -> None:
            super().service_actions()
            self.turns += 1

    server = Counting(LOOPBACK, gate)
    clients = [connect(server) for _ in range(20)]
    running(server, poll_interval=FOR_EVER, timeout=LIMIT)
    for _ in clients:
        assert gate.begun.take()
    turns = server.turns
    gate.opened.set()
    for client in clients:
        assert client.recv(4) == b"open"
        client.close()
    assert turns <= 2


# cured upstream


def test_L15_nothing_is_accepted_after_shutdown_was_asked() -> None:
    """A client who comes in the same moment as the request to stop, while the loop waits, is not accepted any more."""
    script = """
        import os, signal, socket, threading
        from support.under_test import S
        from support.waiting import is_asleep

        class Server(S.TCPServer):
            attempts = 0

            def get_request(self):
                self.attempts += 1
                return super().get_request()

        def come_and_stop(signum, frame):
            # Only in the very wait; the interpreter goes on with it afterwards (PEP 475).
            if is_asleep(frame) and not clients:
                clients.append(socket.create_connection(server.server_address))
                server._BaseServer__shutdown_request = True

        def interrupt():
            while not clients:
                os.kill(os.getpid(), signal.SIGUSR1)
                threading.Event().wait(0.01)

        clients = []
        server = Server(("127.0.0.1", 0), S.BaseRequestHandler)
        signal.signal(signal.SIGUSR1, come_and_stop)
        threading.Thread(target=interrupt, daemon=True).start()
        server.serve_forever()
        server.server_close()
        print(len(clients), "came,", server.attempts, "accepted")
    """
    with Program(script) as program:
        assert program.line() == "1 came, 0 accepted"
