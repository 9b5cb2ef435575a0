"""Handlers: the order of their methods, their options, and what becomes of their errors."""

from __future__ import annotations

import io
import logging
import pathlib
import socket
import sys
import threading
import types
from typing import Any

import pytest
from support.handlers import Boom, handlers
from support.log_watch import ExpectLog
from support.under_test import LIMIT
from support.waiting import wait_until_broken

import sockserve
from sockserve.pytest_plugin import Running
from sockserve.testing import HalfClose, Reset, Stall, ask, connect

LOOPBACK = ("127.0.0.1", 0)


class Steps(sockserve.BaseRequestHandler[Any, Any, Any]):
    """Notes which of its methods are called, and raises where it is told to."""

    fails = ""

    def _step(self, name: str) -> None:
        self.request.append(name)
        if name in self.fails.split():
            raise Boom(name)

    def setup(self) -> None:
        """Step one."""
        self._step("setup")

    def handle(self) -> None:
        """Step two."""
        self._step("handle")

    def finish(self) -> None:
        """Step three."""
        self._step("finish")


@pytest.mark.parametrize(
    ("fails", "steps", "error"),
    [
        ("", ["setup", "handle", "finish"], None),
        ("setup", ["setup"], "setup"),
        ("handle", ["setup", "handle", "finish"], "handle"),
        ("finish", ["setup", "handle", "finish"], "finish"),
        ("handle finish", ["setup", "handle", "finish"], "handle"),
    ],
)
def test_the_constructor_runs_the_three_methods(fails: str, steps: list[str], error: str | None) -> None:
    """finish() runs whenever setup() succeeded; the first error is the one that comes out. Any server will do."""
    called: list[str] = []
    handler_class = type("Handler", (Steps,), {"fails": fails})
    if error is None:
        handler = handler_class(called, "somebody", stand_in := object())
        assert (handler.request, handler.client_address, handler.server) == (called, "somebody", stand_in)
    else:
        with pytest.raises(Boom) as caught:
            handler_class(called, "somebody", object())
        assert caught.value.args == (error,)
    assert called == steps


def test_an_exit_in_handle_is_not_swallowed_by_finish() -> None:
    """SystemExit and its like go through, finish() runs before, and its own error is told with them."""

    class Handler(Steps):
        fails = "finish"

        def handle(self) -> None:
            sys.exit(3)

    called: list[str] = []
    with pytest.raises(SystemExit) as caught:
        Handler(called, None, object())
    assert called == ["setup", "finish"]
    assert "Boom" in caught.value.__notes__[0]


def test_a_handler_may_be_given_any_file_like_connection() -> None:
    """A stand-in for a socket that has makefile() and sendall() is enough, as tests of handlers use it."""

    class Connection:
        sent = b""

        def makefile(self, mode: str, size: int) -> io.BytesIO:
            return io.BytesIO(b"hello\n")

        def sendall(self, data: bytes) -> None:
            self.sent += data

    connection = Connection()
    handlers(sockserve).EchoStream(connection, None, types.SimpleNamespace())
    assert connection.sent == b"hello\n"


class Options(sockserve.StreamRequestHandler[Any, Any, Any]):
    """Answers what the class attributes did to the connection."""

    def handle(self) -> None:
        """Answer."""
        nagle = self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
        self.wfile.write(repr((self.connection.gettimeout(), nagle)).encode())


@pytest.mark.parametrize(
    ("attributes", "answer"),
    [
        ({}, (None, True)),
        ({"timeout": 7.5}, (7.5, True)),
        ({"disable_nagle_algorithm": True}, (None, False)),
        ({"wbufsize": -1}, (None, True)),
        ({"wbufsize": 3}, (None, True)),
        ({"rbufsize": 0}, (None, True)),
    ],
)
def test_options_of_the_class_reach_the_connection(
    running: Running, attributes: dict[str, Any], answer: tuple[Any, bool]
) -> None:
    """Time-out and TCP_NODELAY are set as the class says, and the answer arrives with every kind of buffer."""

    class Server(sockserve.TCPServer):
        disable_nagle_algorithm = False

    server = running(Server(LOOPBACK, type("Handler", (Options,), attributes)))
    assert ask(server, b"") == repr(answer).encode()


