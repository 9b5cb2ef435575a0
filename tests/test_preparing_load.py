"""Many clients that are not yet served: a pool holds no thread for them, a reload disturbs none, no byte is lost."""

from __future__ import annotations

import collections
import contextlib
import logging
import shutil
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from support.certificates import Pki
from support.log_watch import ExpectLog
from support.preparing import HEADER, InMemory, Tell, each_concurrent_model, each_model, make
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.core import cutting, preparing
from sockserve.core.preparing import Preparation
from sockserve.net.closing import cut
from sockserve.pytest_plugin import Running
from sockserve.testing import Certificate, HalfHandshake, Stall, connect


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Certificates for several hosts."""
    return Pki(tmp_path_factory.mktemp("pki"))


def is_served(server: Any, pki: Pki, name: str = "a.test") -> bool:
    """Whether a client is, with the certificate of the host that it asks for."""
    with connect(server, timeout=LIMIT) as plain:
        client = InMemory(pki, plain, name)
        plain.sendall(client.hello)
        client.shake_hands()
        served = client.say()[-1] == "hello\n"
        cut(plain)
    return served


def test_x12_a_pool_holds_no_thread_for_those_that_are_not_ready(
    running: Running, pki: Pki, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    """X12: with 20 silent clients and 20 in their hello a pool of 4 serves the next, and a drain ends them all."""
    refused = expect_log(logging.INFO, "refused .*: TLS handshake failed")
    for module in (preparing, cutting):
        monkeypatch.setattr(module, "DRAIN_GRACE", 0.05)
    server = running(make("pool", Tell, tls=sockserve.TLS(*pki.a), max_workers=4, handshake_timeout=LIMIT))
    counters = sockserve.Counters()
    server.add_observer(counters)
    with contextlib.ExitStack() as stack:
        for kind in (Stall, HalfHandshake) * 20:
            stack.enter_context(kind(server))
        wait_until(lambda: [each.state for each in server.active_requests].count("parked") == 40)
        assert is_served(server, pki)
        wait_until(lambda: len(server.active_requests) == 40)
        assert server.drain(LIMIT).cut == 0
    assert [counters.accepted, counters.refused] == [41, 40]
    assert len(refused.wait(40)) == 40


def test_x13_a_part_of_a_hello_wakes_no_worker(
    running: Running, pki: Pki, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    """X13: until the whole of it can be there, no byte of it is looked at again; others are served meanwhile."""
    expect_log(logging.INFO, "refused .*: TLS handshake failed")
    looks: collections.Counter[int] = collections.Counter()
    advance = Preparation.advance

    def count(preparation: Preparation) -> bool:
        looks[id(preparation._live.table), preparation._live.client_address[1]] += 1  # type: ignore[index]
        return advance(preparation)

    monkeypatch.setattr(Preparation, "advance", count)
    server = running(make("pool", Tell, tls=sockserve.TLS(*pki.a), handshake_timeout=LIMIT))
    with connect(server, timeout=LIMIT) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        port = plain.getsockname()[1]
        hello = InMemory(pki, plain, "a.test").hello
        plain.sendall(hello[:100])
        wait_until(lambda: [each.state for each in server.active_requests] == ["parked"])
        for byte in hello[100:150]:
            plain.sendall(bytes((byte,)))
        assert is_served(server, pki)
        assert max(number for (_, client), number in looks.items() if client == port) <= 3
        cut(plain)


@each_concurrent_model
def test_a_drain_lets_a_handshake_come_to_its_end(
    running: Running, pki: Pki, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """One that has just begun is served during the drain, and so is what its client says first."""
    for module in (preparing, cutting):
        monkeypatch.setattr(module, "DRAIN_GRACE", LIMIT)
    server = running(make(model, Tell, tls=sockserve.TLS(*pki.a)))
    begun = threading.Event()

    class Begun(sockserve.Observer):
        def on_accept(self, server: Any, request: Any) -> None:
            begun.set()

    server.add_observer(Begun())
    with connect(server, timeout=LIMIT) as plain:
        client = InMemory(pki, plain, "a.test")
        plain.sendall(client.hello)
        assert begun.wait(LIMIT)
        drained: list[Any] = []
        thread = threading.Thread(target=lambda: drained.append(server.drain(LIMIT)))
        thread.start()
        client.shake_hands()
        assert client.say()[-1] == "hello\n"
        thread.join(LIMIT)
        cut(plain)
    assert drained == [(1, 0)]


@each_model
def test_a_renewed_certificate_is_for_the_next_client(
    running: Running, pki: Pki, tmp_path: Path, expect_log: ExpectLog, model: str
) -> None:
    """Without a call, and loaded once for all that come: in the model with children by their parent."""
    loaded = expect_log(logging.INFO, "TLS: loaded")
    files = Certificate(*(str(shutil.copy(each, tmp_path)) for each in pki.a))
    server = running(make(model, Tell, tls=sockserve.TLS(*files, check_every=0)))
    assert is_served(server, pki)
    for source, target in zip(pki.b, files, strict=True):
        shutil.copy(source, target)
    for _ in range(2):
        assert is_served(server, pki, "b.test")
    assert len(loaded.lines) == 1


def test_a_pool_that_stops_lets_a_handshake_come_to_its_end(
    running: Running, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though none can be parked any more: the worker that leaves goes on with it, and its handler sees the end."""
    monkeypatch.setattr(preparing, "DRAIN_GRACE", LIMIT)
    server = running(make("pool", Tell, tls=sockserve.TLS(*pki.a)))
    with connect(server, timeout=LIMIT) as plain:
        client = InMemory(pki, plain, "a.test")
        plain.sendall(client.hello)
        wait_until(lambda: [each.state for each in server.active_requests] == ["parked"])
        server.shutdown()
        client.shake_hands()
        assert client.say()[-1] == "hello\n"


