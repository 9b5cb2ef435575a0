"""Ending connections: the peer gets the whole answer, and no peer makes it last."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from support.under_test import LIMIT

from sockserve.net import closing
from sockserve.net.closing import cut, end_input, half_close


class Pair(NamedTuple):
    """Both ends of a connection."""

    ours: socket.socket
    theirs: socket.socket


def tcp_pair() -> Pair:
    """Connect two TCP sockets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname(), LIMIT)
        ours, _ = listener.accept()
    return Pair(ours, theirs)


def unix_pair() -> Pair:
    """Connect two Unix sockets."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(LIMIT)
    return Pair(ours, theirs)


@pytest.fixture(params=[tcp_pair, unix_pair], ids=["tcp", "unix"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A connection of either kind."""
    made: Pair = request.param()
    with made.ours, made.theirs:
        yield made


@pytest.fixture
def tcp() -> Iterator[Pair]:
    """A TCP connection."""
    made = tcp_pair()
    with made.ours, made.theirs:
        yield made


def wait_for_input(pair: Pair) -> None:
    """Return when something that was sent has arrived, which it need not have when send(2) returns."""
    pair.ours.settimeout(LIMIT)
    pair.ours.recv(1, socket.MSG_PEEK)
    pair.ours.settimeout(None)


def test_without_unread_input_a_close_loses_nothing(pair: Pair) -> None:
    """A peer that keeps its half open costs nothing, and sees end-of-file."""
    pair.ours.sendall(b"answer")
    assert not half_close(pair.ours)
    assert pair.theirs.recv(10) == b"answer"
    assert pair.theirs.recv(10) == b""


def test_with_unread_input_it_must_not_be_closed_at_once(pair: Pair) -> None:
    """Nor does it wait by itself."""
    pair.theirs.sendall(bytes(1000))
    wait_for_input(pair)
    assert half_close(pair.ours)
    assert pair.theirs.recv(10) == b""


def test_a_large_answer_under_way_must_not_be_cut_off_by_a_close(tcp: Pair) -> None:
    """The peer may go on sending, and a reset would take the rest of the answer along."""
    tcp.ours.settimeout(LIMIT)
    tcp.ours.sendall(bytes(100_000))
    assert half_close(tcp.ours)


def test_a_connection_that_is_gone_is_no_error(pair: Pair) -> None:
    """Neither a reset nor a socket that the handler closed is worth an exception."""
    pair.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    pair.theirs.close()
    for _ in range(2):
        half_close(pair.ours)
        end_input(pair.ours)
        cut(pair.ours)
        pair.ours.close()


def test_a_socket_that_was_never_connected_is_no_error() -> None:
    """ENOTCONN is none either."""
    with socket.socket() as sock:
        half_close(sock)
        end_input(sock)
        cut(sock)


def test_a_connection_like_object_is_shut_down() -> None:
    """What only has a socket's methods, as a test's stand-in, has its sending half shut down."""
    calls = []

    class Connection:
        def shutdown(self, how: int) -> None:
            calls.append(how)
            raise OSError(errno.ENOTCONN, "not connected")

    half_close(Connection())
    assert calls == [socket.SHUT_WR]


def test_end_of_input_wakes_a_reader_who_can_still_write(pair: Pair) -> None:
    """A thread that waits for input sees end-of-file, and its answer arrives."""
    received = []
    reader = threading.Thread(target=lambda: received.append(pair.ours.recv(10)), daemon=True)
    reader.start()
    end_input(pair.ours)
    reader.join(LIMIT)
    assert received == [b""]
    pair.ours.sendall(b"goodbye")
    assert pair.theirs.recv(10) == b"goodbye"


def test_a_cut_wakes_both_a_reader_and_a_writer(pair: Pair) -> None:
    """A thread that waits for input sees end-of-file, one that waits to send an error; the descriptor stays valid."""
    errors: list[BaseException] = []

    def write() -> None:
        try:
            pair.ours.sendall(bytes(100_000_000))
        except OSError as error:
            errors.append(error)

    writer = threading.Thread(target=write, daemon=True)
    reader = threading.Thread(target=pair.ours.recv, args=(10,), daemon=True)
    for thread in (reader, writer):
        thread.start()
    cut(pair.ours)
    for thread in (reader, writer):
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert [type(error) for error in errors] == [BrokenPipeError]
    assert pair.ours.fileno() >= 0


@pytest.mark.parametrize("end", [end_input, cut])
def test_datagram_sockets_are_left_alone(end: object) -> None:
    """The socket of a datagram is the server's: other requests are answered on it. So is what is no socket."""
    assert callable(end)
    with socket.socket(type=socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        server.bind(("127.0.0.1", 0))
        client.connect(server.getsockname())
        server.connect(client.getsockname())
        end(server)
        client.send(b"hello")
        server.settimeout(LIMIT)
        assert server.recv(10) == b"hello"
    end((b"hello", server))


@pytest.mark.parametrize("fault", [OSError(92, "Protocol not available"), TypeError("not such a socket")])
def test_unread_input_is_noticed_on_kernels_and_sockets_that_do_not_tell_it_the_short_way(
    tcp: Pair, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """Linux before 4.12 has no SO_MEMINFO, and gevent's socket has another base."""

    def refuse(_: object) -> int:
        raise fault

    monkeypatch.setattr(closing, "_family_of", refuse)
    tcp.theirs.sendall(b"unread")
    wait_for_input(tcp)
    assert half_close(tcp.ours)
