"""One handler, four kinds of sockets, two ways to run it.

    python examples/echo.py tcp thread
    python examples/echo.py unix-dgram fork

A handler says what to do with a request. The class of the server says the rest: where requests come from (TCPServer,
UDPServer, UnixStreamServer, UnixDatagramServer), and what the handler runs in (Threading, Forking; neither: the loop).
Each of them is the class of that name in the standard library's socketserver, and can do what that one can.
"""

from __future__ import annotations

import logging
import signal
import sys
import tempfile

import sockserve

log = logging.getLogger("echo")

SERVERS: dict[tuple[str, ...], type[sockserve.BaseServer]] = {
    ("tcp", "thread"): sockserve.ThreadingTCPServer,
    ("tcp", "fork"): sockserve.ForkingTCPServer,
    ("udp", "thread"): sockserve.ThreadingUDPServer,
    ("udp", "fork"): sockserve.ForkingUDPServer,
    ("unix", "thread"): sockserve.ThreadingUnixStreamServer,
    ("unix", "fork"): sockserve.ForkingUnixStreamServer,
    ("unix-dgram", "thread"): sockserve.ThreadingUnixDatagramServer,
    ("unix-dgram", "fork"): sockserve.ForkingUnixDatagramServer,
}


class Echo(sockserve.BaseRequestHandler):
    """A request is a connected socket, or a datagram with the socket to answer on."""

    def handle(self) -> None:
        """Send back what came."""
        if isinstance(self.request, tuple):
            data, socket = self.request
            if self.client_address:  # A Unix client that has no name cannot be answered.
                socket.sendto(data, self.client_address)
        else:
            while data := self.request.recv(65536):
                self.request.sendall(data)


def main() -> None:
    """Serve until a signal says stop; let the clients of that moment finish."""
    logging.basicConfig(level=logging.INFO)
    choice = tuple(sys.argv[1:]) or ("tcp", "thread")
    if choice not in SERVERS:
        sys.exit("one of: " + ", ".join(" ".join(words) for words in SERVERS))
    with tempfile.TemporaryDirectory() as directory:
        address = f"{directory}/echo.sock" if choice[0].startswith("unix") else ("127.0.0.1", 0)
        with SERVERS[choice](address, Echo) as server:
            for signum in (signal.SIGTERM, signal.SIGINT):
                # Of socketserver's this call would block for ever: it waits for the loop that it interrupts.
                signal.signal(signum, lambda *_: server.shutdown())
            log.info("serving on %s", server.server_address)
            server.serve_forever()
            log.info("stopping: %s", server.drain(timeout=10))


if __name__ == "__main__":
    main()
