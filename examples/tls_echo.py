"""An echo over TLS for clients that show a certificate, which it greets by name.

    python examples/tls_echo.py server.crt server.key ca.crt tls://127.0.0.1:9443
    openssl s_client -connect 127.0.0.1:9443 -cert alice.crt -key alice.key -quiet

A renewed certificate is used from the next client on.
"""

from __future__ import annotations

import logging
import sys

import sockserve

LONGEST_LINE = 4096


class Echo(sockserve.StreamRequestHandler):
    """Greets, then returns each line."""

    timeout = 60
    has_greeted = False

    def handle(self) -> None:
        """Answer one line."""
        if not self.has_greeted:
            self.has_greeted = True
            self.wfile.write(f"hello {self.name()}\n".encode())
        line = self.rfile.readline(LONGEST_LINE)
        if line:
            self.wfile.write(line)
            self.keep_open()

    def name(self) -> str:
        """The common name in the client's certificate."""
        tls = self.connection_info.tls
        subject = tls.client_certificate_fields.get("subject", ()) if tls is not None else ()
        names: dict[str, str] = dict(pair for pairs in subject for pair in pairs)
        return names.get("commonName", "stranger")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    certificate, key, client_ca, *addresses = sys.argv[1:]
    sockserve.serve(Echo, *addresses, model="pool", tls=sockserve.TLS(certificate, key, client_ca=client_ca))
