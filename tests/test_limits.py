"""``limits``: how much is taken on at once, in a second, and from one source; in each model, with bounded memory."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import tracemalloc
from typing import Any

import pytest
from support.log_watch import ExpectLog
from support.models import counted_server
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.core import limits as limits_module
from sockserve.core.active_requests import ActiveRequests, LiveRequest
from sockserve.core.rates import Rate, SourceRates
from sockserve.net import lingering
from sockserve.net.sources import source_of
from sockserve.pytest_plugin import Running
from sockserve.testing import Stall, ask, connect

Limits = sockserve.Limits
PROXY = b"PROXY TCP4 %s 198.51.100.1 4000 80\r\n"


class Lines(sockserve.StreamRequestHandler):
    """Answers each line until end-of-file."""

    def handle(self) -> None:
        """Until end-of-file."""
        for line in self.rfile:
            self.wfile.write(line)


def limited(model: str, limits: Limits, handler: Any = Lines, **attributes: Any) -> Any:
    """A server with limits, and counters."""
    return counted_server(model, handler, limits=limits, **attributes)


def is_served(client: socket.socket) -> bool:
    """Whether a line comes back; false: the connection has ended."""
    client.settimeout(LIMIT)
    try:
        client.sendall(b"line\n")
        return client.recv(100) == b"line\n"
    except ConnectionError:
        return False


def is_refused(server: Any, data: bytes = b"line\n") -> bool:
    """Whether a new connection ends without an answer."""
    try:
        with Stall(server, data, timeout=LIMIT) as client:
            return client.connection.recv(100) != b"line\n"
    except ConnectionError:
        return True


def record(address: Any, request: Any = None) -> LiveRequest:
    """A request of that address, in no server."""
    return LiveRequest(ActiveRequests(), None, request, address)


def at(host: str) -> LiveRequest:
    """A request from there."""
    return record((host, 1))


def test_y1_a_network_of_addresses_is_one_source(expect_log: ExpectLog) -> None:
    """However many addresses of its /64 a client uses, it has one entry, and it is gone with the last request."""
    expect_log(logging.WARNING, "refused")
    limits = Limits(per_source=2, per_source_rate=1000)
    taken = [at(f"2001:db8::{number:x}") for number in range(1, 1001)]
    assert [limits.admit(live) for live in taken[:3]] == [True, True, False]
    assert taken[2].exceeded == "per_source"
    assert len(limits._by_source) == 1
    assert limits.admit(at("2001:db8:0:1::1"))
    for live in taken[:2]:
        limits.release(live)
        limits.release(live)
    assert limits.admit(at("2001:db8::ffff"))
    assert limits.active == 2


def test_y1_the_memory_is_bounded(expect_log: ExpectLog) -> None:
    """A flood from 20 000 networks leaves nothing behind but the fixed table of rates."""
    expect_log(logging.WARNING, "refused")
    limits = Limits(per_source=1, per_source_rate=1)
    for live in (at(f"2001:db8:{number:x}::1") for number in range(100)):
        limits.admit(live)
        limits.release(live)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(5000):
            live = at(f"2001:db8:{number:x}::1")
            limits.admit(live)
            limits.release(live)
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()
    assert not limits._by_source
    assert not limits.active


def test_y2_an_ipv4_address_in_ipv6_clothes_is_that_address() -> None:
    """Mapped and plain share, in both spellings; a zone is no part of the source."""
    plain = source_of(("192.0.2.1", 5), None)
    assert source_of(("::ffff:192.0.2.1", 5, 0, 0), None) == plain
    assert source_of(("::ffff:c000:201", 5, 0, 0), None) == plain
    assert source_of(("::ffff:192.0.2.1", 5), None, 24) == source_of(("192.0.2.77", 5), None, 24) == "192.0.2.0/24"
    assert source_of(("fe80::1%eth0", 5, 0, 3), None) == source_of(("fe80::2", 5, 0, 0), None) == "fe80::/64"
    assert source_of(("2001:db8:1:2:3::", 1), None, 32, 44) == "2001:db8::/44"
    assert source_of(("2001:db8::1", 1), None, 32, 128) == "2001:db8::1"
    assert source_of(("a name", 1), None) == "a name"


def test_a_unix_client_is_its_user() -> None:
    """Its address says nothing, and there may be none."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert source_of("", ours) == f"uid {os.getuid()}"
    assert source_of("", None) == "unix"


