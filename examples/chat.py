"""A chat: what one says, all others hear.

    python examples/chat.py tcp://127.0.0.1:9000
    nc 127.0.0.1 9000            several times

``server.active_requests`` is the list of all members, with the handler of each. One that does not read must not hold
up the one that speaks: it is not waited for, and is cut off when its socket takes no more. There is no ``timeout``: one
may listen in silence for hours. TCP's own keep-alive finds those whose machine is gone.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys

import sockserve

LONGEST_LINE = 1000


class Chat(sockserve.StreamRequestHandler):
    """One member. In threads, that is: of forked children none has the others."""

    name = "a guest"

    def setup(self) -> None:
        """Let the kernel look after a silent peer."""
        super().setup()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def handle(self) -> None:
        """Take the member's name, then pass on what it says until it leaves."""
        self.hear("Your name?")
        self.name = self.listen() or self.name
        self.tell_others("came")
        self.hear(f"Welcome, {self.name}.")
        while line := self.listen():
            self.tell_others(f"says {line}")

    def finish(self) -> None:
        """Say goodbye."""
        self.tell_others("left")
        super().finish()

    def listen(self) -> str:
        """Read one line, of what can be printed; empty: it is time to go."""
        line = self.rfile.readline(LONGEST_LINE)
        if not line.endswith(b"\n"):
            return ""
        return "".join(letter for letter in line.decode("utf-8", "replace").strip() if letter.isprintable()) or " "

    def tell_others(self, text: str) -> None:
        """Let all others hear it."""
        for request in self.server.active_requests:
            if isinstance(request.handler, Chat) and request.handler is not self:
                request.handler.hear(f"{self.name} {text}")

    def hear(self, text: str) -> None:
        """Get a line, now or never."""
        data = text.encode() + b"\n"
        # It may be leaving at this moment; then its own thread finds out. Or not have begun: it has no wfile yet.
        with contextlib.suppress(OSError):
            try:
                has_room = self.request.send(data, socket.MSG_DONTWAIT) == len(data)
            except BlockingIOError:
                has_room = False
            if not has_room:
                self.request.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sockserve.serve(Chat, *(sys.argv[1:] or ["tcp://127.0.0.1:0"]))
