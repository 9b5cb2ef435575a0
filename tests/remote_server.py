"""The process that ``remote.RemoteServer`` starts: a server in the main thread, and a thread that takes commands."""

# ruff: noqa: T201 - it talks through its standard output

from __future__ import annotations

import gc
import json
import logging
import os
import re
import signal
import sys
import threading
from typing import Any, NamedTuple

from under_test import LIMIT

import sockserve
from sockserve.ready_made import server_class
from sockserve.testing import leak_guard
from sockserve.testing.leaks import child_processes

__all__ = ["LINE_LIMIT", "State", "serve"]

LINE_LIMIT = 65536
"""Bytes of one line that the handler takes at once: as much as http.server does."""

STORM_INTERVAL = 0.001
"""Seconds between two signals."""

LOOK_AGAIN = 0.01
"""Seconds that handle_request() waits, in a loop of its own."""


class State(NamedTuple):
    """What the server's process holds, and what it has done."""

    threads: int
    descriptors: int
    children: int
    objects: int
    """Those that the garbage collector knows of."""
    resident: int
    """Bytes of memory in use."""
    peak: int
    """The most that ``resident`` ever was."""
    accepted: int
    active: int
    handled: int
    refused: int
    failed: int
    signals: int
    """How many signals a handler in Python has seen."""


class EchoLines(sockserve.StreamRequestHandler):
    """Sends back each line, in pieces of the limit if it is longer; N times if it begins with the number N."""

    def handle(self) -> None:
        """Until end-of-file."""
        while line := self.rfile.readline(LINE_LIMIT):
            first, _, _ = line.partition(b" ")
            self.wfile.write(line * int(first) if first.isdigit() else line)


class Storm:
    """A timer whose signals interrupt whatever the main thread is about to do."""

    def __init__(self) -> None:
        self.signals = 0

    def begin(self) -> None:
        """In this process, and by itself not in its children."""
        signal.signal(signal.SIGALRM, self._count)
        signal.setitimer(signal.ITIMER_REAL, STORM_INTERVAL, STORM_INTERVAL)

    def end(self) -> None:
        """No more signals."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _count(self, *_: object) -> None:
        self.signals += 1


def serve(
    model: str,
    *,
    timeout: float | None = None,
    refuse: bool = False,
    storm: bool = False,
    own_loop: bool = False,
    drain_timeout: float = LIMIT,
) -> None:
    """Serve until the command "stop"; exit with an error if anything is left behind.

    ``timeout`` is the handler's, ``refuse`` what ``verify_request`` does, ``own_loop`` one over ``handle_request``;
    ``drain_timeout`` is how long whoever is still served in the end may take.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    timer = Storm()
    is_stopped = threading.Event()

    class Handler(EchoLines):
        def setup(self) -> None:
            super().setup()
            if storm and model == "fork":
                timer.begin()

    class Server(server_class(model, "tcp")):  # type: ignore[misc]
        timeout = LOOK_AGAIN
        # A pool has all its threads from the start.
        min_workers = max_workers = 6

        def verify_request(self, *_: Any) -> bool:
            return not refuse

        def serve_single_requests(self) -> None:
            while not is_stopped.is_set():
                self.handle_request()

    Handler.timeout = timeout
    with leak_guard():
        server = Server(("127.0.0.1", 0), Handler)
        counters = sockserve.Counters()
        server.add_observer(counters)

        def take_commands() -> None:
            if not own_loop:
                # The loop's own descriptors are part of what the server holds at rest.
                server.wait_until_serving()
            for command in map(str.strip, sys.stdin):
                if command == "stop":
                    break
                print(json.dumps(state(counters, timer)), flush=True)
            is_stopped.set()
            if not own_loop:
                server.drain(drain_timeout)
                server.shutdown()

        commands = threading.Thread(target=take_commands)
        commands.start()
        print(server.server_address[1], flush=True)
        if storm:
            timer.begin()
        if own_loop:
            server.serve_single_requests()
        else:
            server.serve_forever()
        server.drain_timeout = drain_timeout
        server.server_close()
        commands.join()
        timer.end()
    print(json.dumps(state(counters, timer)), flush=True)


def state(counters: sockserve.Counters, timer: Storm) -> State:
    """Tell what the process holds."""
    gc.collect()
    with open("/proc/self/status") as status:
        # Not getrusage(2): what it knows begins before the exec(3) that started this program.
        memory = {name: int(value.split()[0]) * 1024 for name, value in re.findall(r"(Vm\w+):(.*)", status.read())}
    return State(
        threads=threading.active_count(),
        descriptors=len(os.listdir("/proc/self/fd")),
        children=len(child_processes()),
        objects=len(gc.get_objects()),
        resident=memory["VmRSS"],
        peak=memory["VmHWM"],
        accepted=counters.accepted,
        active=counters.active,
        handled=counters.handled,
        refused=counters.refused,
        failed=counters.failed,
        signals=timer.signals,
    )
