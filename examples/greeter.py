"""A server that speaks first, then says what it got, as soon as it got it.

    python examples/greeter.py tcp://127.0.0.1:9000
    nc 127.0.0.1 9000

``read1()`` returns what has arrived, however little, and waits only if that is nothing: a stream has no messages, only
bytes. A handler that needs messages reads lines (upper.py) or lengths (log_receiver.py).
"""

from __future__ import annotations

import logging
import sys

import sockserve


class Greeter(sockserve.StreamRequestHandler):
    """Welcomes a client and repeats what it says."""

    timeout = 60

    def handle(self) -> None:
        """Serve one client until it leaves."""
        self.wfile.write(b"Welcome to the server\n")
        while data := self.rfile.read1(1024):
            self.wfile.write(b"Data received: " + data)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sockserve.serve(Greeter, *(sys.argv[1:] or ["tcp://127.0.0.1:0"]))
