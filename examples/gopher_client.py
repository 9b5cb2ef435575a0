"""A client for Gopher (RFC 1436), which trusts its server as little as a server its clients.

    python examples/gopher_client.py gopher://127.0.0.1:7070/            a menu, with the addresses of its entries
    python examples/gopher_client.py gopher://127.0.0.1:7070/0/README.md a file

The answer is read with a time limit for each piece and a limit on the whole, and nothing in a menu reaches the
terminal that could give it orders.
"""

from __future__ import annotations

import socket
import sys
import urllib.parse
from collections.abc import Iterator

LARGEST_ANSWER = 16 * 2**20


def fetch(host: str, port: int, selector: str) -> bytes:
    """Return a server's whole answer. Raises OSError, or ValueError if it is too large."""
    answer = bytearray()
    with socket.create_connection((host, port), timeout=10) as connection:
        connection.sendall(selector.encode() + b"\r\n")
        while data := connection.recv(65536):
            answer += data
            if len(answer) > LARGEST_ANSWER:
                raise ValueError(f"the answer is longer than {LARGEST_ANSWER} bytes")
    return bytes(answer)


def entries(menu: bytes) -> Iterator[str]:
    """Turn a menu into one readable line for each entry."""
    for line in menu.decode("utf-8", "replace").split("\r\n"):
        if line not in ("", "."):
            name, selector, host, port = [*line[1:].split("\t"), "", "", ""][:4]
            entry = f"{name}  gopher://{host}:{port}/{line[0]}{selector}"
            yield "".join(letter if letter.isprintable() else "?" for letter in entry)


def main(url: str) -> None:
    """Print what is at a URL (RFC 4266: the type of the entry is the path's first letter)."""
    parts = urllib.parse.urlsplit(url)
    kind, selector = parts.path[1:2] or "1", urllib.parse.unquote(parts.path[2:])
    answer = fetch(parts.hostname or "localhost", parts.port or 70, selector)
    if kind == "1":
        for entry in entries(answer):
            print(entry)
    else:
        sys.stdout.buffer.write(answer)


if __name__ == "__main__":
    address = sys.argv[1] if sys.argv[1:] else "gopher://127.0.0.1:7070/"
    try:
        main(address)
    except (OSError, ValueError) as error:
        sys.exit(f"{address}: {error}")
