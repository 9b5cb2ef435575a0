"""What a request leaves to the garbage collector: nothing, whose passes hold up all that is in progress."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from support.handlers import handlers
from support.models import HERE
from support.waiting import wait_until

import sockserve
from sockserve.pytest_plugin import Running
from sockserve.ready_made import server_class
from sockserve.testing import Reset, ask

LOOPBACK = ("127.0.0.1", 0)
KINDS = [
    (model, transport, kind)
    for model in HERE
    for transport, kind in (("tcp", "Echo"), ("tcp", "EchoStream"), ("udp", "EchoDatagram"))
    if (model, transport) != ("greenlet", "udp")
]


@pytest.fixture
def no_collections() -> Iterator[None]:
    """None happens by itself."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize(("model", "transport", "kind"), KINDS)
def test_a_request_that_is_over_is_gone(running: Running, model: str, transport: str, kind: str) -> None:
    """With its handler and all that this knows: it is in no circle of references, also if the client broke it off."""
    seen: list[weakref.ref[Any]] = []

    class Seen(getattr(handlers(sockserve), kind)):  # type: ignore[misc]
        def setup(self) -> None:
            super().setup()
            seen.append(weakref.ref(self))

    server = running(server_class(model, transport)(LOOPBACK, Seen))
    for _ in range(3):
        ask(server, b"a line\n")
    if transport == "tcp":
        with Reset(server, b"a line\n"):
            wait_until(lambda: len(seen) == 4)

    def all_are_gone() -> bool:
        # Without the interpreter's lock an object is freed by the thread that made it, the loop's for one, when that
        # runs next.
        server.resume()
        return not any(each() for each in seen)

    wait_until(all_are_gone)


@pytest.mark.usefixtures("no_collections")
def test_a_child_that_has_ended_leaves_nothing_in_its_parent(running: Running) -> None:
    """Its request's socket is gone, and all that knew of it."""
    seen: list[weakref.ref[Any]] = []

    class Seen(server_class("fork", "tcp")):  # type: ignore[misc]
        def verify_request(self, request: Any, _client_address: Any) -> bool:
            seen.append(weakref.ref(request))
            return True

    server = running(Seen(LOOPBACK, handlers(sockserve).Echo))
    for _ in range(3):
        ask(server, b"a line\n")
    wait_until(lambda: not any(each() for each in seen))
