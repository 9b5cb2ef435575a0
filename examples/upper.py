"""Upper-case echo: the server to write first, and what a stranger may send to it.

    python examples/upper.py tcp://127.0.0.1:9000
    nc 127.0.0.1 9000

What one client can make the server hold is bounded, or one client is enough to fill its memory: a line by its length,
silence by ``timeout``. What clients send is printed by ``repr()``: raw, it could give orders to the terminal.
"""

from __future__ import annotations

import logging
import sys

import sockserve

LONGEST_LINE = 1000


class Upper(sockserve.StreamRequestHandler):
    """Answers each line in upper case, and prints which client wrote it."""

    client_speaks_first = True
    timeout = 60

    def handle(self) -> None:
        """Serve one client until it leaves."""
        while line := self.rfile.readline(LONGEST_LINE + 1):
            if len(line) > LONGEST_LINE:
                self.wfile.write(b"A line has at most %d bytes.\n" % LONGEST_LINE)
                return
            print(f"{self.client_address} wrote {line!r}", flush=True)
            self.wfile.write(line.upper())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sockserve.serve(Upper, *(sys.argv[1:] or ["tcp://127.0.0.1:0"]))
