"""Many thousand connections leave no thread, no descriptor, no child and no megabyte behind."""

from __future__ import annotations

import concurrent.futures
import os
import socket
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from support.models import MODELS
from support.remote import RemoteServer
from support.remote_server import State
from support.under_test import LIMIT
from support.waiting import wait_until

CONNECTIONS = int(os.environ.get("SOAK_CONNECTIONS", "1000"))
"""Through each model; .ci/run makes 20 000 with one Python, which takes minutes: a child costs milliseconds."""

PARTS = 5
"""In which they come, each a test: forked children take their time on a busy machine."""

CLIENTS = 4

WARM_UP = 300
"""Connections after which caches and allocators have what they will ever have."""

LARGEST_GROWTH = 2**20 if getattr(sys, "_is_gil_enabled", lambda: True)() else 2**22
"""Bytes: with 53 bytes lost in each of 20 000 connections a server is above it. Without the interpreter's lock each
thread allocates from pages of its own, and what those keep goes up and down by more than a MiB."""


class Soak:
    """A server that has been warmed up."""

    def __init__(self, server: RemoteServer, part: int) -> None:
        self.server = server
        self.part = part
        self.connections = 0
        self._at_rest = server.state()
        self.warm = self.talk(WARM_UP)

    def talk(self, connections: int) -> State:
        """Make so many connections, a few at a time; tell what the server holds when the last one is over."""
        self.connections += connections
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as clients:
            for _ in clients.map(talk, [self.server.address] * CLIENTS, [connections // CLIENTS] * CLIENTS):
                pass
        state = self._at_rest

        def is_at_rest() -> bool:
            nonlocal state
            state = self.server.state()
            return held(state) == held(self._at_rest)

        # Who has answered the last client still has to end.
        wait_until(is_at_rest, tell=lambda: f"it holds {held(state)}, and held {held(self._at_rest)} at first")
        return state


class Held(NamedTuple):
    """What is to be the same whenever no request is in progress."""

    active: int
    threads: int
    descriptors: int
    children: int


def held(state: State) -> Held:
    """Of all that the server tells."""
    return Held(*(getattr(state, name) for name in Held._fields))


def talk(address: tuple[str, int], count: int) -> None:
    """Be one client after the other."""
    for _ in range(count):
        with socket.create_connection(address, LIMIT) as client:
            client.sendall(b"hello\n")
            client.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b"hello\n"
            assert client.recv(100) == b""


@pytest.fixture(scope="module", params=[*MODELS, "prefork-pool"])
def soak(request: pytest.FixtureRequest) -> Iterator[Soak]:
    """One server for all parts."""
    with RemoteServer(request.param) as server:
        yield Soak(server, CONNECTIONS // PARTS)
        server.stop()


@pytest.mark.parametrize("part", range(1, PARTS + 1))
def test_connections_leave_nothing_behind(soak: Soak, part: int) -> None:  # noqa: ARG001 - the parts are alike
    """After the last one the process holds what it held after the first few hundred."""
    now = soak.talk(soak.part)
    assert now.handled == now.accepted == soak.connections
    assert now.objects - soak.warm.objects < 100
    assert now.resident - soak.warm.resident < LARGEST_GROWTH
    assert soak.server.errors() == ""
