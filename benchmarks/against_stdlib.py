"""What a request costs with sockserve and with the standard library's same class, side by side in one run.

Measured is the processor time, user and system, of the server's whole process tree from serve_forever() to the end of
server_close(), as the kernel accounts for it (getrusage(2)). Servers and clients are pinned to a core each. In a round
both servers are up, and the clients turn from one to the other many times, so that whatever else the machine does meets
both alike. Needs a C compiler, `cc`.

    python benchmarks/against_stdlib.py > result.json      the table goes to the terminal
"""

# ruff: noqa: INP001 - a script, not a package

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import multiprocessing
import os
import pathlib
import platform
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

MODULES = ("socketserver", "sockserve")
CLASSES = {"inline": "TCPServer", "thread": "ThreadingTCPServer", "fork": "ForkingTCPServer"}
HANDLERS = {"base": "BaseRequestHandler", "stream": "StreamRequestHandler"}
WORKS = ("connect", "kept")

REQUESTS = {
    ("inline", "connect"): 20_000,
    ("thread", "connect"): 10_000,
    ("fork", "connect"): 1_000,
    ("inline", "kept"): 60_000,
    ("thread", "kept"): 60_000,
    ("fork", "kept"): 60_000,
}
"""Per round and module: about a second of processor time, so that starting and stopping the server does not show."""

TURNS = 20
"""In which the clients ask a round's requests: each shorter than most disturbances, and far longer than their start."""

CLIENTS = 8
"""Enough that the server never waits for a client. On kept connections an inline server has one client at a time."""

BACKLOG = 128
"""Of both: with the stdlib's default of 5 connections are dropped, and clients wait a second to try again."""


class Cell(NamedTuple):
    """One thing that is measured."""

    work: str
    model: str
    handler: str


def base_connect(self: Any) -> None:
    """What users would write as ``handle()``; so are the three below."""
    self.request.recv(1024)
    self.request.sendall(b"+PONG\r\n")


def base_kept(self: Any) -> None:
    """A connection until its end."""
    while self.request.recv(1024):
        self.request.sendall(b"+PONG\r\n")


def stream_connect(self: Any) -> None:
    """One line."""
    self.rfile.readline()
    self.wfile.write(b"+PONG\r\n")


def stream_kept(self: Any) -> None:
    """Line after line."""
    while self.rfile.readline():
        self.wfile.write(b"+PONG\r\n")


def handler_class(module: Any, cell: Cell) -> Any:
    """The handler that users would write for it."""
    base = getattr(module, HANDLERS[cell.handler])
    return type("Handler", (base,), {"handle": globals()[f"{cell.handler}_{cell.work}"]})


def serve(pipe: Any, module_name: str, cell: Cell, core: int) -> None:
    """Be the server's process: send the port, serve until SIGTERM, send the seconds of processor time."""
    os.sched_setaffinity(0, {core})
    module = importlib.import_module(module_name)
    server_class = getattr(module, CLASSES[cell.model])
    server_class.request_queue_size = BACKLOG
    server = server_class(("127.0.0.1", 0), handler_class(module, cell))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    pipe.send(server.server_address[1])
    before = cpu_seconds()
    with contextlib.suppress(SystemExit):
        server.serve_forever()
    server.server_close()
    pipe.send(cpu_seconds() - before)


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended and were waited for."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(cell: Cell, requests: int, load: str, core: int) -> dict[str, float]:
    """One round: for each module, microseconds of processor time per request."""
    clients = 1 if (cell.model, cell.work) == ("inline", "kept") else CLIENTS
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(Server(name, cell, core)) for name in MODULES}
        for turn in range(TURNS):
            # Whoever comes second finds warm caches: let both have that.
            for name in MODULES if turn % 2 == 0 else reversed(MODULES):
                command = [load, cell.work, str(servers[name].port), str(clients), str(requests // TURNS)]
                subprocess.run(command, check=True)
        return {name: server.stop() / (requests // TURNS * TURNS) * 1e6 for name, server in servers.items()}


class Server:
    """A process that runs ``serve()``."""

    def __init__(self, module_name: str, cell: Cell, core: int) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=serve, args=(theirs, module_name, cell, core))
        self.process.start()
        theirs.close()
        self.port: int = self.pipe.recv()

    def stop(self) -> float:
        """End it; return the seconds of processor time that serving took."""
        self.process.terminate()
        seconds: float = self.pipe.recv()
        return seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


@contextlib.contextmanager
def built_load() -> Iterator[str]:
    """The program that makes the clients, for the length of a block."""
    with tempfile.TemporaryDirectory() as directory:
        program = f"{directory}/load"
        source = pathlib.Path(__file__).with_name("load.c")
        compiler = shutil.which("cc")
        if compiler is None:
            sys.exit("needs a C compiler, cc (Debian: gcc)")
        subprocess.run([compiler, "-O2", "-Wall", "-o", program, str(source)], check=True)
        yield program


def compare(cell: Cell, rounds: int, requests: int, load: str, core: int) -> dict[str, Any]:
    """All rounds of one cell."""
    each_round = [measure(cell, requests, load, core) for _ in range(rounds)]
    figures = {name: [figure[name] for figure in each_round] for name in MODULES}
    theirs, ours = (figures[name] for name in MODULES)
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return {
        **cell._asdict(),
        "requests": requests,
        "stdlib_us": statistics.median(theirs),
        "sockserve_us": statistics.median(ours),
        "ratio": statistics.median(ours) / statistics.median(theirs),
        "ratio_of_rounds": statistics.median(ratios),
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
        "rounds_us": figures,
    }


def report(row: dict[str, Any] | None) -> None:
    """One line of the table; None: its heading."""
    if row is None:
        text = "work      model    handler   stdlib µs   sockserve µs   ratio   round by round: median (lowest-highest)"
    else:
        text = (
            f"{row['work']:9} {row['model']:8} {row['handler']:8} {row['stdlib_us']:10.2f} {row['sockserve_us']:14.2f} "
            f"{row['ratio']:7.3f}   {row['ratio_of_rounds']:.3f} ({row['ratio_lowest']:.3f}-{row['ratio_highest']:.3f})"
        )
    sys.stderr.write(f"{text}\n")


def main() -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument(
        "--work", nargs="+", choices=WORKS, default=WORKS, help="a connection per request, or kept ones"
    )
    parser.add_argument("--model", nargs="+", choices=CLASSES, default=["inline", "thread"], help="default: no fork")
    parser.add_argument("--handler", nargs="+", choices=HANDLERS, default=list(HANDLERS))
    parser.add_argument("--scale", type=float, default=1.0, help="times as many requests in each round (default 1)")
    parser.add_argument("--limit", type=float, help="exit with status 1 if a ratio is above this")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("needs two cores: one for the server and one for its clients")
    os.sched_setaffinity(0, {cores[0]})
    rows = []
    with built_load() as load:
        report(None)
        for cell in (Cell(*each) for each in itertools.product(args.work, args.model, args.handler)):
            requests = int(REQUESTS[cell.model, cell.work] * args.scale)
            rows.append(compare(cell, args.rounds, requests, load, cores[-1]))
            report(rows[-1])
    machine = {"python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count()}
    json.dump({**machine, "rounds": args.rounds, "rows": rows}, sys.stdout, indent=1)
    return int(args.limit is not None and any(row["ratio"] > args.limit for row in rows))


if __name__ == "__main__":
    sys.exit(main())
