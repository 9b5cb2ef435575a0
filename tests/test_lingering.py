"""Connections that linger after their end: the answer arrives, and nothing waits for their peers."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.models import MODELS, SERVERS
from support.under_test import LIMIT
from support.waiting import wait_until
from test_closing import Pair, tcp_pair, wait_for_input

import sockserve
from sockserve.core.serving import serving_of
from sockserve.net import lingering
from sockserve.net.closing import cut, half_close
from sockserve.net.lingering import LINGER_BYTES, Lingering
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, connect

LOOPBACK = ("127.0.0.1", 0)
LARGE = bytes(8_000_000)

each_model = pytest.mark.parametrize("model", MODELS)


@pytest.fixture
def kept() -> Iterator[Lingering]:
    """A place for connections that linger."""
    made = Lingering()
    yield made
    made.abandon()


@pytest.fixture
def tcp() -> Iterator[Pair]:
    """A TCP connection."""
    made = tcp_pair()
    with made.ours, made.theirs:
        yield made


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a wait for the end of the time so long that a test which waits for it fails."""
    monkeypatch.setattr(lingering, "LINGER_SECONDS", 10 * LIMIT)


def end(pair: Pair, kept: Lingering) -> None:
    """End our side as a server does."""
    half_close(pair.ours)
    assert kept.add(pair.ours)
    pair.ours.close()


class Upper(sockserve.StreamRequestHandler):
    """Answers one line of 100 bytes at most, and reads no more."""

    def handle(self) -> None:
        """Answer."""
        self.wfile.write(self.rfile.readline(100).upper())


class Download(sockserve.StreamRequestHandler):
    """Reads one byte and sends a large answer."""

    rbufsize = 0

    def handle(self) -> None:
        """Answer."""
        self.rfile.read(1)
        self.wfile.write(LARGE)


@pytest.mark.usefixtures("patience")
def test_a_connection_is_kept_until_its_peer_closes(tcp: Pair, kept: Lingering) -> None:
    """What the peer still sends is taken meanwhile; then nothing of the connection is left."""
    tcp.theirs.sendall(bytes(1000))
    wait_for_input(tcp)
    tcp.ours.sendall(b"answer")
    end(tcp, kept)
    assert kept.sweep()
    tcp.theirs.sendall(bytes(1000))
    assert (tcp.theirs.recv(10), tcp.theirs.recv(10)) == (b"answer", b"")
    tcp.theirs.close()
    wait_until(lambda: not kept.sweep())


@pytest.mark.usefixtures("patience")
def test_without_input_it_is_kept_until_the_answer_has_arrived(tcp: Pair, kept: Lingering) -> None:
    """A peer that has it all and says nothing is not waited for."""
    tcp.ours.setblocking(False)
    sent = 0
    try:
        while True:
            sent += tcp.ours.send(LARGE)
    except BlockingIOError:
        pass
    end(tcp, kept)
    assert kept.sweep()
    while sent:
        sent -= len(tcp.theirs.recv(1 << 20))
    wait_until(lambda: not kept.sweep())


