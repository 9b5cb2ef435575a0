"""Greenlets that need never wait: they give their turn away all the same."""

from __future__ import annotations

import pathlib
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.certificates import client_context, server_context
from support.running_greenlets import Greenlets
from support.under_test import LIMIT

from sockserve.concurrency.cooperative import channel
from sockserve.greenlets import cooperative, sleep

MANY = 2000
"""Operations that none of these tests comes to."""


@pytest.fixture
def greenlets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Greenlets]:
    """Greenlets whose turns are over as soon as it is looked at the clock."""
    monkeypatch.setattr(channel, "TURN", 0.0)
    made = Greenlets()
    yield made
    made.close()


def operations_before_another_runs(greenlets: Greenlets, operate: Callable[[], object]) -> int:
    """How often one greenlet could do it before the other had a turn."""
    has_run: list[bool] = []

    def hog() -> int:
        for count in range(MANY):
            operate()
            if has_run:
                return count
        return MANY

    return greenlets.run(hog, lambda: has_run.append(True))[0]  # type: ignore[no-any-return]


RECEIVING: dict[str, Callable[[Any], object]] = {
    "recv": lambda sock: sock.recv(1),
    "recv_into": lambda sock: sock.recv_into(bytearray(1)),
    "recvfrom": lambda sock: sock.recvfrom(1),
    "recvfrom_into": lambda sock: sock.recvfrom_into(bytearray(1)),
    "recvmsg": lambda sock: sock.recvmsg(1),
    "recvmsg_into": lambda sock: sock.recvmsg_into([bytearray(1)]),
    "peek": lambda sock: (sock.recv(1, socket.MSG_PEEK), sock.recv(1)),
}

SENDING: dict[str, Callable[[Any], object]] = {
    "send": lambda sock: sock.send(b"x"),
    "sendall": lambda sock: sock.sendall(b"x"),
    "sendmsg": lambda sock: sock.sendmsg([b"x"]),
}


@pytest.mark.parametrize("receive", RECEIVING.values(), ids=RECEIVING)
@pytest.mark.parametrize("limit", [None, 100.0])
def test_whoever_always_finds_input_lets_others_run(
    greenlets: Greenlets, receive: Callable[[Any], object], limit: float | None
) -> None:
    """However fast a client sends, with or without a time-out."""
    ours, theirs = greenlets.pair()
    ours.settimeout(limit)
    peer = socket.socket(fileno=theirs.detach())
    with peer:
        assert operations_before_another_runs(greenlets, lambda: (peer.send(b"x"), receive(ours))) < MANY


@pytest.mark.parametrize("send", SENDING.values(), ids=SENDING)
def test_whoever_always_finds_room_lets_others_run(greenlets: Greenlets, send: Callable[[Any], object]) -> None:
    """However fast a client reads."""
    ours, theirs = greenlets.pair()
    peer = socket.socket(fileno=theirs.detach())
    with peer:
        assert operations_before_another_runs(greenlets, lambda: (send(ours), peer.recv(1))) < MANY


def test_one_that_sends_a_file_lets_others_run(greenlets: Greenlets) -> None:
    """Each ``sendfile()`` counts."""
    ours, theirs = greenlets.pair()
    peer = socket.socket(fileno=theirs.detach())
    with peer, tempfile.TemporaryFile() as file:
        file.write(b"x")
        file.flush()
        assert operations_before_another_runs(greenlets, lambda: (ours.sendfile(file, 0, 1), peer.recv(1))) < MANY


def test_one_that_accepts_lets_others_run(greenlets: Greenlets) -> None:
    """A handler with a listener of its own, that always finds a connection."""
    with cooperative(socket.create_server(("127.0.0.1", 0))) as listener:
        address = listener.getsockname()

        def accept() -> None:
            with socket.create_connection(address):
                listener.accept()[0].close()

        assert operations_before_another_runs(greenlets, accept) < MANY


def test_over_tls_it_is_the_same(greenlets: Greenlets, certificate: pathlib.Path) -> None:
    """Reading and writing."""
    server_side = server_context(certificate)
    client_side = client_context(certificate)
    one, other = socket.socketpair()
    wrapped: list[ssl.SSLSocket] = []
    shaking = threading.Thread(target=lambda: wrapped.append(server_side.wrap_socket(other, server_side=True)))
    shaking.start()
    peer = client_side.wrap_socket(one, server_hostname="localhost")
    shaking.join(LIMIT)
    with peer, cooperative(wrapped[0]) as ours:
        assert operations_before_another_runs(greenlets, lambda: (peer.send(b"x"), ours.recv(1))) < MANY
        assert operations_before_another_runs(greenlets, lambda: (ours.sendall(b"x"), peer.recv(1))) < MANY


def test_whoever_waits_anyhow_pays_nothing(greenlets: Greenlets, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that waits for its input gives no turn away beside that, however many it has had."""
    ours, theirs = greenlets.pair()
    given: list[object] = []
    monkeypatch.setattr(greenlets.hub, "give_way", given.append)

    def ask() -> None:
        for _ in range(100):
            ours.sendall(b"x")
            assert ours.recv(10) == b"y"

    def answer() -> None:
        for _ in range(100):
            assert theirs.recv(10) == b"x"
            theirs.sendall(b"y")

    greenlets.run(ask, answer)
    assert not given


def test_greenlets_that_give_their_turn_away_have_one_in_each_turn_of_the_loop(greenlets: Greenlets) -> None:
    """However many they are: the loop looks for new input before any of them goes on."""
    had: list[tuple[int, int]] = []

    def go_on(number: int) -> None:
        for _ in range(5):
            sleep(0)
            assert greenlets.hub.loop is not None
            had.append((number, greenlets.hub.loop.turns))

    def begin() -> None:
        for number in range(4):
            greenlets.hub.spawn(lambda number=number: go_on(number))  # type: ignore[misc]
        go_on(4)

    greenlets.hub.run(begin)
    assert greenlets.hub.wait_until_idle(LIMIT)
    assert len(set(had)) == len(had) == 25


def test_one_that_does_not_wait_on_purpose_keeps_its_turn(greenlets: Greenlets) -> None:
    """``setblocking(False)`` means that nothing else runs meanwhile."""
    ours, theirs = greenlets.pair()
    ours.setblocking(False)
    peer = socket.socket(fileno=theirs.detach())
    with peer:
        assert operations_before_another_runs(greenlets, lambda: (peer.send(b"x"), ours.recv(1))) == MANY


def test_a_turn_given_away_leaves_a_wait_as_it_was(greenlets: Greenlets) -> None:
    """The socket is closed by the other greenlet meanwhile: an error, as for whoever waits."""
    ours, theirs = greenlets.pair()
    peer = socket.socket(fileno=theirs.detach())

    def read() -> str:
        try:
            for _ in range(MANY):
                peer.send(b"x")
                ours.recv(1)
        except OSError as error:
            return type(error).__name__
        return "never"

    def close() -> None:
        sleep(0)
        ours.close()

    with peer:
        assert greenlets.run(read, close)[0] == "OSError"
