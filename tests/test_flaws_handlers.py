"""Rows H2 to H12 of what is wrong with ``socketserver``'s handlers: each test fails there and passes here."""

# ruff: noqa: N802 - a test has the id of its row

from __future__ import annotations

import json
import logging
import pathlib
import socket
import sys
import threading
import traceback
from typing import Any

import pytest
from support.handlers import Boom, handlers
from support.log_watch import ExpectLog
from support.scripts import run_script
from support.under_test import LIMIT, S

from sockserve.pytest_plugin import Running
from sockserve.testing import Reset, ask, connect

LOOPBACK = ("127.0.0.1", 0)


class Reports(list[BaseException]):
    """The exceptions that a server reported, in order."""

    def report(self, *_: object) -> None:
        """Take the place of ``handle_error()``."""
        error = sys.exception()
        assert error is not None
        self.append(error)


def reporting_to(reports: Reports, server_class: Any) -> Any:
    """A class like ``server_class`` whose errors go to ``reports`` alone."""
    return type("Server", (server_class,), {"handle_error": reports.report})


@pytest.mark.parametrize("wbufsize", [0, -1])
def test_H2_a_setup_that_raises_leaves_no_file_open(running: Running, wbufsize: int) -> None:
    """What ``setup()`` opened before it raised is closed, with and without a write buffer."""
    files = []

    class Handler(S.StreamRequestHandler):
        def setup(self) -> None:
            super().setup()
            files.extend([self.rfile, self.wfile])
            raise Boom

    Handler.wbufsize = wbufsize
    reports = Reports()
    assert ask(running(reporting_to(reports, S.TCPServer)(LOOPBACK, Handler)), b"") == b""
    assert [file.closed for file in files] == [True, True]
    assert [type(error) for error in reports] == [Boom]


def test_H3_an_error_of_finish_does_not_hide_that_of_handle(running: Running) -> None:
    """The error of ``handle()`` is the one reported, and the report tells of the one of ``finish()``."""

    class Handler(S.BaseRequestHandler):
        def handle(self) -> None:
            raise Boom("in handle")

        def finish(self) -> None:
            raise ValueError("in finish")

    reports = Reports()
    assert ask(running(reporting_to(reports, S.TCPServer)(LOOPBACK, Handler)), b"") == b""
    (error,) = reports
    assert isinstance(error, Boom)
    assert "in finish" in "".join(traceback.format_exception(error))


def test_H4_a_peer_that_left_before_the_buffered_answer_is_no_error(running: Running) -> None:
    """What cannot be sent any more at the end is dropped without a report, and both files are closed."""
    gone, finished, files = threading.Event(), threading.Event(), []

    class Handler(S.StreamRequestHandler):
        wbufsize = -1

        def handle(self) -> None:
            files.extend([self.rfile, self.wfile])
            assert gone.wait(LIMIT)
            self.wfile.write(b"too late")

    class Server(S.TCPServer):
        def close_request(self, request: Any) -> None:
            super().close_request(request)
            finished.set()

    reports = Reports()
    server = running(reporting_to(reports, Server)(LOOPBACK, Handler))
    with Reset(server):
        pass
    gone.set()
    assert finished.wait(LIMIT)
    assert reports == []
    assert [file.closed for file in files] == [True, True]


def test_H5_a_large_unbuffered_write_arrives_whole(running: Running) -> None:
    """With ``wbufsize`` 0 one write of more than any socket buffer holds loses nothing. CPython has it since 3.6."""
    answer = bytes(range(256)) * 40_000

    class Handler(S.StreamRequestHandler):
        def handle(self) -> None:
            assert self.wfile.write(answer) == len(answer)

    assert ask(running(S.TCPServer(LOOPBACK, Handler)), b"") == answer


def test_H6_errors_go_to_the_log(running: Running, expect_log: ExpectLog, capfd: pytest.CaptureFixture[str]) -> None:
    """An exception of a handler is one log record with its traceback, and nothing is printed."""
    expected = expect_log(logging.ERROR, r"(?s)^Exception occurred during processing of request from .*Boom")
    server = running(S.TCPServer(LOOPBACK, handlers(S).Crash))
    with connect(server) as client:
        client.sendall(b"hello")
        assert client.recv(10) == b""
        (line,) = expected.wait()
        assert str(client.getsockname()) in line.text
    assert capfd.readouterr() == ("", "")


def test_H6_a_client_that_leaves_is_one_quiet_line(
    running: Running, expect_log: ExpectLog, capfd: pytest.CaptureFixture[str]
) -> None:
    """A connection reset in the middle of a request is told at level DEBUG, without a traceback, and not printed."""
    expected = expect_log(logging.DEBUG, "left: .*reset by peer$")
    begun, gone = threading.Event(), threading.Event()

    class Handler(S.BaseRequestHandler):
        def handle(self) -> None:
            begun.set()
            assert gone.wait(LIMIT)
            self.request.recv(10)

    server = running(S.TCPServer(LOOPBACK, Handler))
    with Reset(server):
        assert begun.wait(LIMIT)
    gone.set()
    assert len(expected.wait()) == 1
    assert capfd.readouterr() == ("", "")


