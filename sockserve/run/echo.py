"""The built-in handler: sends back what it gets, so that there is something to talk to before anything is written."""

from __future__ import annotations

import socket
from typing import Any

from sockserve.core.handlers import BaseRequestHandler

__all__ = ["Echo"]


class Echo(BaseRequestHandler):
    """Sends back what a client sends: all of a connection, and each datagram, unless its sender cannot be answered."""

    def handle(self) -> None:
        """Echo."""
        request: Any = self.request
        if isinstance(request, socket.socket):
            while data := request.recv(65536):
                request.sendall(data)
        elif self.client_address:
            packet, shared = request
            shared.sendto(packet, self.client_address)
