"""A client's connection: each address of a host is tried, and what fails leaves no socket."""

from __future__ import annotations

import math
import select
import socket
from typing import Any

import pytest

import sockserve
from sockserve.net.connecting import connect

LOOPBACK = ("127.0.0.1", 0)


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    """Let the resolver know one host, which has these addresses."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)


def unused() -> tuple[str, int]:
    """An address that refuses connections: its port was free a moment ago."""
    with socket.create_server(LOOPBACK) as listener:
        address: tuple[str, int] = listener.getsockname()
    return address


def test_the_next_address_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose first address refuses is reached at its second."""
    with socket.create_server(LOOPBACK) as listener:
        resolve_to(monkeypatch, unused(), listener.getsockname())
        with connect(("two.test", 1), timeout=5.0) as client:
            assert client.getpeername() == listener.getsockname()
            assert client.gettimeout() == 5.0


def test_the_last_refusal_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """All refuse; or the resolver knows the host and none of its addresses."""
    resolve_to(monkeypatch, unused(), unused())
    with pytest.raises(ConnectionRefusedError):
        connect("tcp://two.test:1")
    resolve_to(monkeypatch)
    with pytest.raises(OSError, match=r"no address for 'tcp://none\.test:1'"):
        connect("tcp://none.test:1")


@pytest.mark.parametrize("timeout", [-1.0, math.nan])
def test_a_time_that_makes_no_sense_leaves_no_socket(timeout: float) -> None:
    """ValueError comes before a connection, and what was opened for it is closed."""
    with socket.create_server(LOOPBACK) as listener:
        with pytest.raises(ValueError, match=r"Timeout|NaN"):
            connect(listener.getsockname(), timeout=timeout)
        assert not select.select([listener], [], [], 0)[0]


@pytest.mark.parametrize(
    ("address", "error"), [("carrier-pigeon://home", sockserve.AddressError), ("fd:3", ValueError)]
)
def test_a_text_that_names_no_server_is_refused(address: Any, error: type[Exception]) -> None:
    """Before a socket is opened."""
    with pytest.raises(error):
        connect(address)
