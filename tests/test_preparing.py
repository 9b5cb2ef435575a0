"""TLS before a handler, in every model: the host's certificate, the client's, and who is refused."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.certificates import Pki
from support.log_watch import ExpectLog
from support.preparing import (
    DESTINATION,
    HEADER,
    LOOPBACK,
    SOURCE,
    InMemory,
    Refusals,
    Tell,
    each_concurrent_model,
    each_model,
    make,
    read_all,
    say,
)
from support.under_test import LIMIT

import sockserve
from sockserve.net.closing import cut
from sockserve.net.proxy_header import ProxyHeader
from sockserve.pytest_plugin import Running
from sockserve.testing import HalfHandshake, Reset, Stall, connect
from sockserve.testing.clients import CLIENT_HELLO_START


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Certificates for several hosts."""
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def wrap(pki: Pki) -> Iterator[Callable[..., ssl.SSLSocket]]:
    """Shake hands over a connection; both are closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def shake_hands(plain: socket.socket, name: str = "a.test", certificate: Any = None) -> ssl.SSLSocket:
            context = pki.client(certificate)
            wrapped = context.wrap_socket(plain, server_hostname=name, suppress_ragged_eofs=False)
            stack.enter_context(wrapped)
            # In a child that was forked from this process a copy of it stays open.
            stack.callback(cut, wrapped)
            return wrapped

        yield shake_hands


@each_model
def test_x2_x9_a_client_is_served_over_tls_behind_a_proxy(running: Running, pki: Pki, model: str) -> None:
    """X2, X9: the header and the hello in one segment; the handler knows all of it in ``setup()``."""
    host = sockserve.TLS(*pki.b, alpn=("two", "one"))
    tls = sockserve.TLS(*pki.a, hosts={"b.test": host})
    server = running(make(model, tls=tls, proxy_from=("127.0.0.0/8",)))
    with connect(server, timeout=LIMIT) as plain:
        client = InMemory(pki, plain, "b.test")
        plain.sendall(HEADER.to_bytes(checksum=True) + client.hello)
        client.shake_hands()
        told = client.say()
        cut(plain)
    assert told[:4] == [str(SOURCE), "True", str(DESTINATION), "PROXY"]
    assert told[4:] == ["TLSv1.3 b.test None", "True", "b.test", "hello\n"]


@each_model
@pytest.mark.parametrize("part", ["header", "hello"])
def test_x11_a_silent_client_is_refused_in_time(
    running: Running, pki: Pki, expect_log: ExpectLog, model: str, part: str
) -> None:
    """X11: ``handshake_timeout`` is for the header and the handshake together, whatever has come of them."""
    tls = sockserve.TLS(*pki.a)
    server = make(model, tls=tls, proxy_from=("127.0.0.1",), handshake_timeout=0.05)
    kind = "PROXY header" if part == "header" else "TLS handshake failed"
    refusals = Refusals(server, expect_log, f"{kind}: not done within 0.05 s")
    data = HEADER.to_bytes()
    with Stall(running(server), data[:20] if part == "header" else data + CLIENT_HELLO_START) as client:
        assert client.read() == b""
        cut(client.connection)
    refusals.check()


@each_model
@pytest.mark.parametrize("part", ["header", "hello"])
def test_a_client_that_leaves_without_a_byte_has_left(
    running: Running, pki: Pki, expect_log: ExpectLog, model: str, part: str
) -> None:
    """A balancer's probe is one line at DEBUG: closed at once, or after its header."""
    server = make(model, tls=sockserve.TLS(*pki.a), proxy_from=("127.0.0.1",))
    counters = sockserve.Counters()
    server.add_observer(counters)
    left = expect_log(logging.DEBUG, "left: closed without a byte")
    with Stall(running(server), b"" if part == "header" else ProxyHeader(2, "LOCAL").to_bytes()) as client:
        client.connection.shutdown(socket.SHUT_WR)
        assert client.read() == b""
        cut(client.connection)
    left.wait()
    assert server.wait_idle(LIMIT)
    assert [counters.handled, counters.refused, counters.failed] == [1, 0, 0]


@each_model
def test_x14_a_hello_in_pieces_of_one_byte(running: Running, pki: Pki, model: str) -> None:
    """X14: the host is known although its hello comes a byte at a time."""
    server = running(make(model, tls=sockserve.TLS(*pki.a, hosts={"b.test": sockserve.TLS(*pki.b)})))

    with connect(server, timeout=LIMIT) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = InMemory(pki, plain, "b.test")
        for byte in client.hello:
            plain.sendall(bytes((byte,)))
        client.shake_hands()
        assert client.say()[4] == "TLSv1.3 b.test None"
        cut(plain)


