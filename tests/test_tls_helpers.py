"""TLS handshakes under a deadline, and clean ends, against peers that behave and peers that do not."""

from __future__ import annotations

import concurrent.futures
import contextlib
import pathlib
import socket
import ssl
import struct
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator

import pytest
from support.certificates import VERSIONS, client_context, server_context

from sockserve.errors import HandshakeError, PeerError
from sockserve.net import tls
from sockserve.net.tls import close_notify, defer_handshake, handshake, is_tls

LIMIT = 30.0
each_version = pytest.mark.parametrize("version", VERSIONS, ids=[version.name for version in VERSIONS])


@pytest.fixture
def threads() -> Iterator[concurrent.futures.Executor]:
    """Threads for the other side."""
    with concurrent.futures.ThreadPoolExecutor() as executor:
        yield executor


class Pair:
    """A listener that an SSLContext wrapped, the connection it accepted without handshake, and a raw client."""

    def __init__(self, context: ssl.SSLContext) -> None:
        with socket.create_server(("127.0.0.1", 0)) as plain:
            self.listener = context.wrap_socket(plain, server_side=True)
        self.listener.settimeout(LIMIT)
        defer_handshake(self.listener)
        self.client = socket.create_connection(self.listener.getsockname(), LIMIT)
        self.server, _ = self.listener.accept()
        self.server.settimeout(LIMIT)

    def shake_hands(self, context: ssl.SSLContext, threads: concurrent.futures.Executor) -> None:
        """Make ``client`` a TLS one, while the server answers."""
        wrapped = threads.submit(self.wrap_client, context)
        handshake(self.server, LIMIT)
        self.client = wrapped.result(LIMIT)

    def close_client(self) -> None:
        """Close what the client has become."""
        self.client.close()

    def wrap_client(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Shake hands as a client that wants to see how a connection ends."""
        return context.wrap_socket(self.client, server_hostname="localhost", suppress_ragged_eofs=False)


@pytest.fixture
def connect(certificate: pathlib.Path) -> Iterator[Callable[..., Pair]]:
    """Make pairs; they are closed when the test ends."""
    with contextlib.ExitStack() as stack:

        def make(version: ssl.TLSVersion | None = None) -> Pair:
            pair = Pair(server_context(certificate, version))
            for sock in (pair.listener, pair.server):
                stack.enter_context(sock)
            stack.callback(pair.close_client)
            return pair

        yield make


# recognising


def test_nothing_imports_ssl_for_a_program_without_it() -> None:
    """A program that has no TLS does not pay for it, and gets an answer all the same."""
    program = (
        "import sys, socket; from sockserve.net import tls; s = socket.socket();"
        "assert not tls.is_tls(s) and not tls.is_tls(None); tls.defer_handshake(s); s.close();"
        "assert 'ssl' not in sys.modules; import ssl; assert not tls.is_tls(s)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=LIMIT)


def test_only_wrapped_sockets_are_tls(connect: Callable[..., Pair]) -> None:
    """A listener and a connection that a context wrapped are, whatever else a request may be is not."""
    pair = connect()
    assert is_tls(pair.listener)
    assert is_tls(pair.server)
    assert not is_tls(pair.client)
    assert not is_tls((b"datagram", pair.client))
    assert not is_tls(None)


def test_an_ssl_module_that_is_being_imported_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """While another thread imports ssl, the module is there but not yet what it has to have."""

    class Special(socket.socket):
        """A socket of another class, as programs have them."""

    monkeypatch.setitem(sys.modules, "ssl", types.ModuleType("ssl"))
    with Special() as sock:
        assert not is_tls(sock)


# handshake


def test_a_deferred_handshake_is_not_in_accept(connect: Callable[..., Pair]) -> None:
    """accept() returns although the client says nothing, with a connection that has no TLS yet."""
    pair = connect()
    assert is_tls(pair.server)
    assert pair.server.version() is None
    assert pair.server.gettimeout() == LIMIT


@each_version
@pytest.mark.parametrize("timeout", [None, 7.5])
def test_hands_are_shaken(
    connect: Callable[..., Pair],
    certificate: pathlib.Path,
    threads: concurrent.futures.Executor,
    version: ssl.TLSVersion,
    timeout: float | None,
) -> None:
    """Afterwards both sides talk, the socket has its own time-out again, and a second handshake changes nothing."""
    pair = connect(version)
    pair.server.settimeout(timeout)
    pair.shake_hands(client_context(certificate), threads)
    assert pair.server.gettimeout() == timeout
    handshake(pair.server, None)
    assert pair.server.version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]
    pair.client.sendall(b"hello")
    assert pair.server.recv(10) == b"hello"
    pair.server.sendall(b"and back")
    assert pair.client.recv(10) == b"and back"


def _say_nothing(pair: Pair) -> None:
    pair.server.settimeout(None)


def _speak_http(pair: Pair) -> None:
    pair.client.sendall(b"GET / HTTP/1.0\r\n\r\n")


def _speak_nonsense(pair: Pair) -> None:
    pair.client.sendall(bytes(range(200)))


def _leave(pair: Pair) -> None:
    pair.client.close()


def _leave_in_the_middle(pair: Pair) -> None:
    pair.client.sendall(client_hello()[:20])
    pair.client.close()


def _reset(pair: Pair) -> None:
    pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair.client.close()


def _reset_by_us(pair: Pair) -> None:
    pair.server.close()


def client_hello() -> bytes:
    """What a client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


FAILURES: dict[Callable[[Pair], None], tuple[str, type[OSError]]] = {
    _say_nothing: ("not done within 0.2 s", TimeoutError),
    _speak_http: ("http request", ssl.SSLError),
    _speak_nonsense: ("wrong version number|unsupported protocol|bad", ssl.SSLError),
    _leave: ("[Ee][Oo][Ff]", ssl.SSLError),
    _leave_in_the_middle: ("[Ee][Oo][Ff]", ssl.SSLError),
    _reset: ("Connection reset by peer|not connected", OSError),
    _reset_by_us: ("Bad file descriptor", OSError),
}


@each_version
@pytest.mark.parametrize("misbehave", FAILURES)
def test_a_handshake_that_fails_says_why_in_one_line(
    connect: Callable[..., Pair], version: ssl.TLSVersion, misbehave: Callable[[Pair], None]
) -> None:
    """Silence, garbage and departures raise HandshakeError, the peer's fault and an OSError, from what happened."""
    reason, cause = FAILURES[misbehave]
    pair = connect(version)
    misbehave(pair)
    before = pair.server.gettimeout()
    with pytest.raises(HandshakeError, match=f"TLS handshake failed: .*({reason})") as failure:
        handshake(pair.server, 0.2 if cause is TimeoutError else LIMIT)
    assert "\n" not in str(failure.value)
    assert "_ssl.c" not in str(failure.value)
    assert isinstance(failure.value, PeerError)
    assert isinstance(failure.value, OSError)
    assert isinstance(failure.value.__cause__, cause)
    assert pair.server.gettimeout() == before


def test_a_client_that_does_not_trust_us_is_a_failed_handshake(
    connect: Callable[..., Pair], threads: concurrent.futures.Executor
) -> None:
    """The client's alert is the reason that is given."""
    pair = connect(ssl.TLSVersion.TLSv1_2)
    refusal = threads.submit(pair.wrap_client, ssl.create_default_context())
    with pytest.raises(HandshakeError, match="unknown ca"):
        handshake(pair.server, LIMIT)
    with pytest.raises(ssl.SSLCertVerificationError):
        refusal.result(LIMIT)


def test_a_client_of_another_version_is_a_failed_handshake(
    connect: Callable[..., Pair], certificate: pathlib.Path, threads: concurrent.futures.Executor
) -> None:
    """No common version of TLS is told in OpenSSL's words."""
    pair = connect(ssl.TLSVersion.TLSv1_3)
    refusal = threads.submit(pair.wrap_client, client_context(certificate, ssl.TLSVersion.TLSv1_2))
    with pytest.raises(HandshakeError, match="unsupported protocol"):
        handshake(pair.server, LIMIT)
    with pytest.raises(ssl.SSLError):
        refusal.result(LIMIT)


def test_the_deadline_is_for_the_whole_handshake(
    connect: Callable[..., Pair], threads: concurrent.futures.Executor
) -> None:
    """A client that sends a byte now and then, each well within the limit, does not get more time for it."""
    pair, stop = connect(), threading.Event()

    def trickle() -> int:
        for sent, byte in enumerate(client_hello(), 1):
            pair.client.send(bytes([byte]))
            if stop.wait(0.05):
                return sent
        return -1

    sent = threads.submit(trickle)
    try:
        with pytest.raises(HandshakeError, match=r"not done within 0\.5 s"):
            handshake(pair.server, 0.5)
    finally:
        stop.set()
    # All of it would have taken 25 seconds.
    assert sent.result(LIMIT) > 0


# the end


@each_version
@pytest.mark.parametrize("unread", [b"", b"what the handler did not read"])
def test_a_peer_sees_a_clean_end_and_is_not_waited_for(
    connect: Callable[..., Pair],
    certificate: pathlib.Path,
    threads: concurrent.futures.Executor,
    version: ssl.TLSVersion,
    unread: bytes,
) -> None:
    """The answer and then end-of-file arrive whole, though the peer has not answered when close_notify() returns."""
    pair = connect(version)
    pair.shake_hands(client_context(certificate), threads)
    pair.client.sendall(unread)
    pair.server.sendall(b"answer")
    close_notify(pair.server, LIMIT)
    assert pair.server.gettimeout() == LIMIT
    # Only then the peer begins to read; without close_notify its second read would raise SSLEOFError.
    socket.socket.shutdown(pair.server, socket.SHUT_WR)
    assert pair.client.recv(10) == b"answer"
    assert pair.client.recv(10) == b""
    # The peer's half is still open, and drained beneath TLS.
    assert isinstance(pair.client, ssl.SSLSocket)
    pair.client.unwrap().close()
    while socket.socket.recv(pair.server, 1000):
        pass


@each_version
def test_a_peer_that_ended_first_gets_its_answer(
    connect: Callable[..., Pair],
    certificate: pathlib.Path,
    threads: concurrent.futures.Executor,
    version: ssl.TLSVersion,
) -> None:
    """Where the peer's close_notify has come already, both sides end complete."""
    pair = connect(version)
    pair.shake_hands(client_context(certificate), threads)
    assert isinstance(pair.client, ssl.SSLSocket)
    ended = threads.submit(pair.client.unwrap)
    assert pair.server.recv(10) == b""
    close_notify(pair.server, LIMIT)
    ended.result(LIMIT).close()
    # Once more, when nothing is wrapped any longer.
    close_notify(pair.server, LIMIT)


@each_version
@pytest.mark.parametrize("end", [_leave, _reset, _reset_by_us])
def test_what_became_of_the_peer_is_no_error(
    connect: Callable[..., Pair],
    certificate: pathlib.Path,
    threads: concurrent.futures.Executor,
    version: ssl.TLSVersion,
    end: Callable[[Pair], None],
) -> None:
    """Nobody there, or no descriptor any more: the end is the end."""
    pair = connect(version)
    pair.shake_hands(client_context(certificate), threads)
    end(pair)
    close_notify(pair.server, LIMIT)
    close_notify(pair.server, LIMIT)


def test_a_connection_without_handshake_just_ends(connect: Callable[..., Pair]) -> None:
    """There is no TLS to end, before the handshake and after one that failed."""
    pair = connect()
    close_notify(pair.server, LIMIT)
    _speak_http(pair)
    with pytest.raises(HandshakeError):
        handshake(pair.server, LIMIT)
    close_notify(pair.server, LIMIT)
    assert pair.server.gettimeout() == LIMIT


def fill(server: socket.socket) -> int:
    """Send beneath TLS until the peer's buffer and ours are full; return how many bytes."""
    server.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += socket.socket.send(server, bytes(65536))
    server.settimeout(LIMIT)
    return sent


@pytest.mark.parametrize("in_the_middle_of_a_record", [False, True])
def test_a_peer_that_takes_nothing_is_waited_for_no_longer_than_asked(
    connect: Callable[..., Pair],
    certificate: pathlib.Path,
    threads: concurrent.futures.Executor,
    in_the_middle_of_a_record: bool,
) -> None:
    """With full buffers the end takes ``timeout`` seconds and raises nothing, whatever is left half sent."""
    pair = connect()
    pair.shake_hands(client_context(certificate), threads)
    if in_the_middle_of_a_record:
        pair.server.settimeout(0)
        with contextlib.suppress(ssl.SSLWantWriteError):
            while True:
                pair.server.send(bytes(65536))
    else:
        fill(pair.server)
    before = pair.server.gettimeout()
    threads.submit(close_notify, pair.server, 0.2).result(LIMIT)
    assert pair.server.gettimeout() == before


def test_a_slow_peer_is_told_as_soon_as_it_takes_something(
    connect: Callable[..., Pair],
    certificate: pathlib.Path,
    threads: concurrent.futures.Executor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """close_notify() waits for room, within its time, and then its alert follows all that was sent before."""
    pair, waits = connect(ssl.TLSVersion.TLSv1_2), threading.Event()
    pair.shake_hands(client_context(certificate, ssl.TLSVersion.TLSv1_2), threads)
    wait_writable = tls.wait_writable

    def tell_that_it_waits(sock: socket.socket, timeout: float) -> bool:
        waits.set()
        return wait_writable(sock, timeout)

    monkeypatch.setattr(tls, "wait_writable", tell_that_it_waits)
    filled = fill(pair.server)
    end = threads.submit(close_notify, pair.server, LIMIT)
    assert waits.wait(LIMIT)
    received = bytearray()
    while len(received) < filled:
        received += socket.socket.recv(pair.client, 65536)
    end.result(LIMIT)
    socket.socket.shutdown(pair.server, socket.SHUT_WR)
    while data := socket.socket.recv(pair.client, 65536):
        received += data
    # RFC 5246, 6.2.1: content type 21 is an alert.
    assert received[filled:].startswith(b"\x15\x03\x03")
