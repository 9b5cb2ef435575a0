"""The client that asks, and those that misbehave, seen from the other end of their connections."""

from __future__ import annotations

import contextlib
import pathlib
import select
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.handlers import Boom, handlers
from support.under_test import LIMIT

import sockserve
from sockserve.testing import HalfClose, HalfHandshake, Reset, Stall, Trickle, ask, call_within, running

LOOPBACK = ("127.0.0.1", 0)

both = pytest.mark.parametrize("module", [sockserve, socketserver], ids=["sockserve", "socketserver"])


# ask


@both
def test_ask_does_not_block_when_both_directions_are_full(module: Any) -> None:
    """An answer that comes while the question is still being sent is read, however long both are."""
    data = bytes(range(256)) * 32768
    with running(module.TCPServer(LOOPBACK, handlers(module).EchoStream), poll_interval=0.01) as server:
        assert ask(server, data, timeout=2 * LIMIT) == data


def test_ask_takes_an_answer_to_half_of_the_question() -> None:
    """A server that answers and closes without reading all has answered."""
    with socket.create_server(LOOPBACK) as listener:

        def answer() -> None:
            connection = listener.accept()[0]
            with connection:
                connection.sendall(b"enough")
                connection.shutdown(socket.SHUT_RDWR)

        helper = threading.Thread(target=answer)
        helper.start()
        assert ask(listener.getsockname(), b"x" * 50_000_000) == b"enough"
        helper.join()


def test_ask_gives_up() -> None:
    """Neither a silent stream nor a silent datagram socket holds it for longer than the timeout."""
    with socket.create_server(LOOPBACK) as stream, pytest.raises(TimeoutError, match="0 bytes so far"):
        ask(stream.getsockname(), b"anybody?", timeout=0.05)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        datagram.bind(LOOPBACK)
        with pytest.raises(TimeoutError):
            ask(f"udp://127.0.0.1:{datagram.getsockname()[1]}", b"anybody?", timeout=0.05)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::", ""])  # noqa: S104