@pytest.mark.parametrize("wbufsize", [0, -1])
def test_a_handler_may_close_its_files(running: Running, wbufsize: int) -> None:
    """A handler that closes ``rfile`` and ``wfile`` itself leaves nothing to do for finish()."""

    class Handler(sockserve.StreamRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            self.wfile.write(b"bye")
            self.wfile.close()
            self.rfile.close()

    Handler.wbufsize = wbufsize
    assert ask(running(sockserve.TCPServer(LOOPBACK, Handler)), b"hello") == b"bye"


def test_a_handler_may_close_its_connection(running: Running) -> None:
    """A handler that closes the socket itself is no error, and the client sees end-of-file."""

    class Handler(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            self.request.sendall(b"bye")
            self.request.close()

    assert ask(running(sockserve.TCPServer(LOOPBACK, Handler)), b"") == b"bye"


class Line(sockserve.StreamRequestHandler[Any, Any, Any]):
    """Waits a moment for a line, and answers it."""

    timeout = 0.2

    def handle(self) -> None:
        """Answer."""
        self.wfile.write(self.rfile.readline())


@pytest.mark.parametrize("rbufsize", [-1, 0])
def test_a_client_that_says_nothing_is_one_quiet_line(running: Running, expect_log: ExpectLog, rbufsize: int) -> None:
    """A time-out of the connection, read through ``rfile``, ends the request with a DEBUG line and no traceback."""
    left = expect_log(logging.DEBUG, "left: timed out$")
    server = running(sockserve.TCPServer(LOOPBACK, type("Handler", (Line,), {"rbufsize": rbufsize})))
    with Stall(server, b"half a li") as client:
        assert client.read() == b""
    assert len(left.wait()) == 1


@pytest.mark.parametrize("wbufsize", [0, -1])
def test_a_client_that_reads_nothing_is_one_quiet_line(running: Running, expect_log: ExpectLog, wbufsize: int) -> None:
    """A time-out while the answer is written through ``wfile``, too, is the client's doing and no error of ours."""
    left = expect_log(logging.DEBUG, "left.*: .*timed out$")

    class Handler(Line):
        def handle(self) -> None:
            self.wfile.write(bytes(10_000_000))

    Handler.wbufsize = wbufsize
    with Stall(running(sockserve.TCPServer(LOOPBACK, Handler))):
        assert len(left.wait()) == 1


def test_a_time_out_of_the_handlers_own_is_an_error(running: Running, expect_log: ExpectLog) -> None:
    """A TimeoutError that has nothing to do with the client is reported with its traceback."""

    class Handler(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                ours.settimeout(0.001)
                ours.recv(1)

    expected = expect_log(logging.ERROR, r"(?s)Exception occurred during processing of request.*TimeoutError")
    assert ask(running(sockserve.TCPServer(LOOPBACK, Handler)), b"") == b""
    assert len(expected.wait()) == 1


def test_finish_survives_a_client_that_left_while_it_flushes(running: Running, expect_log: ExpectLog) -> None:
    """An answer larger than the buffers whose client is gone is one DEBUG line, wherever the write fails."""
    left = expect_log(logging.DEBUG, "left.*(Broken pipe|reset by peer)$")

    class Handler(sockserve.StreamRequestHandler[Any, Any, Any]):
        wbufsize = 1_000_000

        def handle(self) -> None:
            wait_until_broken(self.request)
            self.wfile.write(bytes(900_000))

    with Reset(running(sockserve.TCPServer(LOOPBACK, Handler))):
        pass
    assert len(left.wait()) == 1


def test_datagram_handlers_have_packet_and_socket(running: Running) -> None:
    """``packet`` is what came, ``socket`` the server's, on which a handler may send more than one answer."""

    class Handler(sockserve.DatagramRequestHandler[Any, Any]):
        def handle(self) -> None:
            assert self.packet == self.rfile.getvalue()
            assert self.socket is self.server.socket
            self.socket.sendto(b"one", self.client_address)
            self.wfile.write(b"t")
            self.wfile.write(b"wo")

    with connect(running(sockserve.UDPServer(LOOPBACK, Handler))) as client:
        client.send(b"hello")
        assert [client.recv(10), client.recv(10)] == [b"one", b"two"]


@pytest.mark.parametrize("removed", [True, False])
def test_a_datagram_client_that_left_is_one_quiet_line(
    running: Running, expect_log: ExpectLog, tmp_path: pathlib.Path, removed: bool
) -> None:
    """An answer to a Unix client that closed its socket meanwhile, and perhaps removed its path, is not ours to fix."""
    left = expect_log(logging.DEBUG, "gets no answer")
    begun, gone = threading.Event(), threading.Event()

    class Handler(sockserve.DatagramRequestHandler[Any, Any]):
        def handle(self) -> None:
            begun.set()
            assert gone.wait(LIMIT)
            self.wfile.write(b"too late")

    server = running(sockserve.UnixDatagramServer(str(tmp_path / "server"), Handler))
    with connect(server) as client:
        client.bind(str(tmp_path / "client"))
        client.send(b"hello")
        assert begun.wait(LIMIT)
    if removed:
        (tmp_path / "client").unlink()
    gone.set()
    assert len(left.wait()) == 1


def test_a_half_closed_client_is_answered(running: Running) -> None:
    """End-of-file from the client is no reason not to answer it."""

    class Handler(sockserve.StreamRequestHandler[Any, Any, Any]):
        wbufsize = -1

        def handle(self) -> None:
            self.wfile.write(self.rfile.read()[::-1])

    with HalfClose(running(sockserve.TCPServer(LOOPBACK, Handler)), b"hello") as client:
        assert client.read() == b"olleh"


def test_the_handler_of_a_request_in_progress_is_known(running: Running) -> None:
    """``server.active_requests`` has the handler object from the beginning of its constructor."""
    seen = []

    class Handler(sockserve.BaseRequestHandler[Any, Any, Any]):
        def setup(self) -> None:
            seen.append([each.handler for each in self.server.active_requests] == [self])

    assert ask(running(sockserve.TCPServer(LOOPBACK, Handler)), b"") == b""
    assert seen == [True]
