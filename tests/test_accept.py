"""net/accept: what a loop asks its listener."""

from __future__ import annotations

import pathlib
import select
import socket
import sys
from collections.abc import Iterator

import pytest
from support.under_test import LIMIT
from support.waiting import wait_until

from sockserve.net.accept import accept_of, counter_of


@pytest.fixture(params=["tcp", "tcp6", "unix"])
def listener(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[socket.socket]:
    """A listening socket of each kind."""
    family, address = {
        "tcp": (socket.AF_INET, ("127.0.0.1", 0)),
        "tcp6": (socket.AF_INET6, ("::1", 0)),
        "unix": (socket.AF_UNIX, str(tmp_path / "socket")),
    }[request.param]
    with socket.socket(family) as made:
        made.bind(address)
        made.listen()
        yield made


def connect(listener: socket.socket) -> socket.socket:
    """Be a client."""
    client = socket.socket(listener.family)
    client.settimeout(LIMIT)
    client.connect(listener.getsockname())
    return client


def test_the_counter_says_whether_connections_wait(listener: socket.socket) -> None:
    """It is 0 while nobody waits, not 0 while somebody does, and never more than there are."""
    accept_one, count = accept_of(listener), counter_of(listener)
    assert count() == 0
    with connect(listener), connect(listener):
        wait_until(lambda: count() == (1 if listener.family == socket.AF_UNIX else 2))
        accept_one()[0].close()
        assert count() == 1
        accept_one()[0].close()
        assert count() == 0


@pytest.mark.parametrize("missing", ["TCP_INFO", "TCP_INFO and poll"])
def test_where_the_kernel_does_not_count_it_asks_whether_there_is_one(
    listener: socket.socket, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sandboxes that know no TCP_INFO, platforms without poll(2)."""
    monkeypatch.setattr(sys, "platform", "other")
    if "poll" in missing:
        monkeypatch.delattr(select, "poll")
    accept_one, count = accept_of(listener), counter_of(listener)
    assert count() == 0
    with connect(listener), connect(listener):
        for _ in range(2):
            # Of the second client too: connect(2) returns before the listener has its last segment.
            wait_until(lambda: count() == 1)
            accept_one()[0].close()
        assert count() == 0


@pytest.mark.parametrize("missing", ["", "TCP_INFO", "TCP_INFO and poll"])
def test_nobody_waits_at_a_closed_listener(
    listener: socket.socket, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread, or a handler, may close it between two questions."""
    if "TCP_INFO" in missing:
        monkeypatch.setattr(sys, "platform", "other")
    if "poll" in missing:
        monkeypatch.delattr(select, "poll")
    count = counter_of(listener)
    listener.close()
    assert count() == 0


def test_nobody_waits_at_one_that_was_closed_before() -> None:
    """A worker of a pool that begins in the moment of the close is not ended by that."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.close()
    assert counter_of(listener)() == 0


def test_what_is_accepted_knows_its_address(listener: socket.socket) -> None:
    """The connection and the address are those that ``listener.accept()`` gives."""
    with connect(listener) as client:
        connection, address = accept_of(listener)()
        with connection:
            assert (connection.family, connection.type) == (listener.family, socket.SOCK_STREAM)
            assert connection.getblocking()
            assert address == client.getsockname()
            assert connection.getsockname() == listener.getsockname()
