"""A client that tries each address of a host until one answers.

    python examples/dual_family_client.py localhost 9000

A name has several addresses, of two families, and the first one need not work. ``socket.create_connection()`` does the
same; this is what it does.
"""

from __future__ import annotations

import socket
import sys


def connect(host: str = "localhost", port: str = "9000") -> socket.socket:
    """Connect to the first address that answers within ten seconds; raise the last error if none does."""
    error = OSError(f"{host} has no address")
    for family, kind, protocol, _, sockaddr in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(10)
        try:
            connection.connect(sockaddr)
        except OSError as refused:
            connection.close()
            error = refused
            print(f"{sockaddr[0]}: {refused.strerror or refused}")
        else:
            print(f"{sockaddr[0]}: connected")
            return connection
    raise error


if __name__ == "__main__":
    try:
        with connect(*sys.argv[1:3]) as connected, connected.makefile() as answer:
            print(answer.readline(1000), end="")
    except OSError as failed:
        sys.exit(f"no server answers: {failed.strerror or failed}")
