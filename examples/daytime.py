"""The time, for people (RFC 867) and for machines (RFC 868), over TCP and UDP with the same handler.

    python examples/daytime.py tcp://127.0.0.1:1313 udp://127.0.0.1:1313
    nc 127.0.0.1 1313
    python -m sockserve examples.daytime:Time tcp://127.0.0.1:3737

A request is a connected socket, or a datagram with the server's socket to answer on. Where a datagram comes from is
what its sender claims. An answer to another service's port would be answered in turn, without end (CERT CA-1996-01);
so inetd, and this server, do not answer ports below 1024.
"""

from __future__ import annotations

import logging
import struct
import sys
import time

import sockserve

FIRST_PORT_OF_USERS = 1024
SECONDS_FROM_1900_TO_1970 = 2_208_988_800


class Daytime(sockserve.BaseRequestHandler):
    """Answers any request with the date and the time."""

    def handle(self) -> None:
        """Answer, whatever was asked."""
        if not isinstance(self.request, tuple):
            self.request.sendall(self.now())
        elif isinstance(self.client_address, tuple) and self.client_address[1] >= FIRST_PORT_OF_USERS:
            _, shared_socket = self.request
            shared_socket.sendto(self.now(), self.client_address)

    def now(self) -> bytes:
        """One line of text."""
        return time.strftime("%A, %B %d, %Y %H:%M:%S-UTC\r\n", time.gmtime()).encode()


class Time(Daytime):
    """Answers with the seconds since 1900 as four bytes, which begin anew in 2036."""

    def now(self) -> bytes:
        """Give the seconds, in network byte order."""
        return struct.pack("!I", (int(time.time()) + SECONDS_FROM_1900_TO_1970) % 2**32)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sockserve.serve(Daytime, *(sys.argv[1:] or ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"]))
