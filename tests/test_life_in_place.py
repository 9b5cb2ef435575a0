"""The short way of a request in the loop's thread, where it could be told apart from the long one."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import pytest
from support.certificates import Pki
from support.under_test import LIMIT

import sockserve
from sockserve.core.loop import Loop
from sockserve.testing import connect

LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """An authority and what it signed."""
    return Pki(tmp_path_factory.mktemp("pki"))


class Handler(sockserve.BaseRequestHandler[Any, socket.socket]):
    """Answers with what it read."""

    def handle(self) -> None:
        """All of it."""
        self.request.sendall(self.request.recv(100))


def test_tls_that_a_handler_switches_on_is_for_the_next_connection(pki: Pki) -> None:
    """Also if that was taken in the same turn: it is not served in plain text."""

    class SwitchesOn(Handler):
        def handle(self) -> None:
            super().handle()
            self.server.tls = sockserve.TLS(*pki.a)

    server = sockserve.TCPServer(LOOPBACK, SwitchesOn)
    with server, Loop() as loop, connect(server, timeout=LIMIT) as first, connect(server, timeout=LIMIT) as second:
        server.attach(loop)
        for client in (first, second):
            client.sendall(b"ping")
            client.shutdown(socket.SHUT_WR)
        while not loop.turns or server.tls is None:
            loop._turn()
        assert first.recv(100, socket.MSG_WAITALL) == b"ping"
        loop.call_later(0, server.shutdown)
        loop.run()
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = second.recv(100)
        assert b"ping" not in answer


@pytest.mark.parametrize("is_accepted", [True, False])
def test_an_error_of_handle_error_at_the_end_is_raised_once(is_accepted: bool) -> None:
    """``shutdown_request()`` raises, and then ``handle_error()``: that is called once, and its error ends the loop."""
    reported = []

    class Server(sockserve.TCPServer[socket.socket, Any]):
        def verify_request(self, request: socket.socket, client_address: object) -> bool:
            return is_accepted

        def shutdown_request(self, request: socket.socket) -> None:
            raise LookupError("shutdown")

        def handle_error(self, request: object, client_address: object) -> None:
            reported.append(request)
            raise ArithmeticError("report")

    server = Server(LOOPBACK, Handler)
    with server, Loop() as loop, connect(server, timeout=LIMIT) as client:
        server.attach(loop)
        client.sendall(b"ping")
        with pytest.raises(ArithmeticError):
            loop.run()
        assert len(reported) == 1
        assert server.active_requests == ()


def test_a_peers_error_of_prepare_request_is_told_by_finish_request() -> None:
    """Whatever kind of PeerError: an override of ``finish_request()`` gives back what was taken for the request."""
    given_back = []

    class Server(sockserve.TCPServer[socket.socket, Any]):
        def prepare_request(self, request: socket.socket, client_address: Any) -> tuple[socket.socket, Any]:
            raise sockserve.PeerTimeoutError("too slow")

        def finish_request(self, request: socket.socket, client_address: Any) -> None:
            try:
                super().finish_request(request, client_address)
            finally:
                given_back.append(request)

    server = Server(LOOPBACK, Handler)
    with server, Loop() as loop, connect(server, timeout=LIMIT) as client:
        server.attach(loop)
        loop._turn()
        assert client.recv(100) == b""
        assert len(given_back) == 1
        assert server.active_requests == ()
        server.shutdown()
        loop.run()
