"""What a greenlet that waits keeps of the C stack, which each switch copies."""

from __future__ import annotations

import socket
from typing import Any

import greenlet
import pytest
from support.under_test import LIMIT

import sockserve
from sockserve.core.serving import table_of
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, connect

LOOPBACK = ("127.0.0.1", 0)


class Waits(sockserve.BaseRequestHandler[Any, socket.socket]):
    """Says that it runs, then waits for end-of-file."""

    def handle(self) -> None:
        """Until then."""
        self.request.sendall(b"here")
        self.request.recv(1)


class Meta(type):
    """A class of classes, whose instances no shortcut may make."""


class WaitsToo(Waits, metaclass=Meta):
    """The same, made by its class of classes."""


def saved_stack(running: Running, handler: Any) -> int:
    """Bytes of C stack that a waiting handler of this class keeps."""
    server = running(sockserve.GreenletTCPServer(LOOPBACK, handler))
    with connect(server, timeout=LIMIT) as client:
        assert client.recv(4, socket.MSG_WAITALL) == b"here"
        # All have switched once more when this one is answered: the first is waiting.
        with connect(server, timeout=LIMIT) as second:
            assert second.recv(4, socket.MSG_WAITALL) == b"here"
        first = min(table_of(server).all(), key=lambda live: live.since)
        assert isinstance(first.greenlet, greenlet.greenlet)
        return first.greenlet._stack_saved


def test_the_constructor_of_a_handler_adds_no_frame_of_c(running: Running) -> None:
    """The stack of a waiting handler holds no frame of ``type.__call__()``, as one of a class with a metaclass does."""
    assert saved_stack(running, Waits) < saved_stack(running, WaitsToo)


@pytest.mark.parametrize("place", ["class", "object"])
def test_an_override_behind_the_mix_in_runs_the_handler(running: Running, place: str) -> None:
    """``finish_request()`` of a server class behind the mix-in is called, and so is one that is set on the object."""
    seen = []

    class Counting(sockserve.TCPServer):
        def finish_request(self, request: Any, client_address: Any) -> None:
            seen.append(client_address)
            super().finish_request(request, client_address)

    base = Counting if place == "class" else sockserve.TCPServer
    server = running(type("Server", (sockserve.GreenletMixIn, base), {})(LOOPBACK, Waits))
    if place == "object":
        finish = server.finish_request

        def counting(request: Any, client_address: Any) -> None:
            seen.append(client_address)
            finish(request, client_address)

        server.finish_request = counting
    assert ask(server, b"x") == b"here"
    assert len(seen) == 1
