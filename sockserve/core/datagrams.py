"""The handler of datagrams, one object for each."""

from __future__ import annotations

import io
import socket

from sockserve.core.base_server import AddressT
from sockserve.core.handlers import BaseRequestHandler, ServerT
from sockserve.core.servable import Address
from sockserve.log import log
from sockserve.net.departure import cannot_be_answered

__all__ = ["DatagramRequestHandler"]

_DONT_WAIT: int = getattr(socket, "MSG_DONTWAIT", 0)


class DatagramRequestHandler(BaseRequestHandler[ServerT, "tuple[bytes, socket.socket]", AddressT]):
    """Handles a datagram: read ``self.rfile``, write ``self.wfile``; what was written is sent as one datagram.

    Nothing is sent if nothing was written, if ``handle()`` raised, or if the sender has no address to answer to.
    Sending never waits: an answer that its client has no room for, or that cannot reach it, is dropped with a line at
    DEBUG.
    """

    __module__ = "sockserve"

    rfile: io.BytesIO
    wfile: io.BytesIO

    def setup(self) -> None:
        """Open the files over ``self.packet``."""
        self.packet, self.socket = self.request
        self.rfile = io.BytesIO(self.packet)
        self.wfile = io.BytesIO()

    def finish(self) -> None:
        """Send the answer."""
        answer = self.wfile.getvalue()
        if answer and self.client_address and not self._serving_handle_raised:
            try:
                address: Address = self._serving_answers_to()
                self.socket.sendto(answer, _DONT_WAIT, address)
            except OSError as error:
                if not cannot_be_answered(error, self.client_address):
                    raise
                log.debug("%s gets no answer: %s", self.client_address, error)

    def _serving_answers_to(self) -> object:
        # What a proxy passed on goes back through it.
        if getattr(self.server, "proxy_from", ()):
            return self.connection_info.peer_address
        return self.client_address
