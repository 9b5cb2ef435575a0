"""socketserver or sockserve, in each way to run a handler: ``blocking.py MODULE MODEL WORK [NUMBER] [PROCESSES]``.

MODULE: "socketserver" or "sockserve". MODEL: "inline", "thread", "fork"; of sockserve also "pool", "greenlet". NUMBER:
of the pool's workers. PROCESSES: of sockserve, as many prefork workers. Exit status 3: there is no such model here.
"""

from __future__ import annotations

import hashlib
import http.server
import importlib
import sys
import time
from typing import Any

from answers import BACKLOG, BODY, HASHED, HELD, PAGE, PONG, announce, dns_answer, unix_path, work_hard

NO_SUCH_MODEL = 3

STDLIB = {"inline": "{}Server", "thread": "Threading{}Server", "fork": "Forking{}Server"}
MIXINS = {
    "inline": None,
    "thread": "ThreadingMixIn",
    "fork": "ForkingMixIn",
    "pool": "ThreadPoolMixIn",
}


def ping(self: Any) -> None:
    """Answer until the client is done. This and the others are what users would write as ``handle()``."""
    while self.request.recv(1024):
        self.request.sendall(PONG)


def ping_parked(self: Any) -> None:
    """Answer, and give the thread back until the client speaks again."""
    if self.request.recv(1024):
        self.request.sendall(PONG)
        self.keep_open()


def ping_stream(self: Any) -> None:
    """Line after line."""
    while self.rfile.readline():
        self.wfile.write(PONG)


def connect(self: Any) -> None:
    """Answer once."""
    self.request.recv(1024)
    self.request.sendall(PAGE)


def connect_stream(self: Any) -> None:
    """Answer the first line."""
    self.rfile.readline()
    self.wfile.write(PAGE)


def udp(self: Any) -> None:
    """Answer a datagram."""
    data, sock = self.request
    sock.sendto(dns_answer(data), self.client_address)


def cpu(self: Any) -> None:
    """Compute, and answer, until the client is done."""
    while self.request.recv(1024):
        work_hard()
        self.request.sendall(PONG)


def cpu_parked(self: Any) -> None:
    """The same, and give the thread back until the client speaks again."""
    if self.request.recv(1024):
        work_hard()
        self.request.sendall(PONG)
        self.keep_open()


def wait_parked(self: Any, seconds: float) -> None:
    """Wait for something else, as for a database, and answer."""
    if self.request.recv(1024):
        time.sleep(seconds)  # noqa: TID251 - it is what a database takes
        self.request.sendall(PONG)
        self.keep_open()


def held_parked(self: Any) -> None:
    """Answer PING at once, and anything else in its time."""
    data = self.request.recv(1024)
    if data:
        if not data.startswith(b"PING"):
            time.sleep(HELD)  # noqa: TID251 - the same
        self.request.sendall(PONG)
        self.keep_open()


def hash_parked(self: Any) -> None:
    """Compute without the interpreter's lock, and answer."""
    if self.request.recv(1024):
        hashlib.sha3_256(HASHED).digest()
        self.request.sendall(PONG)
        self.keep_open()


class Pages(http.server.BaseHTTPRequestHandler):
    """One page, and no log."""

    wbufsize = -1

    def handle(self) -> None:
        """Answer all requests of a connection; a client that has gone is nothing to write about."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_: Any) -> None:
        """Write nothing: a terminal is not what is measured."""


def pages_parked(self: Any) -> None:
    """One request, instead of all of its connection."""
    self.close_connection = True
    self.handle_one_request()
    if not self.close_connection:
        self.keep_open()


def handler_class(module: Any, model: str, work: str) -> Any:
    """The handler for a work."""
    if work.startswith("http"):
        version = "HTTP/1.1" if work == "http-kept" else "HTTP/1.0"
        if model == "pool" and work == "http-kept":
            bases = (module.StreamRequestHandler, Pages)
            return type("Handler", bases, {"protocol_version": version, "handle": pages_parked, "wbufsize": -1})
        return type("Handler", (Pages,), {"protocol_version": version})
    handle = {
        "ping": ping_parked if model == "pool" else ping,
        "ping-unix": ping_parked if model == "pool" else ping,
        "ping-stream": ping_stream,
        "connect": connect,
        "connect-stream": connect_stream,
        "udp": udp,
        "cpu": cpu_parked if model == "pool" else cpu,
        "wait1": lambda self: wait_parked(self, 0.001),
        "wait5": lambda self: wait_parked(self, 0.005),
        "held": held_parked,
        "hash": hash_parked,
    }[work]
    base = "StreamRequestHandler" if work.endswith("-stream") else "BaseRequestHandler"
    return type("Handler", (getattr(module, base),), {"handle": handle})


def server_class(module: Any, model: str, work: str, is_preforking: bool) -> Any:
    """The class for a model, a work's kind of socket, and whether it is one of several processes."""
    # Over the standard library's own loop greenlets serve one request at a time.
    if work.startswith("http") and model != "greenlet":
        mixin = MIXINS[model]
        bases = (http.server.HTTPServer,) if mixin is None else (getattr(module, mixin), http.server.HTTPServer)
    elif module.__name__ == "socketserver":
        family = {"udp": "UDP", "ping-unix": "UnixStream"}.get(work, "TCP")
        bases = (getattr(module, STDLIB[model].format(family)),)
    else:
        from sockserve.ready_made import server_class  # noqa: PLC0415 - the standard library's servers do without

        bases = (server_class(model, {"udp": "udp", "ping-unix": "unix"}.get(work, "tcp")),)
    if is_preforking:
        bases = (module.PreForkMixIn, *bases)
    return type("Server", bases, {})


def make_server(module_name: str, model: str, work: str, number: int = 0, processes: int = 0) -> Any:
    """A server that listens. Raises AttributeError or ValueError if there is no such model."""
    module = importlib.import_module(module_name)
    cls = server_class(module, model, work, processes > 0)
    cls.request_queue_size = BACKLOG
    # As http.server's ThreadingHTTPServer: the list of the others, which stdlib scans on each accept, stays empty.
    cls.daemon_threads = True
    # So that the forking servers may have a child for each client of a work.
    cls.max_children = 1000
    if number:
        cls.max_workers = number
    if processes:
        cls.processes = processes
    address = unix_path() if work == "ping-unix" else ("127.0.0.1", 0)
    return cls(address, handler_class(module, model, work))


def announce_server(server: Any) -> None:
    """Say where it listens."""
    announce(server.server_address if isinstance(server.server_address, str) else server.server_address[1])


def main() -> None:
    """Serve the work."""
    module_name, model, work, *numbers = sys.argv[1:]
    try:
        server = make_server(module_name, model, work, *map(int, numbers))
    except (AttributeError, ImportError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(NO_SUCH_MODEL)
    announce_server(server)
    server.serve_forever()


if __name__ == "__main__":
    main()