@pytest.mark.parametrize("model", ["thread", "pool", "inline", "greenlet"])
def test_y3_behind_a_proxy_its_clients_are_limited_and_not_the_proxy(
    running: Running, expect_log: ExpectLog, model: str
) -> None:
    """The source is the address in the PROXY header, once that was read."""
    if model != "inline":
        expect_log(logging.WARNING, "refused")
    server = running(limited(model, Limits(per_source=1), proxy_from=("127.0.0.1",), max_workers=4))
    with Stall(server, PROXY % b"192.0.2.1") as first:
        assert is_served(first.connection)
        if model != "inline":
            assert is_refused(server, PROXY % b"192.0.2.1" + b"line\n")
            wait_until(lambda: server.counters.refused_by == {"per_source": 1})
            with Stall(server, PROXY % b"192.0.2.2") as third:
                assert is_served(third.connection)
    wait_until(lambda: not server.limits.active)


@pytest.mark.parametrize("model", ["thread", "pool", "greenlet"])
def test_y6_one_source_is_refused_and_served_again_in_each_model(
    running: Running, expect_log: ExpectLog, model: str
) -> None:
    """Beyond its number a client gets a reset, no handler; once its other requests have ended it is served at once."""
    expect_log(logging.WARNING, "refused")
    server = running(limited(model, Limits(per_source=2), max_workers=4))
    with Stall(server) as first, Stall(server) as second:
        assert is_served(first.connection)
        assert is_served(second.connection)
        for _ in range(5):
            assert is_refused(server)
    wait_until(lambda: not server.active_requests)
    assert ask(server, b"hello\n") == b"hello\n"
    wait_until(lambda: not server.limits.active)
    wait_until(lambda: server.counters.refused_by == {"per_source": 5})
    assert server.counters.refused == 5
    assert not server.limits._by_source


@pytest.mark.parametrize("model", ["thread", "pool", "greenlet"])
def test_y7_a_server_at_its_limit_waits_and_can_be_stopped(running: Running, expect_log: ExpectLog, model: str) -> None:
    """No more is accepted than there is room for; the next client is served when one ends; ``shutdown()`` is heard."""
    expect_log(logging.WARNING, "at its limit.*clients wait")
    server = running(limited(model, Limits(requests=2), max_workers=4))
    with Stall(server) as first:
        with Stall(server) as second:
            assert is_served(first.connection)
            assert is_served(second.connection)
            assert server.limits.is_full()
            third = connect(server)
            third.sendall(b"line\n")
            wait_until(lambda: server.limits._on_room)
            assert server.counters.accepted == 2
        with third:
            third.settimeout(LIMIT)
            assert third.recv(100) == b"line\n"
            with connect(server):
                began = time.monotonic()
                server.shutdown()
                assert time.monotonic() - began < 1


def test_y7_room_on_one_server_is_heard_by_another(running: Running, expect_log: ExpectLog) -> None:
    """The same object is one budget for both."""
    told = expect_log(logging.WARNING, "at its limit.*clients wait")
    limits = Limits(requests=1)
    one, other = running(limited("thread", limits)), running(limited("thread", limits))
    with Stall(one) as first:
        assert is_served(first.connection)
        waiting = connect(other)
        waiting.sendall(b"line\n")
        told.wait()
    with waiting:
        assert waiting.recv(100) == b"line\n"


def test_y8_a_flood_of_refusals_is_one_line() -> None:
    """10 000 refusals are one WARNING, with their number, the reasons and the source that has most of them."""
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, entry: logging.LogRecord) -> None:
            if entry.levelno >= logging.WARNING:
                lines.append(entry.getMessage())

    collect, logger = Collect(), logging.getLogger("sockserve")
    handlers, logger.handlers, logger.propagate = logger.handlers, [collect], False
    try:
        limits = Limits(per_source=1)
        assert limits.admit(at("192.0.2.1"))
        for _ in range(10_000):
            assert not limits.admit(at("192.0.2.1"))
        assert lines == ["refused 1 by Limits(per_source=1), mostly 192.0.2.1 (per_source: 1)"]
        limits._seldom._last = -100.0
        assert not limits.admit(at("192.0.2.1"))
        assert lines[1:] == ["refused 10000 by Limits(per_source=1), mostly 192.0.2.1 (per_source: 10000)"]
    finally:
        logger.handlers, logger.propagate = handlers, True