def test_a_pool_that_stops_waits_for_no_silent_client(
    running: Running, pki: Pki, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    """Its moment over, it is refused, whatever is left of ``handshake_timeout``."""
    refused = expect_log(logging.INFO, "refused .*TLS handshake failed: the server ends")
    monkeypatch.setattr(preparing, "DRAIN_GRACE", 0.05)
    server = running(make("pool", Tell, tls=sockserve.TLS(*pki.a), handshake_timeout=10 * LIMIT))
    with HalfHandshake(server):
        wait_until(lambda: [each.state for each in server.active_requests] == ["parked"])
        server.shutdown()
        refused.wait()


def test_x20_what_a_client_sends_before_it_closes_arrives(running: Running, pki: Pki) -> None:
    """X20: a client that only sends, and closes at once, loses nothing: there is no ticket that it has not read."""
    received: list[int] = []

    class Count(sockserve.StreamRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            received.append(len(self.rfile.read()))

    server = running(make("thread", Count, tls=sockserve.TLS(*pki.a)))
    context = pki.client()
    for _ in range(10):
        with context.wrap_socket(connect(server, timeout=LIMIT), server_hostname="a.test") as client:
            client.sendall(bytes(40_000))
    assert server.wait_idle(LIMIT)
    assert received == [40_000] * 10


def test_x17_reloads_disturb_no_handshake(running: Running, pki: Pki, tmp_path: Path, expect_log: ExpectLog) -> None:
    """X17: while the certificate is exchanged again and again, every client of several threads is served."""
    loaded = expect_log(logging.INFO, "TLS: loaded")
    expect_log(logging.ERROR, "the certificate in use stays", at_least=0)
    files = Certificate(str(tmp_path / "crt"), str(tmp_path / "key"))
    for source, target in zip(pki.a, files, strict=True):
        shutil.copy(source, target)
    tls = sockserve.TLS(*files)
    server = running(make("pool", Tell, tls=tls))
    served, is_over = collections.Counter[bool](), threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            served[is_served(server, pki)] += 1

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(60):
        tls.reload()
    is_over.set()
    for thread in threads:
        thread.join(LIMIT)
    assert set(served) == {True}
    assert len(loaded.wait(60)) == 60


def test_x11_clients_of_a_proxy_that_say_nothing_hold_no_thread(running: Running, expect_log: ExpectLog) -> None:
    """A header that does not come is waited for as a handshake is."""
    expect_log(logging.INFO, "refused .*: PROXY header")
    server = running(make("pool", Tell, proxy_from=("127.0.0.1",), max_workers=1, handshake_timeout=LIMIT))
    with contextlib.ExitStack() as stack:
        for size in (0, 5, 20):
            stack.enter_context(Stall(server, HEADER.to_bytes()[:size]))
        wait_until(lambda: [each.state for each in server.active_requests] == ["parked"] * 3)
        with connect(server, timeout=LIMIT) as client:
            client.sendall(HEADER.to_bytes() + b"hello\n")
            assert client.recv(1000).endswith(b"hello\n")


def test_a_hello_by_a_unix_socket_may_come_in_pieces(tmp_path: Path, running: Running, pki: Pki) -> None:
    """There the system cannot tell when all of it is there: it is looked at again and again, and its end is seen."""
    server_class = type("Server", (sockserve.ThreadingUnixStreamServer,), {"tls": sockserve.TLS(*pki.a)})
    server = running(server_class(str(tmp_path / "socket"), Tell))
    with connect(server, timeout=LIMIT) as plain:
        client = InMemory(pki, plain, "a.test")
        plain.sendall(client.hello[:100])
        wait_until(lambda: [each.state for each in server.active_requests] == ["prepare"])
        plain.sendall(client.hello[100:])
        client.shake_hands()
        assert client.say()[-1] == "hello\n"


def test_a_unix_client_that_leaves_in_its_hello_is_refused(
    tmp_path: Path, running: Running, pki: Pki, expect_log: ExpectLog
) -> None:
    """At once, and not after the whole of ``handshake_timeout``."""
    refused = expect_log(logging.INFO, "refused .*TLS handshake failed")
    attributes = {"tls": sockserve.TLS(*pki.a), "handshake_timeout": 10 * LIMIT}
    server = running(type("Server", (sockserve.ThreadingUnixStreamServer,), attributes)(str(tmp_path / "socket"), Tell))
    with connect(server, timeout=LIMIT) as plain:
        plain.sendall(InMemory(pki, plain, "a.test").hello[:100])
        plain.shutdown(socket.SHUT_WR)
        refused.wait()
