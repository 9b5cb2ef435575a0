"""What a handler asks not to wait for, MSG_DONTWAIT, it does not wait for, in whatever it runs."""

from __future__ import annotations

import socket

import pytest
from support.models import MODELS

import sockserve
from sockserve import testing
from sockserve.pytest_plugin import Running
from sockserve.ready_made import server_class


class NoWait(sockserve.BaseRequestHandler):
    """Asks for input that is not there, then fills the connection, and closes it."""

    def handle(self) -> None:
        """Serve one client; what does not raise BlockingIOError fails the test by going on."""
        with pytest.raises(BlockingIOError):
            self.request.recv(1, socket.MSG_DONTWAIT)
        with pytest.raises(BlockingIOError):
            self.request.recv_into(bytearray(1), 1, socket.MSG_DONTWAIT)
        self.request.sendall(b"nothing", socket.MSG_DONTWAIT)
        with pytest.raises(BlockingIOError):
            self.fill()

    def fill(self) -> None:
        """Send until it does not fit."""
        while self.request.send(bytes(65536), socket.MSG_DONTWAIT):
            pass


@pytest.mark.skipif(not hasattr(socket, "MSG_DONTWAIT"), reason="there is no such flag")
@pytest.mark.parametrize("model", MODELS)
def test_what_is_not_to_wait_does_not_wait(model: str, running: Running) -> None:
    """Input that has not come, and output that does not fit, raise BlockingIOError at once."""
    server = running(server_class(model, "tcp")(("127.0.0.1", 0), NoWait))
    with testing.Stall(server) as client:
        assert client.read().startswith(b"nothing\0")
