"""Listeners of other types and classes, and datagram sockets that wait: none of them blocks a loop, or a stop."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.handlers import handlers
from support.models import MODELS
from support.strange_listeners import Bare, Wrapper
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.core.loop import Loop
from sockserve.net.accept import Receiver
from sockserve.pytest_plugin import Running
from sockserve.ready_made import server_class
from sockserve.testing import ask, call_within, connect

LOOPBACK = ("127.0.0.1", 0)
ECHO = handlers(sockserve).Echo


class EchoDatagram(sockserve.DatagramRequestHandler):
    """Sends back what it got."""

    def handle(self) -> None:
        """Serve one datagram."""
        self.wfile.write(self.rfile.read())


# datagrams


class Patient(socket.socket):
    """Waits for a datagram whatever the flags say, as the sockets of gevent and eventlet do."""

    def recvfrom(self, *args: Any) -> Any:
        """Receive one."""
        while True:
            try:
                return super().recvfrom(*args)
            except BlockingIOError:
                select.select([self], [], [])


def with_timeout(server: Any) -> None:
    """As ``settimeout()`` of the program, or a default for new sockets, leaves it."""
    server.socket.settimeout(3600)


def patient(server: Any) -> None:
    """Another class."""
    sock = server.socket
    server.socket = Patient(sock.family, sock.type, sock.proto, sock.detach())


def wrapped(server: Any) -> None:
    """No socket at all."""
    server.socket = Wrapper(server.socket)


@pytest.mark.parametrize("change", [with_timeout, patient, wrapped])
@pytest.mark.parametrize("model", MODELS)
def test_a_datagram_server_stops_at_once(model: str, change: Callable[[Any], None], running: Running) -> None:
    """Whatever its socket is, and whether it has looked for another datagram already."""
    server = server_class(model, "udp")(LOOPBACK, EchoDatagram)
    change(server)
    running(server, poll_interval=0.01)
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(LIMIT)
        for _ in range(3):
            client.sendto(b"hello", server.socket.getsockname())
            assert client.recv(100) == b"hello"
    call_within(LIMIT / 2, server.shutdown)


def test_a_timeout_that_a_handler_sets_delays_nothing(running: Running) -> None:
    """It is the server's socket that it sets it on."""

    class Setting(EchoDatagram):
        def handle(self) -> None:
            self.socket.settimeout(3600)
            super().handle()

    server = running(sockserve.UDPServer(LOOPBACK, Setting))
    assert ask(server, b"hello") == b"hello"
    call_within(LIMIT / 2, server.shutdown)
    assert server.socket.gettimeout() == 3600


def test_a_default_timeout_changes_no_socket_that_is_there() -> None:
    """The receiver's own socket does not take it, and the mode stays as it was."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(LOOPBACK)
        for blocking in (True, False):
            sock.settimeout(3600)
            os.set_blocking(sock.fileno(), blocking)
            receiver = Receiver(sock)
            socket.setdefaulttimeout(3600)
            try:
                with pytest.raises(BlockingIOError):
                    call_within(LIMIT, receiver.receive, 10)
            finally:
                socket.setdefaulttimeout(None)
            assert os.get_blocking(sock.fileno()) == blocking
            receiver.close()
            receiver.close()


def test_servers_of_one_loop_do_not_wait_for_each_other() -> None:
    """One has datagrams with a time-out, one a class that waits, one a listener that waits; each is served at once."""
    udp, slow = (sockserve.UDPServer(LOOPBACK, EchoDatagram) for _ in range(2))
    tcp, bare = (sockserve.TCPServer(LOOPBACK, ECHO) for _ in range(2))
    address = bare.server_address
    with_timeout(udp)
    patient(slow)
    bare.socket = Bare(bare.socket)  # type: ignore[assignment]
    with Loop() as loop:
        for server in (udp, slow, tcp, bare):
            server.attach(loop, 0.01)
        thread = threading.Thread(target=loop.run)
        thread.start()
        for _ in range(3):
            assert ask(udp, b"udp") == b"udp"
            assert ask(slow, b"slow") == b"slow"
            assert ask(tcp, b"tcp") == b"tcp"
            assert ask(address, b"bare") == b"bare"
        for server in (udp, slow, tcp, bare):
            call_within(LIMIT / 2, server.shutdown)
        thread.join()
    for server in (udp, slow, tcp, bare):
        server.server_close()


def test_of_those_who_wake_for_one_datagram_none_waits(running: Running) -> None:
    """All workers of a pool are told of it, one has it, and the others go on."""
    server = server_class("pool", "udp")(LOOPBACK, EchoDatagram)
    server.min_workers = server.max_workers = 4
    patient(server)
    running(server)
    for number in range(50):
        assert ask(server, b"%d" % number) == b"%d" % number
    call_within(LIMIT / 2, server.shutdown)


# listeners


@pytest.mark.parametrize("wrap", [Wrapper, Bare])
@pytest.mark.parametrize("model", MODELS)
def test_an_object_that_stands_for_a_listener(model: str, wrap: Any, running: Running) -> None:
    """Several clients at once are served, and nothing waits in its accept() when the server is to stop."""
    server = server_class(model, "tcp")(LOOPBACK, ECHO)
    address = server.server_address
    server.socket = wrap(server.socket)
    running(server, poll_interval=0.01)
    clients = [connect(address) for _ in range(5)]
    for number, client in enumerate(clients):
        client.sendall(b"%d" % number)
        client.shutdown(socket.SHUT_WR)
    assert [client.recv(10) for client in clients] == [b"%d" % number for number in range(5)]
    for client in clients:
        client.close()
    call_within(LIMIT / 2, server.shutdown)


@pytest.mark.skipif(not hasattr(socket, "SOCK_SEQPACKET"), reason="there is no such type")
@pytest.mark.parametrize("model", MODELS)
def test_a_listener_of_packets(model: str, running: Running) -> None:
    """A Unix socket of type SOCK_SEQPACKET: an echo of each, no wait in accept(), and its mode back at the end."""

    class Packets(sockserve.BaseRequestHandler):
        def handle(self) -> None:
            while packet := self.request.recv(100):
                self.request.send(packet)

    class Server(server_class(model, "unix")):  # type: ignore[misc]
        socket_type = socket.SOCK_SEQPACKET

    name = f"\0sockserve-test-{os.getpid()}-{time.monotonic_ns()}"
    server = running(Server(name, Packets))
    wait_until(lambda: not os.get_blocking(server.fileno()))
    clients = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
    for client in clients:
        client.settimeout(LIMIT)
        client.connect(name)
        for packet in (b"one", b"two"):
            client.send(packet)
            assert client.recv(100) == packet
        # A forked child has a copy of it.
        client.shutdown(socket.SHUT_WR)
        client.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.settimeout(LIMIT)
        silent.connect(name)
        silent.send(b"there")
        assert silent.recv(100) == b"there"
        call_within(LIMIT, server.drain, LIMIT)
        assert silent.recv(100) == b""
    call_within(LIMIT / 2, server.shutdown)
    assert os.get_blocking(server.fileno())