def test_ask_takes_every_form_of_an_ip_address(host: str) -> None:
    """The server itself, its sockaddr, and its text, TCP and UDP, every interface included."""
    shared = handlers(sockserve)
    bracketed = f"[{host}]" if ":" in host else host

    class TCP(sockserve.TCPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    class UDP(sockserve.UDPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    with running(TCP((host, 0), shared.Echo)) as tcp, running(UDP((host, 0), shared.EchoDatagram)) as udp:
        port = tcp.server_address[1]
        for address in (tcp, tcp.server_address, (host, port), f"tcp://{bracketed}:{port}"):
            assert ask(address, b"tcp") == b"tcp"
        for address in (udp, f"udp://{bracketed}:{udp.server_address[1]}"):
            assert ask(address, b"udp") == b"udp"


def test_ask_takes_every_form_of_a_unix_address(tmp_path: pathlib.Path) -> None:
    """The server itself, its path as text, bytes or object, and its address text; a client's own path is removed."""
    shared = handlers(sockserve)
    path = tmp_path / "stream"
    with running(sockserve.UnixStreamServer(str(path), shared.Echo)) as server:
        for address in (server, path, str(path), bytes(path), f"unix:{path}"):
            assert ask(address, b"unix") == b"unix"
    with (
        pytest.MonkeyPatch.context() as patch,
        running(sockserve.UnixDatagramServer(f"{tmp_path}/dgram", shared.EchoDatagram)) as server,
    ):
        (tmp_path / "own").mkdir()
        patch.setattr("tempfile.tempdir", f"{tmp_path}/own")
        for address in (server, f"unix-dgram:{tmp_path}/dgram"):
            assert ask(address, b"unix") == b"unix"
        assert not list((tmp_path / "own").iterdir())


def test_ask_says_what_is_no_address(tmp_path: pathlib.Path) -> None:
    """Nobody there, a bad text, and a text without anything to connect to raise three different errors."""
    with pytest.raises(FileNotFoundError):
        ask(tmp_path / "nobody", b"")
    with pytest.raises(sockserve.AddressError):
        ask("carrier-pigeon://home", b"")
    with pytest.raises(ValueError, match="nothing that a client could connect to"):
        ask("fd:3", b"")


# clients that misbehave: what the server sees


@pytest.fixture(params=["IPv4", "IPv6", "Unix"])
def listener(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[socket.socket]:
    """A listening socket of each family."""
    if request.param == "Unix":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{tmp_path}/socket")
        listener.listen()
    elif request.param == "IPv6":
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    else:
        listener = socket.create_server(LOOPBACK)
    with listener:
        yield listener


def accept(listener: socket.socket) -> socket.socket:
    """Accept a connection on which nothing takes longer than a failing test."""
    connection = listener.accept()[0]
    connection.settimeout(LIMIT)
    return connection


def is_silent(connection: socket.socket) -> bool:
    """Say whether there is nothing to read now, not even end-of-file."""
    return not select.select([connection], [], [], 0)[0]


def wait_until_full(connection: socket.socket) -> None:
    """Wait until its peer's buffers and its own hold no byte more."""
    pause, deadline = threading.Event(), time.monotonic() + LIMIT
    while select.select([], [connection], [], 0)[1]:
        assert time.monotonic() < deadline
        pause.wait(0.01)


def test_stall_is_silent_until_it_ends(listener: socket.socket) -> None:
    """After its bytes nothing comes, and end-of-file when the block ends; it reads what it is sent."""
    with Stall(listener.getsockname(), b"hel") as client, accept(listener) as connection:
        assert connection.recv(10) == b"hel"
        assert is_silent(connection)
        connection.sendall(b"well?")
        assert client.connection.recv(10) == b"well?"
        client.connection.close()
        assert connection.recv(10) == b""


def test_trickle_sends_byte_by_byte_and_then_stalls(listener: socket.socket) -> None:
    """All bytes come, one after the other, then nothing, neither bytes nor end-of-file."""
    with Trickle(listener.getsockname(), b"abc", interval=0.001) as client, accept(listener) as connection:
        with connection.makefile("rb") as received:
            assert received.read(3) == b"abc"
        client._thread.join(LIMIT)
        assert (client.sent, client.error) == (3, None)
        assert is_silent(connection)


@pytest.mark.parametrize("interval", [3600, 0])
def test_trickle_ends_with_the_block(listener: socket.socket, interval: float) -> None:
    """The end of the block stops it in the middle, while it waits for its time, or for a server that does not read."""
    client = Trickle(listener.getsockname(), b"x" * 100_000_000, interval=interval, timeout=3600)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.__enter__()
    client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with accept(listener) as connection:
        assert connection.recv(1) == b"x"
        if not interval:
            wait_until_full(client.connection)
        call_within(LIMIT, client.__exit__, None, None, None)
    assert not client._thread.is_alive()
    assert client.sent < 100_000_000


def test_trickle_ends_when_the_server_closes(listener: socket.socket) -> None:
    """It keeps the error that ended it."""
    with Trickle(listener.getsockname(), b"x" * 1_000_000, interval=0.001) as client:
        accept(listener).close()
        client._thread.join(LIMIT)
        assert isinstance(client.error, ConnectionError)


def test_reset_breaks_the_connection(listener: socket.socket) -> None:
    """Over TCP the server reads ECONNRESET; a Unix socket knows only end-of-file."""
    is_unix = listener.family == socket.AF_UNIX
    with Reset(listener.getsockname(), b"hello") as client, accept(listener) as connection:
        assert connection.recv(10) == b"hello"
        client.reset()
        client.reset()
        with contextlib.nullcontext() if is_unix else pytest.raises(ConnectionResetError):
            assert connection.recv(10) == b""


def test_reset_at_the_end_of_the_block() -> None:
    """Without a call of reset() it comes when the block ends."""
    with socket.create_server(LOOPBACK) as listener:
        with Reset(listener.getsockname()):
            connection = accept(listener)
        with connection, pytest.raises(ConnectionResetError):
            connection.recv(10)


def test_half_handshake_is_the_beginning_of_one(listener: socket.socket) -> None:
    """OpenSSL takes the bytes for a ClientHello and wants the rest, which does not come."""
    with HalfHandshake(listener.getsockname()) as client, accept(listener) as connection:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_bio(incoming, outgoing, server_side=True)
        sent = connection.recv(100)
        assert int.from_bytes(sent[3:5]) == 4 + int.from_bytes(sent[6:9])
        incoming.write(sent)
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        assert not outgoing.pending
        assert is_silent(connection)
        client.connection.close()


def test_half_close_still_reads(listener: socket.socket) -> None:
    """The server sees end-of-file and can answer."""
    with HalfClose(listener.getsockname(), b"question") as client, accept(listener) as connection:
        assert connection.recv(10) == b"question"
        assert connection.recv(10) == b""
        connection.sendall(b"ans")
        connection.sendall(b"wer")
        connection.close()
        assert client.read() == b"answer"


@pytest.mark.parametrize("client", [Stall, HalfClose, HalfHandshake, Reset])
def test_misbehaving_takes_a_stream(client: Any) -> None:
    """A datagram server has no connection to misbehave on: an error says so."""
    with (
        sockserve.UDPServer(LOOPBACK, handlers(sockserve).EchoDatagram) as server,
        pytest.raises(ValueError, match="needs a stream"),
        client(server),
    ):
        pytest.fail("the body ran")


def test_a_client_that_cannot_begin_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error while the first bytes are sent leaves no socket open."""

    def fail(_: object) -> None:
        raise Boom

    monkeypatch.setattr(Stall, "_begin", fail)
    client = Stall(None)
    with socket.create_server(LOOPBACK) as listener:
        client.address = listener.getsockname()
        with pytest.raises(Boom):
            client.__enter__()
        assert client.connection.fileno() == -1
