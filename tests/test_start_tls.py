"""``start_tls()``: a connection that begins in the clear goes on over TLS, in every model."""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import ssl
import threading
from typing import Any

import pytest
from support.certificates import Pki
from support.log_watch import ExpectLog
from support.preparing import LOOPBACK, InMemory, each_model, make
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.net.closing import cut
from sockserve.pytest_plugin import Running
from sockserve.testing import connect


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Certificates for several hosts."""
    return Pki(tmp_path_factory.mktemp("pki"))


class Lines(sockserve.StreamRequestHandler[Any, Any, Any]):
    """A line at a time; STARTTLS begins TLS."""

    settings: Any = None

    def handle(self) -> None:
        """Answer one line and wait for the next."""
        line = self.rfile.readline()
        if line == b"STARTTLS\n":
            self.wfile.write(b"go\n")
            self.start_tls(self.settings)
        elif line:
            tls = self.connection_info.tls
            self.wfile.write(f"{'-' if tls is None else tls.server_name} ".encode() + line)
        self.keep_open()


def begin(plain: socket.socket) -> None:
    """Say that TLS begins now."""
    plain.sendall(b"STARTTLS\n")
    assert plain.recv(100) == b"go\n"


@each_model
def test_x23_a_connection_goes_on_over_tls(running: Running, pki: Pki, model: str) -> None:
    """X23: lines before and after, one connection; and the end is a proper one of the TLS that took its place."""
    server = running(make(model, Lines, tls=None))
    server.RequestHandlerClass = type("Handler", (Lines,), {"settings": sockserve.TLS(*pki.b)})
    with connect(server, timeout=LIMIT) as plain:
        plain.sendall(b"hello\n")
        assert plain.recv(100) == b"- hello\n"
        begin(plain)
        wrapped = pki.client().wrap_socket(plain, server_hostname="b.test", suppress_ragged_eofs=False)
        with wrapped:
            for line in (b"one\n", b"two\n"):
                wrapped.sendall(line)
                assert wrapped.recv(100) == b"b.test " + line
            with contextlib.suppress(ssl.SSLError):
                # The peer's close_notify is what is waited for below.
                wrapped.setblocking(False)
                wrapped.unwrap()
            wrapped.settimeout(LIMIT)
            socket.socket.shutdown(wrapped, socket.SHUT_WR)
            with contextlib.suppress(ssl.SSLZeroReturnError):
                assert wrapped.recv(100) == b""
            cut(wrapped)
    assert server.wait_idle(LIMIT)


@each_model
def test_x22_what_was_sent_ahead_of_the_handshake_is_refused(
    running: Running, pki: Pki, expect_log: ExpectLog, model: str
) -> None:
    """X22: a command that came in the clear with STARTTLS is not taken for one that TLS protected."""
    refused = expect_log(logging.INFO, "refused .*the client sent something else ahead of it")
    server = running(make(model, type("Handler", (Lines,), {"settings": sockserve.TLS(*pki.a)})))
    with connect(server, timeout=LIMIT) as plain:
        plain.sendall(b"STARTTLS\nQUIT\n")
        assert plain.recv(100) == b"go\n"
        with contextlib.suppress(ConnectionResetError):
            assert plain.recv(100) == b""
        cut(plain)
    refused.wait()


@each_model
def test_a_handshake_that_fails_is_refused(running: Running, pki: Pki, expect_log: ExpectLog, model: str) -> None:
    """The handler ends, and the connection is closed with one INFO line: for silence as for garbage."""
    refused = expect_log(
        logging.INFO, "refused .*TLS handshake failed: (not done within 0.05 s|.*wrong version number)"
    )
    server = make(model, type("Handler", (Lines,), {"settings": sockserve.TLS(*pki.a)}), handshake_timeout=0.05)
    running(server)
    for data in (b"", b"hello, is anything there?\n"):
        with connect(server, timeout=LIMIT) as plain:
            begin(plain)
            plain.sendall(data)
            with contextlib.suppress(ConnectionResetError):
                while plain.recv(100):
                    pass
            cut(plain)
    refused.wait(2)


def test_the_servers_own_settings_are_the_default(running: Running, pki: Pki, expect_log: ExpectLog) -> None:
    """Without an argument it is the server's ``tls``; without that, or over TLS, it is an error of the program."""
    failed = expect_log(logging.ERROR, "start_tls.*(is over TLS already|neither tls nor the server's tls)")

    class Server(sockserve.ThreadingTCPServer):
        tls = sockserve.TLS(*pki.a)

        @property
        def _serving_prepares(self) -> bool:
            # TLS begins when the client asks for it.
            return False

    server = running(Server(LOOPBACK, Lines))
    with connect(server, timeout=LIMIT) as plain:
        begin(plain)
        wrapped = pki.client().wrap_socket(plain, server_hostname="a.test")
        with wrapped:
            wrapped.sendall(b"hello\n")
            assert wrapped.recv(100) == b"a.test hello\n"
            wrapped.sendall(b"STARTTLS\n")
            while wrapped.recv(100):
                pass
    failed.wait(1)
    other = running(make("thread", Lines))
    with connect(other, timeout=LIMIT) as plain:
        begin(plain)
        assert plain.recv(100) == b""
    failed.wait(2)


