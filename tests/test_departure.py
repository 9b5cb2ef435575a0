"""Telling a client that left from an error of ours, which has the same type when a handler talks to others."""

from __future__ import annotations

import logging
import pathlib
import socket
import ssl
import threading
from typing import Any

import pytest
from support.certificates import client_context, server_context
from support.log_watch import ExpectLog
from support.under_test import LIMIT
from support.waiting import wait_until_broken

import sockserve
from sockserve.net.departure import has_left
from sockserve.pytest_plugin import Running
from sockserve.testing import HalfClose, Reset, ask, connect

LOOPBACK = ("127.0.0.1", 0)


def dead_backend() -> socket.socket:
    """A connection to something that the handler depends on, and that has just broken it off."""
    with socket.create_server(LOOPBACK) as listener:
        with Reset(listener.getsockname()) as peer:
            backend, _ = listener.accept()
            peer.reset()
        return backend


class AsksBackend(sockserve.BaseRequestHandler[Any, Any, Any]):
    """Asks a backend that is gone, on behalf of a client that is there."""

    def handle(self) -> None:
        """Ask."""
        with dead_backend() as backend:
            backend.recv(10)


@pytest.mark.parametrize("name", ["TCPServer", "ThreadingTCPServer", "ForkingTCPServer"])
def test_a_backend_that_resets_is_an_error(running: Running, expect_log: ExpectLog, name: str) -> None:
    """A ConnectionError of another connection than the client's is reported with its traceback and counts as failed."""
    expected = expect_log(logging.ERROR, "(?s)Exception occurred during processing of request.*ConnectionResetError")
    counters = sockserve.Counters()
    server = running(getattr(sockserve, name)(LOOPBACK, AsksBackend))
    server.add_observer(counters)
    assert ask(server, b"") == b""
    assert len(expected.wait()) == 1
    assert server.wait_idle(LIMIT)
    assert (counters.failed, counters.handled) == (1, 0)


def test_a_backend_that_resets_a_datagrams_handler_is_an_error(running: Running, expect_log: ExpectLog) -> None:
    """A datagram has no connection that could have broken."""
    expected = expect_log(logging.ERROR, "(?s)Exception occurred during processing of request.*ConnectionResetError")
    with connect(running(sockserve.UDPServer(LOOPBACK, AsksBackend))) as client:
        client.send(b"hello")
        assert len(expected.wait()) == 1


def test_a_client_that_half_closed_has_not_left(running: Running, expect_log: ExpectLog) -> None:
    """An error of a backend is one although the client has said all it had to say: it still waits for the answer."""
    expected = expect_log(logging.ERROR, "(?s)Exception occurred during processing of request.*ConnectionResetError")

    class Handler(AsksBackend):
        def handle(self) -> None:
            assert self.request.recv(10) == b"hello"
            assert self.request.recv(10) == b""
            super().handle()

    with HalfClose(running(sockserve.TCPServer(LOOPBACK, Handler)), b"hello") as client:
        assert client.read() == b""
        assert len(expected.wait()) == 1


@pytest.mark.parametrize("closes", ["reset", "close"])
@pytest.mark.parametrize("server_class", [sockserve.TCPServer, sockserve.ThreadingTCPServer])
def test_a_client_that_left_before_its_answer_is_one_quiet_line(
    running: Running, expect_log: ExpectLog, server_class: Any, closes: str
) -> None:
    """Whether it broke off or closed before a large answer came: one DEBUG line, and the request counts as handled."""
    left = expect_log(logging.DEBUG, "left: .*(Broken pipe|reset by peer)$")
    gone, counters = threading.Event(), sockserve.Counters()

    class Handler(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            assert gone.wait(LIMIT)
            while True:
                self.request.sendall(bytes(100_000))

    server = running(server_class(LOOPBACK, Handler))
    server.add_observer(counters)
    with Reset(server) as client:
        if closes == "close":
            client.connection.close()
    gone.set()
    assert len(left.wait()) == 1
    assert server.wait_idle(LIMIT)
    assert (counters.failed, counters.handled) == (0, 1)


def tls_server(certificate: pathlib.Path, handler: Any) -> Any:
    """A threading server over TLS."""
    server = sockserve.ThreadingTCPServer(LOOPBACK, handler)
    server.socket = server_context(certificate).wrap_socket(server.socket, server_side=True)
    return server


@pytest.mark.parametrize("wbufsize", [0, -1])
def test_a_tls_client_that_left_before_its_answer_is_one_quiet_line(
    running: Running, expect_log: ExpectLog, certificate: pathlib.Path, wbufsize: int
) -> None:
    """Over TLS too a connection that broke before the answer is the client's doing, whatever ssl calls that."""
    left = expect_log(logging.DEBUG, "left")
    begun = threading.Event()

    class Handler(sockserve.StreamRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            assert self.rfile.readline() == b"hello\n"
            begun.set()
            wait_until_broken(self.request)
            self.wfile.write(bytes(5000))

    Handler.wbufsize = wbufsize
    with Reset(running(tls_server(certificate, Handler))) as client:
        client.connection = client_context(certificate).wrap_socket(client.connection, server_hostname="localhost")
        client.connection.sendall(b"hello\n")
        assert begun.wait(LIMIT)
    assert len(left.wait()) == 1


@pytest.mark.parametrize("error", [ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionResetError])
def test_a_tls_backend_that_leaves_is_an_error(
    running: Running, expect_log: ExpectLog, certificate: pathlib.Path, error: type[OSError]
) -> None:
    """While the client is there, an end of some other TLS connection is not the client's departure."""
    expected = expect_log(logging.ERROR, "(?s)Exception occurred during processing of request.*the backend")

    class Handler(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            raise error(1, "the backend left")

    plain = connect(running(tls_server(certificate, Handler)))
    with client_context(certificate).wrap_socket(plain, server_hostname="localhost") as client:
        assert client.recv(10) == b""
        assert len(expected.wait()) == 1


def test_the_peers_own_errors_need_no_proof() -> None:
    """What only a peer can cause says so by its class, whatever the request is."""
    assert has_left(None, sockserve.PeerTimeoutError("timed out"))
    assert has_left((b"", None), sockserve.HandshakeError("failed"))


def test_other_errors_are_ours() -> None:
    """A dead connection explains no error but a broken connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not has_left(ours, ConnectionResetError())
        theirs.close()
        assert has_left(ours, BrokenPipeError())
        for error in (ValueError(), OSError(), TimeoutError(), ssl.SSLError(), ssl.SSLEOFError(), KeyboardInterrupt()):
            assert not has_left(ours, error)


def test_of_a_connection_that_the_handler_closed_the_error_is_believed() -> None:
    """There is nothing left to look at."""
    with socket.socket() as closed:
        pass
    assert has_left(closed, ConnectionResetError())
    assert not has_left(closed, ValueError())
