"""How long shutdown() takes: the worst and the median of many, while fifty clients talk and while nobody does.

The clients are processes of their own that connect, ask, read and connect again (load.c; needs a C compiler, `cc`).

    python benchmarks/shutdown_latency.py > result.json      the table goes to the terminal
"""

# ruff: noqa: INP001 - a script, not a package

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from against_stdlib import BACKLOG, CLASSES, base_connect, built_load

CLIENTS = 50
WITHOUT_END = 10**9

REQUESTS_BETWEEN = 100
"""Accepted before each shutdown(): two of each client."""

ASLEEP = 0.01
"""Seconds after which a loop that has begun waits for clients, and nothing else is to be done."""


def make_server(module_name: str, model: str) -> Any:
    """A server that knows how many requests it took in its present loop."""
    module: Any = importlib.import_module(module_name)

    class Server(getattr(module, CLASSES[model])):  # type: ignore[misc]
        request_queue_size = BACKLOG

        def __init__(self, handler: Any) -> None:
            super().__init__(("127.0.0.1", 0), handler)
            self.taken = 0
            self.has_begun = threading.Event()
            self.is_busy = threading.Event()

        def fileno(self) -> int:
            # Both modules ask for it when the loop begins, and stdlib's shutdown() waits for ever if it comes before.
            self.has_begun.set()
            return int(super().fileno())

        def verify_request(self, *_: Any) -> bool:
            self.taken += 1
            if self.taken == REQUESTS_BETWEEN:
                self.is_busy.set()
            return True

    return Server(type("Handler", (module.BaseRequestHandler,), {"handle": base_connect}))


@contextlib.contextmanager
def clients(load: str, port: int) -> Iterator[None]:
    """Fifty of them, for the length of a block."""
    command = [load, "connect", str(port), str(CLIENTS), str(WITHOUT_END)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as parent:
        try:
            yield
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


def shutdown_once(server: Any, is_talking: bool) -> float:
    """Begin to serve, and stop; return how many seconds shutdown() took."""
    server.taken = 0
    server.has_begun.clear()
    server.is_busy.clear()
    loop = threading.Thread(target=server.serve_forever)
    loop.start()
    if is_talking:
        server.is_busy.wait()
    else:
        server.has_begun.wait()
        # For the loop to fall asleep.
        threading.Event().wait(ASLEEP)
    before = time.perf_counter()
    server.shutdown()
    took = time.perf_counter() - before
    loop.join()
    return took


def measure(module_name: str, model: str, is_talking: bool, times: int, load: str) -> dict[str, Any]:
    """One line of the table."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(make_server(module_name, model))
        if is_talking:
            stack.enter_context(clients(load, server.server_address[1]))
        took = [shutdown_once(server, is_talking) * 1000 for _ in range(times)]
    return {
        "module": module_name,
        "model": model,
        "clients": CLIENTS if is_talking else 0,
        "shutdowns": times,
        "worst_ms": max(took),
        "median_ms": statistics.median(took),
    }


def main() -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", nargs="+", choices=("sockserve", "socketserver"), default=["sockserve"])
    parser.add_argument("--model", nargs="+", choices=CLASSES, default=list(CLASSES))
    parser.add_argument("--times", type=int, default=100, help="of shutdown(), for each line (default 100)")
    parser.add_argument("--limit", type=float, help="milliseconds: exit with status 1 if a worst one is above")
    args = parser.parse_args()
    sys.stderr.write("module        model    clients    worst ms   median ms\n")
    rows = []
    with built_load() as load:
        for module, model, is_talking in itertools.product(args.module, args.model, (True, False)):
            row = measure(module, model, is_talking, args.times, load)
            rows.append(row)
            sys.stderr.write(
                f"{module:13} {model:8} {row['clients']:7} {row['worst_ms']:11.2f} {row['median_ms']:11.3f}\n"
            )
    json.dump(rows, sys.stdout, indent=1)
    return int(args.limit is not None and any(row["worst_ms"] > args.limit for row in rows))


if __name__ == "__main__":
    sys.exit(main())
