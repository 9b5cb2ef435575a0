"""A prefork server in a process of its own, and what is needed to look at its workers from outside."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import sys
from typing import Self

from support.programs import Program
from support.under_test import LIMIT
from support.waiting import wait_until

from sockserve.testing import ask, connect

__all__ = ["HANGS_SOON", "TURNS_OFTEN", "Prefork", "is_alive"]

HANGS_SOON = """
worker_timeout = 0.4
import sockserve.concurrency.prefork.hang_detection as hang_detection
hang_detection.STEP_TIME = 0.1
"""
"""Attributes of a server whose workers, when they do not run at all, are killed after less than a second."""

TURNS_OFTEN = "def serve_forever(self, poll_interval=0.02): super().serve_forever(poll_interval)"
"""An attribute of a server that calls its ``service_actions()`` soon."""

SCRIPT = """
import logging, os, signal, sys, threading, sockserve
logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")

class Who(sockserve.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline()
        if line == b"stay\\n":
            self.wfile.write(b"!")
            line = self.rfile.readline()
        if line == b"die\\n":
            os.kill(os.getpid(), signal.SIGKILL)
        if line == b"leave\\n":
            os._exit(3)
        if line == b"hang\\n":
            threading.Event().wait()
        if line == b"keep\\n":
            self.keep_open()
        if line:
            self.wfile.write(b"%d %d" % (self.server.worker_id, os.getpid()))

class Server(sockserve.PreForkMixIn, {mix_in}sockserve.TCPServer):
    processes = 2
{attributes}

with Server(("127.0.0.1", 0), Who) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
print("ended", flush=True)
"""


def is_alive(pid: int) -> bool:
    """Say whether a process runs: it is there, and no zombie."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Prefork:
    """The program, for the length of a block; ``attributes`` are lines of its server class."""

    address: tuple[str, int]

    def __init__(self, *attributes: str, mix_in: str = "") -> None:
        body = "\n".join(f"    {line}" for attribute in attributes for line in attribute.splitlines())
        script = SCRIPT.replace("{mix_in}", f"sockserve.{mix_in}, " if mix_in else "")
        self.program = Program(script.replace("{attributes}", body))

    def __enter__(self) -> Self:
        self.program.__enter__()
        try:
            self.address = ("127.0.0.1", int(self.program.line()))
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        left = self.workers()
        self.program.__exit__(*exc_info)
        # No worker stays without its supervisor, however that ended.
        wait_until(lambda: not any(map(is_alive, left)))

    @property
    def pid(self) -> int:
        """The supervisor's."""
        return self.program.process.pid

    def workers(self) -> list[int]:
        """The process ids of all that it has forked and that run."""
        try:
            text = pathlib.Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except OSError:
            return []
        return [pid for pid in map(int, text.split()) if is_alive(pid)]

    def wait_for_workers(self, count: int = 2, other_than: list[int] | None = None) -> list[int]:
        """Return their process ids as soon as there are so many that are ready, none of those named among them."""
        found: list[int] = []

        def are_there() -> bool:
            found[:] = self.workers()
            log = self.errors()
            ready = all(f"(process {pid}) is ready" in log for pid in found)
            return len(found) == count and ready and not set(found) & set(other_than or ())

        wait_until(are_there)
        return found

    def who(self) -> tuple[int, int]:
        """The number and the process id of the worker that answers next."""
        number, pid = ask(self.address, b"who\n", timeout=LIMIT).split()
        return int(number), int(pid)

    def connect(self) -> socket.socket:
        """A connection whose worker waits for its next line."""
        client = connect(self.address, timeout=LIMIT)
        client.sendall(b"stay\n")
        assert client.recv(100) == b"!"
        return client

    def tell(self, line: bytes) -> bytes:
        """Send a line to whichever worker; return what it answers, until it or its process ends."""
        with connect(self.address, timeout=LIMIT) as client:
            client.sendall(line)
            return client.recv(100)

    def send(self, signum: signal.Signals, *pids: int) -> None:
        """Signal these processes, or if none is named the supervisor."""
        for pid in pids or [self.pid]:
            os.kill(pid, signum)

    def status(self) -> int:
        """Its exit status, once it has ended."""
        return self.program.status(LIMIT)

    def errors(self) -> str:
        """What it has logged."""
        return self.program.errors()