@each_model
def test_x15_the_host_decides_who_needs_a_certificate(
    running: Running, pki: Pki, wrap: Callable[..., ssl.SSLSocket], expect_log: ExpectLog, model: str
) -> None:
    """X15: b.test is for clients with a certificate only, and its handler has the certificate; a.test is for all."""

    class Name(sockserve.StreamRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            tls = self.connection_info.tls
            assert tls is not None
            subject = tls.client_certificate_fields.get("subject", "-")
            self.wfile.write(f"{subject} {len(tls.chain)} {tls.client_certificate is not None}".encode())

    refused = expect_log(logging.INFO, r"refused .*peer did not return a certificate")
    b = sockserve.TLS(*pki.b, client_ca=pki.authority.certificate)
    server = running(make(model, Name, tls=sockserve.TLS(*pki.a, hosts={"b.test": b})))
    assert read_all(wrap(connect(server, timeout=LIMIT))) == b"- 0 False"
    assert read_all(wrap(connect(server, timeout=LIMIT), "b.test", pki.a)) == b"((('commonName', 'a.test'),),) 2 True"
    with pytest.raises(ssl.SSLError):
        wrap(connect(server, timeout=LIMIT), "b.test").recv(1)
    refused.wait()


@each_concurrent_model
def test_x11_clients_that_say_nothing_stop_nobody(
    running: Running, pki: Pki, wrap: Callable[..., ssl.SSLSocket], model: str
) -> None:
    """X11: while some are silent, or in the middle of their hello, the next is served."""
    server = running(make(model, tls=sockserve.TLS(*pki.a)))
    with Stall(server) as silent, HalfHandshake(server) as halfway:
        assert say(wrap(connect(server, timeout=LIMIT)))[-1] == "hello\n"
        for unfinished in (silent, halfway):
            cut(unfinished.connection)


@each_model
def test_x21_resets_in_the_backlog_are_survived(
    running: Running, pki: Pki, wrap: Callable[..., ssl.SSLSocket], model: str, expect_log: ExpectLog
) -> None:
    """X21: the listener stays plain; what was reset before it was accepted is a request of its own that ended."""
    expect_log(logging.INFO, "refused .*TLS handshake failed")
    server = make(model, tls=sockserve.TLS(*pki.a))
    counters = sockserve.Counters()
    server.add_observer(counters)
    with Reset(server), Reset(server, CLIENT_HELLO_START):
        pass
    running(server)
    assert say(wrap(connect(server, timeout=LIMIT)))[-1] == "hello\n"
    assert server.wait_idle(LIMIT)
    assert counters.failed == 0
    assert counters.accepted == counters.refused + counters.handled


@each_model
def test_plain_text_gets_an_answer_if_there_is_one(
    running: Running, pki: Pki, expect_log: ExpectLog, model: str
) -> None:
    """With ``answer_plain`` a client that forgot TLS hears of it, in the clear."""
    server = make(model, tls=sockserve.TLS(*pki.a, answer_plain=b"HTTP/1.1 400 no TLS\r\n\r\n"))
    refusals = Refusals(server, expect_log, "TLS handshake failed: plain text, to a server of TLS")
    with Stall(running(server), b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n") as client:
        assert client.read() == b"HTTP/1.1 400 no TLS\r\n\r\n"
        cut(client.connection)
    refusals.check()


@each_model
def test_what_is_no_tls_is_one_line(running: Running, pki: Pki, expect_log: ExpectLog, model: str) -> None:
    """A client that speaks something else is refused with OpenSSL's reason."""
    server = make(model, tls=sockserve.TLS(*pki.a))
    refusals = Refusals(server, expect_log, "TLS handshake failed: http request")
    with Stall(running(server), b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n") as client:
        assert len(client.read()) < 20
        cut(client.connection)
    refusals.check()


def test_a_program_may_choose_the_context(running: Running, pki: Pki, wrap: Callable[..., ssl.SSLSocket]) -> None:
    """``context_for()`` is asked for each client; a plain SSLContext and a function that makes one do as well."""
    contexts = {"a.test": sockserve.TLS(*pki.a), "b.test": sockserve.TLS(*pki.b)}

    class Chooses(sockserve.TLS):
        def context_for(self, server_name: str | None) -> ssl.SSLContext:
            return contexts[server_name or ""].context

    server = running(make("thread", tls=Chooses(*pki.a)))
    for name in contexts:
        assert say(wrap(connect(server, timeout=LIMIT), name))[-1] == "hello\n"
    for tls in (contexts["b.test"].context, lambda: contexts["b.test"].context):
        server.tls = tls
        assert say(wrap(connect(server, timeout=LIMIT), "b.test"))[-1] == "hello\n"


def test_settings_that_cannot_work_are_errors_at_the_start(pki: Pki) -> None:
    """They are raised where the server begins to serve, and not at the first client."""
    tls = sockserve.TLS(*pki.a)
    with make("thread", tls=tls) as server:
        server.socket = tls.context.wrap_socket(server.socket, server_side=True)
        with pytest.raises(TypeError, match="is wrapped by an SSLContext already"):
            server.serve_forever()
    prefork = type("Server", (sockserve.PreForkMixIn, sockserve.ThreadingTCPServer), {"tls": "a.pem"})
    with prefork(LOOPBACK, Tell) as server, pytest.raises(TypeError, match=r"sockserve\.TLS"):
        server.serve_forever()
    with make("thread", tls="a.pem") as server, pytest.raises(TypeError, match=r"sockserve\.TLS"):
        server.serve_forever()
    for attributes in (
        {"proxy_from": ("127.0.0.1/33",)},
        {"proxy_from": "127.0.0.1"},
        {"direct_from": ("127.0.0.1/8",)},
        {"proxy_from": ("proxy.example",)},
    ):
        with make("pool", **attributes) as server, pytest.raises(sockserve.AddressError):
            server.serve_forever()
    with (
        type("Server", (sockserve.UDPServer,), {"tls": tls})(LOOPBACK, Tell) as server,
        pytest.raises(TypeError, match="stream sockets only"),
    ):
        server.serve_forever()
