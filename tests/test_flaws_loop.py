"""Rows L1 to L6, L11, L12 and L16 of what is wrong with ``socketserver``'s loop: each test fails there and passes here.

L16 is cured there: it passes on both.
"""

# ruff: noqa: N802 - a test has the id of its row

from __future__ import annotations

import logging
import os
import re
import resource
import signal
import socket
import threading

import pytest
from support.counting_server import CountingServer
from support.handlers import handlers
from support.log_watch import ExpectLog
from support.programs import Program
from support.under_test import LIMIT, S

from sockserve.pytest_plugin import Running
from sockserve.testing import ask, call_within

FOR_EVER = 3600.0
"""Seconds of a poll_interval that no test lives to see the end of."""


@pytest.fixture
def echo_server() -> CountingServer:
    """A server that echoes."""
    return CountingServer(handlers(S).Echo)


# stopping


def test_L1_shutdown_does_not_wait_for_poll_interval(running: Running, echo_server: CountingServer) -> None:
    """An idle loop ends when it is asked to, not when its interval is over."""
    running(echo_server, poll_interval=FOR_EVER, timeout=LIMIT)
    call_within(LIMIT, echo_server.shutdown)
    assert echo_server.has_ended.wait(LIMIT)


def test_L2_idle_loop_sleeps(running: Running) -> None:
    """Half a second of silence costs no wake-up, let alone five hundred."""

    class Tell(S.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.request.sendall(b"%d" % resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw)

    server = running(CountingServer(Tell), poll_interval=0.001)
    switches = int(ask(server, b""))
    threading.Event().wait(0.5)
    assert int(ask(server, b"")) - switches < 50


def test_L3_shutdown_from_the_serving_thread_returns(running: Running) -> None:
    """``service_actions()`` runs in the loop's thread and may end the loop."""

    class Limited(CountingServer):
        def service_actions(self) -> None:
            if self.attempts:
                self.shutdown()

    server = running(Limited(handlers(S).Echo), timeout=LIMIT)
    assert ask(server, b"last", timeout=LIMIT) == b"last"
    assert server.has_ended.wait(LIMIT)


def test_L3_shutdown_from_an_inline_handler_returns(running: Running) -> None:
    """A handler that the loop's own thread runs may end the loop, and still answers."""

    class Last(S.StreamRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.server.shutdown()
            self.wfile.write(b"stopped")

    server = running(CountingServer(Last), timeout=LIMIT)
    assert ask(server, b"", timeout=LIMIT) == b"stopped"
    assert server.has_ended.wait(LIMIT)


def test_L3_shutdown_from_a_signal_handler_returns() -> None:
    """The usual handler of SIGTERM ends a server that the main thread serves."""
    script = """
        import signal
        from support.handlers import handlers
        from support.under_test import S

        server = S.TCPServer(("127.0.0.1", 0), handlers(S).Echo)
        signal.signal(signal.SIGTERM, lambda *_: server.shutdown())
        print(server.server_address[1])
        server.serve_forever()
        server.server_close()
        print("served")
    """
    with Program(script) as program:
        assert ask(("127.0.0.1", int(program.line())), b"hello") == b"hello"
        program.send(signal.SIGTERM)
        assert program.line(LIMIT) == "served"
        assert program.status(LIMIT) == 0


def test_L4_shutdown_before_the_loop_is_kept_for_it(echo_server: CountingServer) -> None:
    """Neither the early ``shutdown()`` nor the ``serve_forever()`` after it blocks."""
    with echo_server:
        call_within(LIMIT, echo_server.shutdown)
        call_within(LIMIT, echo_server.serve_forever)


def test_L5_second_shutdown_has_no_effect_on_the_next_loop(running: Running, echo_server: CountingServer) -> None:
    """A server that was stopped twice serves again."""
    first = threading.Thread(target=echo_server.serve_forever)
    first.start()
    assert ask(echo_server, b"first") == b"first"
    echo_server.shutdown()
    first.join()
    call_within(LIMIT, echo_server.shutdown)
    running(echo_server, timeout=LIMIT)
    assert ask(echo_server, b"second", timeout=LIMIT) == b"second"


def test_L6_close_under_the_loop_ends_it(running: Running, echo_server: CountingServer, expect_log: ExpectLog) -> None:
    """``server_close()`` without ``shutdown()`` is no reason to spin."""
    running(echo_server, poll_interval=FOR_EVER, timeout=LIMIT)
    expect_log(logging.WARNING, re.escape("server_close() came before shutdown()"))
    echo_server.server_close()
    assert echo_server.has_ended.wait(LIMIT)
    assert echo_server.attempts == 0


def test_L6_loop_leaves_a_foreign_descriptor_alone(
    running: Running, echo_server: CountingServer, expect_log: ExpectLog
) -> None:
    """A descriptor that gets the listener's number is none of the loop's business."""
    running(echo_server, poll_interval=FOR_EVER, timeout=LIMIT)
    expect_log(logging.WARNING, re.escape("server_close() came before shutdown()"))
    number = echo_server.fileno()
    foreign, peer = socket.socketpair()
    with foreign, peer:
        peer.send(b"readable")
        echo_server.server_close()
        os.dup2(foreign.fileno(), number)
        try:
            assert echo_server.has_ended.wait(LIMIT)
            assert echo_server.attempts == 0
            assert foreign.recv(100) == b"readable"
        finally:
            os.close(number)


# one loop, one socket


def test_L11_second_loop_is_refused(running: Running, echo_server: CountingServer) -> None:
    """The second ``serve_forever()`` raises at once, and the first goes on."""
    running(echo_server)
    with pytest.raises(RuntimeError, match="already"):
        call_within(LIMIT, echo_server.serve_forever, FOR_EVER)
    assert ask(echo_server, b"still there") == b"still there"


@pytest.mark.parametrize("verb", ["serve_forever", "handle_request"])
def test_L12_closed_server_says_so(echo_server: CountingServer, verb: str) -> None:
    """The error says that the server is closed, and is the ValueError that it was before."""
    echo_server.server_close()
    with pytest.raises(ValueError, match="closed"):
        call_within(LIMIT, getattr(echo_server, verb))


# cured upstream


def test_L16_signals_disturb_neither_loop_nor_handle_request() -> None:
    """With a signal each millisecond every client is served, and a time-out takes its time."""
    script = """
        import signal, threading, time
        from support.handlers import handlers
        from sockserve.testing import ask
        from support.under_test import S

        class Server(S.TCPServer):
            timeouts = 0

            def handle_timeout(self):
                self.timeouts += 1

        def come():
            for number in range(100):
                answers.append(ask(server, b"%d" % number))
            server.shutdown()

        signals = []
        answers = []
        server = Server(("127.0.0.1", 0), handlers(S).Echo)
        signal.signal(signal.SIGALRM, lambda signum, _: signals.append(signum))
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        client = threading.Thread(target=come)
        client.start()
        server.serve_forever()
        client.join()
        assert answers == [b"%d" % number for number in range(100)]
        server.timeout = 0.2
        begin = time.monotonic()
        server.handle_request()
        assert time.monotonic() - begin >= 0.2
        assert server.timeouts == 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert len(signals) > 10
        server.server_close()
        print("all served")
    """
    with Program(script) as program:
        assert program.line() == "all served", program.errors()
