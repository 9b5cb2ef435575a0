"""A line server that begins in the clear, and goes on over TLS when a client says STARTTLS.

    python examples/starttls.py server.crt server.key tcp://127.0.0.1:9025

Passwords are taken over TLS only.
"""

from __future__ import annotations

import logging
import sys

import sockserve

LONGEST_LINE = 1000


class Lines(sockserve.StreamRequestHandler):
    """Knows STARTTLS, LOGIN and QUIT."""

    timeout = 60
    settings: sockserve.TLS

    def handle(self) -> None:
        """Answer one line."""
        line = self.rfile.readline(LONGEST_LINE)
        command = line.decode("ascii", "replace").strip().partition(" ")[0].upper()
        is_secure = self.connection_info.is_secure
        if not line or command == "QUIT":
            self.wfile.write(b"221 bye\r\n")
            return
        if command == "STARTTLS" and not is_secure:
            self.wfile.write(b"220 go ahead\r\n")
            self.start_tls(self.settings)
        elif command == "LOGIN":
            self.wfile.write(b"235 welcome\r\n" if is_secure else b"530 STARTTLS first\r\n")
        else:
            self.wfile.write(b"500 what?\r\n")
        self.keep_open()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    certificate, key, *addresses = sys.argv[1:]
    Lines.settings = sockserve.TLS(certificate, key)
    sockserve.serve(Lines, *addresses, model="pool")
