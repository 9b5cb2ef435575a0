"""Which system calls a request takes: ``python -m benchmarks.calls``, through ``strace -f -c``.

Each server is let start and warm up first; then strace is attached to all of its threads for a thousand requests, ten
outstanding at a time, so that calls which serve several requests count in parts. The table goes between the markers in
docs/explanation/performance-results.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping

from benchmarks import contenders
from benchmarks.contenders import BY_NAME, Contender
from benchmarks.page import DOCUMENTS, RESULTS_PAGE, replace, table
from benchmarks.processes import ServerProcess
from benchmarks.works import PING, PONG, settle

BEGIN, END = "<!-- system calls: written by make bench-calls -->", "<!-- end of the system calls -->"
REQUESTS = 1000
OUTSTANDING = 10
RARE = 0.005
"""Calls per request, below which there is nothing to say about one."""

LOCKS = "futex"
"""Counted apart: threads that strace slows down wait for CPython's lock far more often than others."""

PAGE_REQUEST = b"GET / HTTP/1.0\r\n\r\n"
QUERY = b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\x07example\x03com\x00\x00\x01\x00\x01"

Ask = Callable[[int], None]


def connected(port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A client's socket."""
    made = socket.socket(socket.AF_INET, kind)
    made.settimeout(30.0)
    made.connect(("127.0.0.1", port))
    return made


@contextlib.contextmanager
def kept(port: int, outstanding: int) -> Iterator[Ask]:
    """Asks on connections that stay; a line and its answer."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(port)) for _ in range(outstanding)]

        def ask(number: int) -> None:
            for _ in range(number // outstanding):
                for client in clients:
                    client.sendall(PING)
                for client in clients:
                    if client.recv(100) != PONG:
                        raise ConnectionError("a wrong answer, or none")

        yield ask


@contextlib.contextmanager
def opened(port: int, outstanding: int) -> Iterator[Ask]:
    """Asks on a connection each, until the server closes it."""

    def ask(number: int) -> None:
        for _ in range(number // outstanding):
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(connected(port)) for _ in range(outstanding)]
                for client in clients:
                    client.sendall(PAGE_REQUEST)
                for client in clients:
                    while client.recv(1000):
                        pass

    yield ask


@contextlib.contextmanager
def datagrams(port: int, outstanding: int) -> Iterator[Ask]:
    """Asks with datagrams."""
    with connected(port, socket.SOCK_DGRAM) as client:

        def ask(number: int) -> None:
            for _ in range(number // outstanding):
                for _ in range(outstanding):
                    client.send(QUERY)
                for _ in range(outstanding):
                    client.recv(1000)

        yield ask


CLIENTS: Mapping[str, Callable[[int, int], contextlib.AbstractContextManager[Ask]]] = {
    "ping": kept,
    "connect": opened,
    "udp": datagrams,
}
# Without a child for each request: a thousand of them under strace take minutes.
SERVERS = (
    *("floor", "stdlib-inline", "inline", "stdlib-thread", "thread", "pool", "greenlet"),
    *("uvloop", "asyncio", "gevent", "trio"),
)


def counted(server: ServerProcess, ask: Ask) -> dict[str, float]:
    """Of each system call, how often all the server's threads made it per request."""
    pids = [argument for pid in server.pids() for argument in ("-p", str(pid))]
    with tempfile.NamedTemporaryFile("r") as summary:
        command = ["strace", "-f", "-c", "-o", summary.name, *pids]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            try:
                said = tracer.stderr
                waiting = len(pids) // 2
                while said is not None and waiting:
                    line = said.readline()
                    if not line:
                        raise ChildProcessError(f"{' '.join(command)}: ended, status {tracer.wait()}")
                    waiting -= " attached" in line
                ask(REQUESTS)
                settle(server)
            finally:
                tracer.send_signal(signal.SIGINT)
                tracer.communicate()
        return read_summary(summary.read())


def read_summary(text: str) -> dict[str, float]:
    """The table of ``strace -c``: time in percent and seconds, microseconds a call, calls, perhaps errors, name."""
    counts = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) in (5, 6) and fields[3].isdigit() and fields[-1] != "total":
            counts[fields[-1]] = int(fields[3]) / REQUESTS
    return dict(sorted(counts.items(), key=lambda each: -each[1]))


def measure(each: Contender, protocol: str) -> dict[str, float]:
    """One server, one work."""
    # Those whose client keeps all others waiting can be asked by one.
    outstanding = 1 if each.one_at_a_time and protocol == "ping" else OUTSTANDING
    with ServerProcess(each.command(protocol), os.sched_getaffinity(0), None) as server:
        if isinstance(server.place, str):
            raise TypeError(server.place)
        with CLIENTS[protocol](server.place, outstanding) as ask:
            ask(OUTSTANDING * 10)
            settle(server)
            return counted(server, ask)


def words(counts: Mapping[str, float]) -> str:
    """As the table says it."""
    return ", ".join(f"{name} {count:.2f}" for name, count in counts.items() if count >= RARE)


def main() -> None:
    """All of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calls", description=__doc__)
    parser.add_argument("--model", nargs="*", default=SERVERS, choices=SERVERS, help="default: all")
    parser.add_argument("--write", action="store_true", help="into the document")
    asked = parser.parse_args()
    os.environ["PYTHONPATH"] = contenders.python_path()
    lines = []
    with contextlib.ExitStack() as last:
        last.callback(contenders.remove_floor)
        for protocol in CLIENTS:
            rows = []
            for name in asked.model:
                each = BY_NAME[name]
                if protocol in each.protocols and each.missing() is None:
                    counts = measure(each, protocol)
                    sys.stderr.write(f"{protocol} {name}\n")
                    locks = counts.pop(LOCKS, 0.0)
                    rows.append([name, f"{sum(counts.values()):.2f}", words(counts), f"{locks:.2f}"])
            lines += table([f"`{protocol}`", "calls", "which", f"and {LOCKS}, traced"], rows)
    sys.stdout.write("\n".join(lines) + "\n")
    if asked.write:
        replace(DOCUMENTS / RESULTS_PAGE, lines, BEGIN, END)


if __name__ == "__main__":
    main()