def test_time_is_up_after_some_seconds_in_all(tcp: Pair, kept: Lingering, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that sends a byte now and then does not move the end."""
    monkeypatch.setattr(lingering, "LINGER_SECONDS", 0.05)
    tcp.theirs.sendall(bytes(1000))
    wait_for_input(tcp)
    begun = time.monotonic()
    end(tcp, kept)

    def trickle() -> bool:
        tcp.theirs.send(b"x")
        return not kept.sweep()

    wait_until(trickle)
    assert time.monotonic() - begun >= 0.05


@pytest.mark.usefixtures("patience")
def test_an_upload_is_not_taken(tcp: Pair, kept: Lingering) -> None:
    """After ``LINGER_BYTES`` the connection is closed, and its peer sees that."""
    tcp.theirs.sendall(bytes(1000))
    wait_for_input(tcp)
    end(tcp, kept)
    tcp.theirs.setblocking(False)
    sent = 0

    def upload() -> bool:
        nonlocal sent
        try:
            sent += tcp.theirs.send(bytes(4096))
        except BlockingIOError:
            pass
        return not kept.sweep()

    wait_until(upload)
    assert sent >= LINGER_BYTES - 1000


@pytest.mark.usefixtures("patience")
def test_a_reset_ends_it(tcp: Pair, kept: Lingering) -> None:
    """There is nothing left to lose then."""
    tcp.theirs.sendall(bytes(1000))
    wait_for_input(tcp)
    end(tcp, kept)
    tcp.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    tcp.theirs.close()
    wait_until(lambda: not kept.sweep())


@pytest.mark.usefixtures("patience")
def test_no_more_than_so_many_linger(kept: Lingering, monkeypatch: pytest.MonkeyPatch) -> None:
    """For one more the oldest is closed."""
    monkeypatch.setattr(lingering, "MOST", 2)
    pairs = [tcp_pair() for _ in range(3)]
    try:
        for pair in pairs:
            pair.theirs.sendall(b"unread")
            wait_for_input(pair)
            end(pair, kept)
        assert len(kept) == 2
        assert pairs[0].theirs.recv(10) == b""
        wait_until(lambda: pairs[0].theirs.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or _is_reset(pairs[0].theirs))
        assert kept.sweep()
    finally:
        for pair in pairs:
            pair.theirs.close()


def _is_reset(sock: socket.socket) -> bool:
    try:
        sock.send(b"x")
    except OSError:
        return True
    return False


def test_without_a_descriptor_to_be_had_what_came_is_taken_and_that_is_all(
    tcp: Pair, kept: Lingering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the close is no reset, if the peer sends no more."""

    def refuse(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "dup", refuse)
    tcp.theirs.sendall(b"unread")
    wait_for_input(tcp)
    tcp.ours.sendall(b"answer")
    half_close(tcp.ours)
    assert not kept.add(tcp.ours)
    tcp.ours.close()
    assert (tcp.theirs.recv(10), tcp.theirs.recv(10)) == (b"answer", b"")
    assert len(kept) == 0


@pytest.mark.usefixtures("patience")
def test_an_end_in_haste_waits_for_no_more_than_the_answer(tcp: Pair, kept: Lingering) -> None:
    """A peer that has it all and stays does not hold up the end of the server."""
    tcp.theirs.sendall(b"unread")
    wait_for_input(tcp)
    tcp.ours.sendall(b"answer")
    end(tcp, kept)
    assert kept.sweep()
    kept.finish(in_haste=True)
    assert len(kept) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork(2)")
def test_a_forked_copy_gives_up_its_descriptors_and_ends_nothing(tcp: Pair, kept: Lingering) -> None:
    """The connection goes on lingering in the process that made it."""
    tcp.theirs.sendall(b"unread")
    wait_for_input(tcp)
    end(tcp, kept)
    pid = os.fork()
    if not pid:
        kept.finish()
        os._exit(len(kept))
    assert os.waitpid(pid, 0)[1] == 0
    tcp.theirs.sendall(b"more")
    assert kept.sweep()


@each_model
@pytest.mark.usefixtures("patience")
def test_clients_that_stay_and_send_more_hold_up_nobody(running: Running, model: str) -> None:
    """They have been answered; the next one is served at once, and the server ends at once."""
    server: Any = type("Server", (SERVERS[model],), {"max_workers": 1})(LOOPBACK, Upper)
    running(server)
    rude = [connect(server, timeout=LIMIT) for _ in range(3)]
    try:
        for client in rude:
            # More than the handler's buffer takes.
            client.sendall(b"one\n" + b"two\n" * 5000)
            assert client.recv(10) == b"ONE\n"
        assert ask(server, b"good\n", timeout=LIMIT) == b"GOOD\n"
        server.shutdown()
        if model == "fork":
            # Each of the children waits for its own client, and has copies of the others.
            for client in rude:
                cut(client)
        server.server_close()
        assert len(serving_of(server).lingering) == 0
    finally:
        for client in rude:
            client.close()


@each_model
def test_an_answer_arrives_whole_although_the_client_goes_on_sending(running: Running, model: str) -> None:
    """A reset would take along what the client has not got yet."""
    server: Any = SERVERS[model](LOOPBACK, Download)
    running(server)
    with connect(server, timeout=LIMIT) as client:
        client.sendall(b"more than is read")
        received = 0
        while received < len(LARGE):
            data = client.recv(65536)
            assert data
            received += len(data)
            client.send(b"still sending")
        assert client.recv(10) == b""


def test_one_request_without_a_loop_lingers_too() -> None:
    """``handle_request()`` does not wait for the client; the next call and ``server_close()`` look after it."""
    with sockserve.TCPServer(LOOPBACK, Upper) as server:
        with connect(server, timeout=LIMIT) as rude:
            rude.sendall(b"one\n" + b"two\n" * 5000)
            server.handle_request()
            assert (rude.recv(10), rude.recv(10)) == (b"ONE\n", b"")
            assert len(serving_of(server).lingering) == 1
            rude.sendall(b"more")
        server.timeout = 0.2
        wait_until(lambda: (server.handle_request(), len(serving_of(server).lingering))[1] == 0)
