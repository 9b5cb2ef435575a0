"""One service on IPv4 and IPv6: a socket for each address that the resolver names, the same port on all of them.

    python examples/dual_family.py localhost 9000
    python examples/dual_family_client.py localhost 9000

``serve()`` takes sockets that are open already, as ``fd:N``: by this program, or by a supervisor such as systemd.
Here each is for one family only (IPV6_V6ONLY, which ``create_server()`` sets), so that they do not claim the same
port.
"""

from __future__ import annotations

import logging
import socket
import sys

import sockserve


class Family(sockserve.StreamRequestHandler):
    """Tells a client over which family it came."""

    timeout = 10

    def handle(self) -> None:
        """Say so."""
        self.wfile.write(f"You came over {self.connection.family.name} from {self.client_address[0]}\n".encode())


def listen_everywhere(host: str | None, port: int) -> list[socket.socket]:
    """Open a listener on each address of a host, None: on every interface; for port 0 all on one free port."""
    listeners: list[socket.socket] = []
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, (ip, _, *flow_and_zone) in dict.fromkeys((each[0], each[4]) for each in found):
        listener = socket.create_server((ip, port, *flow_and_zone), family=family)
        port = listener.getsockname()[1]
        listeners.append(listener)
    return listeners


def main(host: str = "localhost", port: str = "0") -> None:
    """Serve every address of the host; an empty one means every interface."""
    listeners = listen_everywhere(host or None, int(port))
    sockserve.serve(Family, *(f"fd:{listener.detach()}" for listener in listeners))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main(*sys.argv[1:])
