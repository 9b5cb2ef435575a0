"""The listener while a loop has it and afterwards: whose it is, whether it blocks, what its loss means."""

from __future__ import annotations

import logging
import socket
import threading
from typing import Any

import pytest
from support.handlers import Boom, handlers
from support.log_watch import ExpectLog
from support.under_test import LIMIT

import sockserve
from sockserve.core.loop import Loop
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, call_within

LOOPBACK = ("127.0.0.1", 0)
ECHO = handlers(sockserve).Echo


def test_the_listener_is_lent_to_the_loop_and_given_back(running: Running) -> None:
    """It does not block while the loop runs, has its own time-out again afterwards, and connections block."""
    blocking: list[Any] = []

    class Tell(sockserve.BaseRequestHandler[sockserve.TCPServer, socket.socket]):
        def handle(self) -> None:
            blocking.append((self.server.socket.gettimeout(), self.request.gettimeout()))

    for timeout in (None, 7.0):
        server = sockserve.TCPServer(LOOPBACK, Tell)
        server.socket.settimeout(timeout)
        running(server)
        ask(server, b"")
        call_within(LIMIT, server.shutdown)
        assert server.socket.gettimeout() == timeout
    assert blocking == [(0.0, None)] * 2


def test_the_listener_is_given_back_after_an_error_too() -> None:
    """``handle_request()`` on the same socket is as before."""

    class Server(sockserve.TCPServer):
        def service_actions(self) -> None:
            raise Boom("service_actions raised")

    with Server(LOOPBACK, ECHO) as server:
        with pytest.raises(Boom):
            server.serve_forever(0.001)
        assert server.socket.gettimeout() is None
        with pytest.raises(Boom):
            server.serve_forever(0.001)


def test_the_socket_of_datagrams_stays_blocking(running: Running) -> None:
    """Handlers send on it."""
    timeouts: list[float | None] = []

    class Tell(sockserve.DatagramRequestHandler):
        def handle(self) -> None:
            timeouts.append(self.socket.gettimeout())
            self.wfile.write(b"!")

    server = running(sockserve.UDPServer(LOOPBACK, Tell))
    ask(server, b"?")
    assert timeouts == [None]


def test_a_socket_that_does_not_listen_stays_as_it_is(running: Running) -> None:
    """As with idlelib, whose server connects and serves that one connection."""
    ours, peer = socket.socketpair()
    timeouts: list[float | None] = []

    class Server(sockserve.TCPServer):
        def __init__(self) -> None:
            super().__init__(LOOPBACK, ECHO, bind_and_activate=False)
            self.socket.close()
            self.socket = ours

        def get_request(self) -> Any:
            timeouts.append(self.socket.gettimeout())
            return self.socket, ("peer", 0)

        def process_request(self, request: Any, client_address: Any) -> None:
            request.sendall(request.recv(1))

    server = running(Server())
    with peer:
        peer.send(b"!")
        assert peer.recv(1) == b"!"
        server.shutdown()
        assert timeouts == [None]


def test_a_replaced_listener_ends_the_loop() -> None:
    """As does one that was closed behind the server's back; in the next turn, whatever makes it come."""
    for replacement in (socket.create_server(LOOPBACK), None):
        with sockserve.TCPServer(LOOPBACK, ECHO) as server, Loop() as loop:
            server.attach(loop)
            with server.socket:
                if replacement is not None:
                    server.socket = replacement
            with pytest.raises(sockserve.ListenerLostError, match="closed or replaced"):
                call_within(LIMIT, loop.run)
            assert not server.wait_until_serving(0)


def test_a_new_listener_can_be_served_after_the_close(running: Running, expect_log: ExpectLog) -> None:
    """``server_close()`` under the loop ends that loop only."""
    expect_log(logging.WARNING, "came before shutdown")
    server = sockserve.TCPServer(LOOPBACK, ECHO)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    assert server.wait_until_serving(LIMIT)
    server.server_close()
    thread.join()
    server.socket = socket.create_server(LOOPBACK)
    running(server)
    assert ask(server, b"new") == b"new"
