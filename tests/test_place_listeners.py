"""Listeners of worker processes that share a port: whole copies of the server's, and none where no worker serves."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
from typing import Any

import pytest
from support.log_watch import ExpectLog
from support.waiting import wait_until

import sockserve
from sockserve.net.listen import listen_anew, listen_no_more, listens, twin_of
from sockserve.pytest_plugin import Running
from sockserve.testing import connect

LOOPBACK = ("127.0.0.1", 0)
LINGER = struct.pack("ii", 1, 7)
OPTIONS: list[tuple[int, int, int | bytes]] = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.SOL_SOCKET, socket.SO_RCVBUF, 70_000),
    (socket.SOL_SOCKET, socket.SO_SNDBUF, 80_000),
    (socket.SOL_SOCKET, socket.SO_LINGER, LINGER),
    (socket.SOL_SOCKET, socket.SO_PRIORITY, 3),
    (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo"),
    (socket.IPPROTO_IP, socket.IP_TOS, 0x10),
    (socket.IPPROTO_IP, socket.IP_TTL, 9),
    (socket.IPPROTO_IP, 15, 1),  # IP_FREEBIND
]
STREAM_OPTIONS: list[tuple[int, int, int | bytes]] = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 33),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 4000),
    (socket.IPPROTO_TCP, 23, 16),  # TCP_FASTOPEN
    (socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno"),
]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_twin_has_every_option_that_was_set(kind: int) -> None:
    """Options of the socket, of IP and of TCP are those of the original, sizes and structures among them."""
    options = OPTIONS + (STREAM_OPTIONS if kind == socket.SOCK_STREAM else [])
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for level, number, value in options:
            sock.setsockopt(level, number, value)
        sock.bind(LOOPBACK)
        if kind == socket.SOCK_STREAM:
            sock.listen()
        with twin_of(sock) as twin:
            assert twin.getsockname() == sock.getsockname()
            for level, number, _ in options:
                assert twin.getsockopt(level, number, 64) == sock.getsockopt(level, number, 64), (level, number)


def test_an_untouched_socket_has_a_twin_of_defaults() -> None:
    """Nothing but what was set is copied: the twin's other options are those of any new socket."""
    with socket.create_server(LOOPBACK, reuse_port=True) as sock, twin_of(sock) as twin, socket.socket() as fresh:
        for number in (socket.SO_RCVBUF, socket.SO_SNDBUF, socket.SO_KEEPALIVE, 49):
            assert twin.getsockopt(socket.SOL_SOCKET, number) == fresh.getsockopt(socket.SOL_SOCKET, number)


def test_a_twin_listens_when_it_is_told_to_and_not_after() -> None:
    """Clients of the port reach sockets that listen, and no other; one that stopped can listen again."""
    with socket.create_server(LOOPBACK, reuse_port=True) as sock, twin_of(sock) as twin:
        assert not listens(twin)
        clients = [socket.create_connection(sock.getsockname()) for _ in range(16)]
        for _ in clients:
            sock.accept()[0].close()
        listen_anew(twin, 5)
        listen_no_more(sock)
        assert (listens(sock), listens(twin)) == (False, True)
        more = [socket.create_connection(sock.getsockname()) for _ in range(4)]
        for _ in more:
            twin.accept()[0].close()
        listen_anew(sock, 5)
        listen_anew(sock, 5)
        assert listens(sock)
        for client in clients + more:
            client.close()


class Tell(sockserve.BaseRequestHandler):
    """Says which worker serves."""

    def handle(self) -> None:
        """Answer."""
        self.request.sendall(b"%d" % self.server.worker_id)  # type: ignore[attr-defined]


def test_the_options_of_hooks_and_of_the_program_are_on_every_workers_listener(running: Running) -> None:
    """What server_activate() set, and what was set on the socket later, holds in each worker."""

    class Options(sockserve.BaseRequestHandler):
        def handle(self) -> None:
            sock = self.server.socket  # type: ignore[attr-defined]
            numbers = (socket.TCP_NODELAY, socket.TCP_KEEPIDLE)
            values = [sock.getsockopt(socket.IPPROTO_TCP, number) for number in numbers]
            self.request.sendall(repr((self.server.worker_id, values)).encode())  # type: ignore[attr-defined]

    class Server(sockserve.PreForkMixIn, sockserve.ThreadingTCPServer):
        processes = 2
        allow_reuse_port = True

        def server_activate(self) -> None:
            super().server_activate()
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    server = Server(LOOPBACK, Options)
    server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 44)
    running(server)
    answers: set[bytes] = set()

    def both() -> bool:
        with connect(server) as client:
            answers.add(client.recv(100))
        return len(answers) == 2

    wait_until(both)
    assert answers == {b"(0, [1, 44])", b"(1, [1, 44])"}


@pytest.mark.parametrize("broken", [0, 1])
def test_a_place_that_cannot_be_filled_takes_no_client(broken: int, running: Running, expect_log: ExpectLog) -> None:
    """While a worker fails to start again and again the others serve all clients, also if its place is the first."""
    expect_log(logging.ERROR, f"worker {broken}", at_least=0)
    # What the supervisor says, once it has acted; the worker reports its exception before.
    failed = expect_log(logging.ERROR, "no such device, before it was ready")
    expect_log(logging.ERROR, "no such device", at_least=0)

    class Server(sockserve.PreForkMixIn, sockserve.ThreadingTCPServer):
        processes = 2
        allow_reuse_port = True

        def setup_worker(self) -> None:
            if self.worker_id == broken:
                raise OSError("no such device")

    server = running(Server(LOOPBACK, Tell))
    failed.wait(len(failed.lines) + 1)
    for _ in range(40):
        with connect(server) as client:
            assert client.recv(10) == b"%d" % (1 - broken)


def test_a_place_that_works_again_takes_clients_again(running: Running, expect_log: ExpectLog, tmp_path: Any) -> None:
    """What kept a worker from starting is over: its place listens again."""
    expect_log(logging.ERROR, "", at_least=0)
    works = tmp_path / "works"

    class Server(sockserve.PreForkMixIn, sockserve.ThreadingTCPServer):
        processes = 2
        allow_reuse_port = True

        def setup_worker(self) -> None:
            if self.worker_id == 0 and not works.exists():
                raise OSError("no such device")

    failed = expect_log(logging.ERROR, "no such device")
    server = running(Server(LOOPBACK, Tell))
    failed.wait()
    works.touch()

    def first_serves() -> bool:
        # What waited at the first place when it was found empty is reset.
        with contextlib.suppress(ConnectionResetError), connect(server) as client:
            return client.recv(10) == b"0"
        return False

    wait_until(first_serves)
