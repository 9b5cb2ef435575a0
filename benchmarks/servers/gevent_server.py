"""gevent's own servers: a greenlet per connection, and one per datagram: ``gevent_server.py WORK``."""

from __future__ import annotations

import sys
from typing import Any

from answers import BACKLOG, PAGE, PONG, announce, dns_answer
from gevent.server import DatagramServer, StreamServer


def ping(connection: Any, _: Any) -> None:
    """Answer until the client is done."""
    while connection.recv(1024):
        connection.sendall(PONG)


def connect(connection: Any, _: Any) -> None:
    """Answer once; the server closes."""
    connection.recv(1024)
    connection.sendall(PAGE)


class Datagrams(DatagramServer):  # type: ignore[misc, unused-ignore]
    """Answers each."""

    def handle(self, data: bytes, address: Any) -> None:
        """One datagram."""
        self.socket.sendto(dns_answer(data), address)


def main() -> None:
    """Serve the work."""
    work = sys.argv[1]
    server: Any
    if work == "udp":
        server = Datagrams(("127.0.0.1", 0))
    else:
        server = StreamServer(("127.0.0.1", 0), {"ping": ping, "connect": connect}[work], backlog=BACKLOG)
    server.start()
    announce(server.server_port)
    server.serve_forever()


main()