def test_H6b_reports_of_two_threads_do_not_interleave() -> None:
    """Without any configuration each report reaches stderr, in one piece, whatever other threads do."""
    output = run_script("""
import json, socket, sys, threading

class Handler(S.BaseRequestHandler):
    def handle(self):
        crash.wait()
        raise ValueError("Boom")

class Pieces:
    def __init__(self):
        self.written = []
    def write(self, text):
        self.written.append(text)
    def flush(self):
        pass

crash = threading.Barrier(2)
stderr, sys.stderr = sys.stderr, Pieces()
with S.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
    clients = [socket.create_connection(server.server_address) for _ in range(2)]
    for client in clients:
        server.handle_request()
for client in clients:
    client.close()
pieces, sys.stderr = sys.stderr, stderr
print(json.dumps(pieces.written))
""")
    pieces = json.loads(output)
    assert len(pieces) == 2
    for piece in pieces:
        assert piece.count("Exception occurred during processing of request from") == 1
        assert piece.count("ValueError: Boom") == 1


def test_H7_unread_input_does_not_cost_the_answer(running: Running) -> None:
    """A client that is slow to read gets the whole answer, though the handler left some of its input unread."""
    answer, closed = bytes(200_000), threading.Event()

    class Handler(S.BaseRequestHandler):
        def handle(self) -> None:
            # Room for all of it, so that the handler is done before the client begins to read.
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(answer))
            self.request.recv(10)
            self.request.sendall(answer)

    class Server(S.ThreadingTCPServer):
        def close_request(self, request: Any) -> None:
            super().close_request(request)
            closed.set()

    with connect(running(Server(LOOPBACK, Handler))) as client:
        client.sendall(bytes(50_000))
        # A server that closes now throws away what it has not yet sent.
        closed.wait(0.5)
        received = 0
        while chunk := client.recv(65536):
            received += len(chunk)
    assert received == len(answer)


def test_H9_rfile_stays_usable_after_a_timeout(running: Running) -> None:
    """A line that a time-out interrupted is read whole by the next attempt."""
    timed_out = threading.Event()

    class Handler(S.StreamRequestHandler):
        timeout = 0.02

        def handle(self) -> None:
            while True:
                try:
                    line = self.rfile.readline()
                except TimeoutError:
                    timed_out.set()
                else:
                    self.wfile.write(line.upper())
                    return

    reports = Reports()
    with connect(running(reporting_to(reports, S.TCPServer)(LOOPBACK, Handler))) as client:
        client.sendall(b"hel")
        assert timed_out.wait(LIMIT)
        client.sendall(b"lo\n")
        assert client.recv(100) == b"HELLO\n"
    assert reports == []


def test_H10_disabling_nagles_algorithm_is_harmless_on_a_unix_socket(running: Running, tmp_path: pathlib.Path) -> None:
    """One handler class serves TCP and Unix clients; where there is no such algorithm there is nothing to disable."""

    class Handler(handlers(S).EchoStream):
        disable_nagle_algorithm = True

    reports = Reports()
    server = running(reporting_to(reports, S.UnixStreamServer)(str(tmp_path / "server"), Handler))
    assert ask(server, b"hello\n") == b"hello\n"
    assert reports == []


class Datagrams(S.DatagramRequestHandler):
    """Answers ``b"say nothing"`` by nothing, ``b"raise"`` by an exception after half an answer, all else by itself."""

    def handle(self) -> None:
        """Answer, or not."""
        packet = self.rfile.read()
        if packet != b"say nothing":
            self.wfile.write(packet)
        if packet == b"raise":
            raise Boom


@pytest.mark.parametrize("packet", [b"say nothing", b"raise"])
def test_H11_only_a_complete_answer_is_sent(running: Running, packet: bytes) -> None:
    """A handler that wrote nothing, or raised before it was done, sends no datagram."""
    reports = Reports()
    with connect(running(reporting_to(reports, S.UDPServer)(LOOPBACK, Datagrams))) as client:
        client.send(packet)
        client.send(b"hello")
        assert client.recv(100) == b"hello"
    assert [type(error) for error in reports] == ([Boom] if packet == b"raise" else [])


def test_H11_a_sender_without_an_address_gets_no_answer(running: Running, tmp_path: pathlib.Path) -> None:
    """An answer to a Unix client that has bound no name is dropped without a report."""
    reports = Reports()
    server = running(reporting_to(reports, S.UnixDatagramServer)(str(tmp_path / "server"), Datagrams))
    with connect(server) as nameless:
        nameless.send(b"hello")
    assert ask(server, b"hello") == b"hello"
    assert reports == []


def test_H12_a_handler_can_hand_its_connection_on(running: Running) -> None:
    """A detached connection outlives its request; whoever took it talks to the client and closes it."""
    detached = []
    ended = threading.Event()

    class Handler(S.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            detached.append(self.detach_request())

    class Server(S.ThreadingTCPServer):
        def process_request_thread(self, request: Any, client_address: Any) -> None:
            super().process_request_thread(request, client_address)
            ended.set()

    with connect(running(Server(LOOPBACK, Handler))) as client:
        client.sendall(b"hello\n")
        assert ended.wait(LIMIT)
        (connection,) = detached
        with connection:
            assert connection.send(b"later") == 5
            assert client.recv(10) == b"later"
        assert client.recv(10) == b""
