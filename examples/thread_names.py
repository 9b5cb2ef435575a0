"""A server with a thread for each client, three clients, and the end of all of them, in one script.

    python examples/thread_names.py

``serve()`` is for programs that are a server. In a program that also does something else, as a test does, the server
runs in a thread and ends when the program says so: ``shutdown()`` ends the loop, ``server_close()`` waits for the
handlers.
"""

from __future__ import annotations

import socket
import threading

import sockserve


class ThreadName(sockserve.StreamRequestHandler):
    """Answers a line with the name of its thread and the line."""

    timeout = 60

    def handle(self) -> None:
        """Answer one line of at most 1000 bytes."""
        line = self.rfile.readline(1000)
        self.wfile.write(threading.current_thread().name.encode() + b": " + line)


def ask(address: tuple[str, int], text: str) -> None:
    """Be a client."""
    with socket.create_connection(address, timeout=10) as connection, connection.makefile("rw") as file:
        file.write(f"{text}\n")
        file.flush()
        print("Received:", file.readline(), end="")


def main() -> None:
    """Serve three clients."""
    server = sockserve.ThreadingTCPServer(("127.0.0.1", 0), ThreadName)
    loop = threading.Thread(target=server.serve_forever, name="the loop")
    loop.start()
    try:
        for number in range(1, 4):
            ask(server.server_address, f"Hello World {number}")
    finally:
        server.shutdown()
        server.server_close()
        loop.join()


if __name__ == "__main__":
    main()