def test_y9_the_wait_is_told(running: Running, expect_log: ExpectLog) -> None:
    """Observers hear "limit", and the log has a WARNING."""
    told = expect_log(logging.WARNING, "at its limit, Limits\\(requests=1\\): clients wait")
    heard: list[str | None] = []

    class Waits(sockserve.Observer):
        def on_wait(self, server: Any, reason: str | None) -> None:
            heard.append(reason)

    server = limited("thread", Limits(requests=1))
    server.add_observer(Waits())
    running(server)
    with Stall(server) as first:
        assert is_served(first.connection)
        told.wait()
    wait_until(lambda: heard[-2:] == ["limit", None], tell=lambda: heard)


@pytest.mark.parametrize("model", ["thread", "pool", "greenlet"])
def test_y10_reserved_places_are_for_the_operator(running: Running, expect_log: ExpectLog, model: str) -> None:
    """When all others are taken the reserved ones still are to be had, for those networks alone."""
    expect_log(logging.WARNING, "refused")
    limits = Limits(requests=3, reserved=1, reserved_for=("127.0.0.2/32", "unix:"))
    server = running(limited(model, limits, max_workers=6))
    with Stall(server) as one, Stall(server) as two:
        assert is_served(one.connection)
        assert is_served(two.connection)
        assert is_refused(server)
        with socket.create_connection(server.server_address, source_address=("127.0.0.2", 0)) as operator:
            assert is_served(operator)
            with socket.create_connection(server.server_address, source_address=("127.0.0.2", 0)) as too_many:
                assert not is_served(too_many)
    wait_until(lambda: server.counters.refused_by == {"requests": 2})


@pytest.mark.parametrize("model", ["thread", "inline", "pool", "greenlet"])
def test_y11_a_farewell_arrives_though_the_client_talks_first(
    running: Running, expect_log: ExpectLog, model: str
) -> None:
    """What the client has sent is not answered by a reset before it has read why."""
    expect_log(logging.WARNING, "refused")
    limits = Limits(requests=2, reserved=1, reserved_for=("192.0.2.0/24",), farewell=b"busy\n")
    server = running(limited(model, limits))
    held = record(("192.0.2.1", 1))
    assert limits.admit(held)
    for _ in range(5):
        assert ask(server, b"x" * 10_000) == b"busy\n"
    limits.release(held)
    assert ask(server, b"hello\n") == b"hello\n"