def test_a_standard_librarys_server_can_start_tls(pki: Pki) -> None:
    """The handler does it by itself; its server need not know."""

    class Once(Lines):
        settings = sockserve.TLS(*pki.a)

        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"go\n")
            self.start_tls(self.settings)
            self.wfile.write(self.rfile.readline().upper())

    with socketserver.TCPServer(LOOPBACK, Once) as server:  # type: ignore[arg-type]
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with socket.create_connection(server.server_address[:2], LIMIT) as plain:  # type: ignore[arg-type]
            begin(plain)
            with pki.client().wrap_socket(plain, server_hostname="a.test") as wrapped:
                wrapped.sendall(b"hello\n")
                assert wrapped.recv(100) == b"HELLO\n"
        thread.join(LIMIT)
        assert not thread.is_alive()


def test_x24_a_part_of_a_record_holds_no_worker(running: Running, pki: Pki) -> None:
    """X24: with one worker and several clients in the middle of a record, another client is answered."""
    server = running(make("pool", Lines, tls=sockserve.TLS(*pki.a), max_workers=1))
    with contextlib.ExitStack() as stack:
        slow = []
        for _ in range(3):
            plain = stack.enter_context(connect(server, timeout=LIMIT))
            client = InMemory(pki, plain, "a.test")
            plain.sendall(client.hello)
            client.shake_hands()
            assert client.say() == ["a.test hello\n"]
            record = client.record(b"later\n")
            plain.sendall(record[:7])
            slow.append((plain, client, record))
        wait_until(lambda: [each.state for each in server.active_requests] == ["parked"] * 3)
        plain = stack.enter_context(connect(server, timeout=LIMIT))
        client = InMemory(pki, plain, "a.test")
        plain.sendall(client.hello)
        client.shake_hands()
        assert client.say() == ["a.test hello\n"]
        for plain, client, record in slow:
            plain.sendall(record[7:])
            assert client.read() == b"a.test later\n"


def test_x24_the_rest_of_a_record_that_never_comes_is_the_end(running: Running, pki: Pki) -> None:
    """A client that leaves in the middle of a record is over, and so is one when the server drains."""
    server = running(make("pool", Lines, tls=sockserve.TLS(*pki.a)))
    for leaves in (True, False):
        with connect(server, timeout=LIMIT) as plain:
            client = InMemory(pki, plain, "a.test")
            plain.sendall(client.hello)
            client.shake_hands()
            assert client.say() == ["a.test hello\n"]
            plain.sendall(client.record(b"later\n")[:7])
            if leaves:
                plain.shutdown(socket.SHUT_WR)
                assert server.wait_idle(LIMIT)
            else:
                assert server.drain(LIMIT) == (1, 0)
