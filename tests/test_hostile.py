"""Clients that misbehave cost the others nothing: they are served, the memory is bounded, and the server stops."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.models import BESIDE_THE_LOOP, MODELS
from support.remote import RemoteServer
from support.under_test import LIMIT
from support.waiting import wait_until

from sockserve.testing import HalfClose, HalfHandshake, Reset, Stall, Trickle, ask, connect

ALL = [*MODELS, "prefork-pool"]

HANDLER_TIMEOUTS = {"inline": 0.5}
"""Seconds of silence that a handler bears: without a limit an inline server belongs to its first silent client."""

HOSTILE = {
    "stall": Stall,
    "stall-in-a-line": lambda address: Stall(address, b"the beginning of a li"),
    "trickle": lambda address: Trickle(address, b"x" * 20, interval=0.01),
    "reset": Reset,
    "reset-in-a-line": lambda address: Reset(address, b"the beginning of a li"),
    "half-handshake": HalfHandshake,
    "half-close": HalfClose,
}


def check_served(address: Any) -> None:
    """Well-behaved clients get their answers."""
    for number in range(10):
        assert ask(address, b"question %d\n" % number, timeout=LIMIT) == b"question %d\n" % number


@pytest.fixture(scope="module", params=ALL)
def shared(request: pytest.FixtureRequest) -> Iterator[tuple[str, RemoteServer]]:
    """A model and its server, for all kinds of clients one after the other; it then stops without a complaint."""
    with RemoteServer(request.param, timeout=HANDLER_TIMEOUTS.get(request.param)) as server:
        yield request.param, server
        last = server.stop()
        assert (last.active, last.failed) == (0, 0)
        assert server.errors() == ""


@pytest.mark.parametrize("make_client", HOSTILE.values(), ids=HOSTILE)
def test_others_are_served(shared: tuple[str, RemoteServer], make_client: Callable[[Any], Any]) -> None:
    """While such clients are connected ten others are answered; nothing of them is left, or in the log."""
    model, server = shared
    with contextlib.ExitStack() as stack:
        for _ in range(2 if model == "inline" else 5):
            client = stack.enter_context(make_client(server.address))
            if isinstance(client, Reset):
                client.reset()
        check_served(server.address)
    wait_until(lambda: server.state().active == 0, tell=server.state)
    assert server.state().failed == 0
    assert server.errors() == ""


@pytest.mark.parametrize("model", ALL)
def test_a_server_stops_under_silent_clients(model: str) -> None:
    """Clients that never say anything and never leave are cut when the time of the drain is over."""
    with RemoteServer(model, drain_timeout=0.1) as server, contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(Stall(server.address))
        wait_until(lambda: server.state().active > 0)
        last = server.stop()
        assert (last.active, last.failed) == (0, 0)


@pytest.mark.parametrize("model", [*BESIDE_THE_LOOP, "prefork-pool"])
def test_a_client_that_does_not_read_is_cut(model: str) -> None:
    """A worker that waits for its client to take an answer neither stops the others nor the server's end."""
    # The answer, of 64 megabytes, is more than the buffers of both sides hold (tcp(7), tcp_wmem and tcp_rmem).
    stalls = b"1100 %b\n" % bytes(60_000)
    with RemoteServer(model, drain_timeout=0.1, linger_seconds=0.1) as server, Stall(server.address, stalls):
        check_served(server.address)
        last = server.stop()
        assert (last.active, last.children) == (0, 0)
        assert "cut ('127.0.0.1'" in server.errors()


@pytest.mark.parametrize("model", ALL)
def test_a_line_without_end_takes_no_memory(model: str) -> None:
    """Thirty megabytes without a newline pass through a handler that reads bounded lines."""
    chunk = b"x" * 2**20
    with RemoteServer(model) as server:
        check_served(server.address)
        before = server.state()
        with connect(server.address, timeout=LIMIT) as client:
            for _ in range(30):
                client.sendall(chunk)
                received = 0
                while received < len(chunk):
                    received += len(client.recv(2**20))
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        check_served(server.address)
        last = server.stop()
        assert last.peak - before.peak < 5_000_000
        assert (last.active, last.failed, server.errors()) == (0, 0, "")


@pytest.mark.parametrize("model", ALL)
def test_a_flood_of_connections_that_reset(model: str) -> None:
    """Hundreds of connections that are broken off at once leave nothing behind and are no errors."""
    with RemoteServer(model) as server:
        check_served(server.address)
        for _ in range(200):
            with Reset(server.address, timeout=LIMIT):
                pass
        check_served(server.address)
        last = server.stop()
        assert (last.active, last.failed, server.errors()) == (0, 0, "")
        assert last.accepted > 20


@pytest.mark.parametrize("model", ALL)
def test_refused_clients_hold_up_nobody(model: str) -> None:
    """Clients that ``verify_request`` turned away may stay and go on sending: the next one is looked at meanwhile."""
    with RemoteServer(model, refuse=True) as server, contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(Stall(server.address, b"some words that nobody will read\n"))
        wait_until(lambda: server.state().refused == 100)
        assert server.stop().refused == 100