def test_y11_farewells_are_bounded(running: Running, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 connections are held at most; the others get a reset."""
    monkeypatch.setattr(lingering, "FAREWELL_SECONDS", LIMIT)
    expect_log(logging.WARNING, "refused")
    limits = Limits(requests=1, when_full="refuse", farewell=b"busy\n")
    server = running(limited("thread", limits))
    held = record(("192.0.2.1", 1))
    assert limits.admit(held)
    answers, clients = [], []
    for _ in range(80):
        try:
            clients.append(connect(server))
        except ConnectionResetError:
            answers.append(b"reset")
    wait_until(lambda: server.counters.refused == 80)
    for client in clients:
        with client:
            client.settimeout(LIMIT)
            try:
                answers.append(client.recv(10))
            except ConnectionResetError:
                answers.append(b"reset")
    assert answers.count(b"busy\n") == 64
    assert answers.count(b"reset") == 16
    limits.release(held)


def test_a_rate_lets_clients_wait_and_never_fail(running: Running, expect_log: ExpectLog) -> None:
    """Those beyond it are accepted when they are due; the loop sleeps until then."""
    expect_log(logging.WARNING, "at its limit.*clients wait")
    server = running(limited("thread", Limits(rate=20)))
    for _ in range(20):
        assert ask(server, b"hello\n") == b"hello\n"
    began = time.monotonic()
    for _ in range(4):
        assert ask(server, b"hello\n") == b"hello\n"
    assert time.monotonic() - began < 5
    assert server.counters.refused == 0


def test_a_rate_is_kept() -> None:
    """As many as it says at once, then one each time that is due."""
    rate = Rate(10)
    taken = 0
    while not rate.seconds_until_due(100.0):
        rate.count(100.0)
        taken += 1
    assert taken == 10
    assert rate.seconds_until_due(100.0) == pytest.approx(0.1, abs=1e-5)
    assert not rate.seconds_until_due(100.11)


def test_the_rate_of_one_source_is_no_other_ones() -> None:
    """One that has used up its share leaves all others theirs."""
    rates = SourceRates(5)
    assert [rates.is_due("192.0.2.1", 50.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert rates.is_due("192.0.2.2", 50.0)
    assert rates.is_due("192.0.2.1", 50.21)


def test_a_source_beyond_its_rate_is_refused(running: Running, expect_log: ExpectLog) -> None:
    """There is nothing else to do: it has been accepted when its source is known."""
    expect_log(logging.WARNING, "refused.*per_source_rate")
    server = running(limited("inline", Limits(per_source_rate=0.001)))
    assert ask(server, b"hello\n") == b"hello\n"
    assert is_refused(server)
    wait_until(lambda: server.counters.refused_by == {"per_source_rate": 1})


def test_handle_request_asks_too(expect_log: ExpectLog) -> None:
    """Also without a loop, and with an override of ``verify_request()``, which is not asked."""
    expect_log(logging.WARNING, "refused")
    asked: list[Any] = []

    class Server(sockserve.TCPServer):
        limits = Limits(per_source=1)

        def verify_request(self, request: Any, client_address: Any) -> bool:
            asked.append(client_address)
            return True

    with Server(("127.0.0.1", 0), Lines) as server:
        assert server.limits is not None
        held = at("127.0.0.1")
        assert server.limits.admit(held)
        with Stall(server) as client:
            server.handle_request()
            assert not is_served(client.connection)
        server.limits.release(held)
        assert not asked


def test_a_forked_child_counts_anew() -> None:
    """What the parent has in progress is none of its, and it gives nothing of it back."""
    limits = Limits(requests=3, per_source=3)
    live = at("192.0.2.1")
    assert limits.admit(live)
    limits.forked()
    limits.release(live)
    assert limits.active == 0


def test_many_threads_count_exactly() -> None:
    """Nothing is lost between them."""
    limits = Limits(requests=10_000, per_source=10_000)

    def work() -> None:
        for _ in range(500):
            live = at("192.0.2.1")
            assert limits.admit(live)
            limits.release(live)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (limits.active, limits._by_source) == (0, {})


@pytest.mark.parametrize(
    "wrong",
    [
        {"requests": 0},
        {"per_source": -1},
        {"rate": 0},
        {"per_source_rate": float("nan")},
        {"ipv4_prefix": 33},
        {"ipv6_prefix": 0},
        {"reserved": 1},
        {"when_full": "explode"},
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    """When they are made."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


def test_a_program_may_mean_something_else_by_limits() -> None:
    """An attribute of that name which is no Limits is left alone."""

    class Server(sockserve.TCPServer):
        limits: Any = "none"

    with Server(("127.0.0.1", 0), Lines) as server:
        assert limits_module.limits_of(server) is None


def test_room_that_comes_between_two_looks_ends_the_pause(running: Running, expect_log: ExpectLog) -> None:
    """A request that ends after the loop has asked whether to wait, and before it asks to be told: nothing is lost."""
    expect_log(logging.WARNING, "at its limit.*clients wait")
    limits = Limits(requests=1)
    server = limited("thread", limits)
    held = record(("192.0.2.1", 1))
    assert limits.admit(held)

    def end_it_and_tell(of: Any) -> None:
        limits.release(held)
        Limits.tell_waiting(limits, of)

    limits.tell_waiting = end_it_and_tell  # type: ignore[method-assign]
    running(server)
    assert ask(server, b"hello\n") == b"hello\n"
