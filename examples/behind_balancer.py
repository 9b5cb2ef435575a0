"""Tells each client its own address, although a balancer stands between.

    python examples/behind_balancer.py 127.0.0.0/8 tcp://127.0.0.1:9001
    curl --haproxy-protocol http://127.0.0.1:9001/

The first argument is the balancer's network, or several with commas between them.
"""

from __future__ import annotations

import http.server
import logging
import sys

import sockserve


class Page(sockserve.HTTPKeepAliveMixIn, http.server.BaseHTTPRequestHandler):
    """One page: the address of the client, and that of the balancer."""

    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        """Answer."""
        info = self.connection_info
        name = "" if info.server_name is None else f", to {info.server_name}"
        body = f"{info.client_address[0]} by {info.peer_address[0]}{name}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    networks, *addresses = sys.argv[1:]
    sockserve.serve(Page, *addresses, model="pool", proxy_from=networks.split(","))
