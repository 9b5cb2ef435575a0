"""A server that reads nothing: it thanks each caller and closes.

    python examples/thanks.py tcp://127.0.0.1:9000
    nc 127.0.0.1 9000

The connection is closed when ``handle()`` returns. What a client has sent all the same does not cost it the answer: a
plain close would throw it away with a reset; sockserve half-closes first, and lets it arrive.
"""

from __future__ import annotations

import logging
import sys

import sockserve


class Thanks(sockserve.StreamRequestHandler):
    """Thanks each client."""

    timeout = 10

    def handle(self) -> None:
        """Say so."""
        self.wfile.write(b"Thank you for connecting\n")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sockserve.serve(Thanks, *(sys.argv[1:] or ["tcp://127.0.0.1:0"]))
