"""A TCP proxy on greenlets: each client talks to another server, and thousands may at once.

    pip install sockserve[greenlet]
    PROXY_TARGET=127.0.0.1:8000 python examples/proxy.py tcp://127.0.0.1:9000

Each connection needs two that copy, one for each direction, and both wait most of the time. As threads they would be
too many; greenlets wait at the price of a few kilobytes. A copier reads no more before what it has read is sent: a
client that does not read stops its own stream, and fills no memory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys

import sockserve
from sockserve import greenlets

TARGET_HOST, _, TARGET_PORT = os.environ.get("PROXY_TARGET", "127.0.0.1:8000").rpartition(":")
CONNECT_TIMEOUT = 10.0
LONGEST_SILENCE = 600.0
"""Seconds without a byte in one direction after which both end."""

log = logging.getLogger("proxy")


class Proxy(sockserve.BaseRequestHandler):
    """Connects its client with the target."""

    def handle(self) -> None:
        """Serve until both have said all, or one of them breaks off."""
        try:
            target = greenlets.create_connection((TARGET_HOST, int(TARGET_PORT)), timeout=CONNECT_TIMEOUT)
        except OSError as error:
            log.warning("%s is not served: %s", self.client_address, error)
            return
        with target:
            target.settimeout(LONGEST_SILENCE)
            self.request.settimeout(LONGEST_SILENCE)
            other_way = greenlets.spawn(copy, self.request, target)
            copy(target, self.request)
            other_way.wait()


def copy(source: socket.socket, sink: socket.socket) -> None:
    """Send on what comes, and then the end of it; if that fails, end both directions of both."""
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sockserve.serve(Proxy, *(sys.argv[1:] or ["tcp://127.0.0.1:0"]), model="greenlet")
