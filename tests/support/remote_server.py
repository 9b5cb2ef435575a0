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

from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.concurrency.prefork.protocol import ACCEPTED, ACTIVE, FAILED, HANDLED, REFUSED
from sockserve.net import lingering
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

PREFORK = "prefork-"
"""What a model begins with that is to run in worker processes."""

WORKERS = 2
"""Of these."""

THREADS = 6
"""Of a pool, which has all of them from the start."""


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
    linger_seconds: float | None = None,
) -> None:
    """Serve until the command "stop"; exit with an error if anything is left behind.

    ``model`` is one of those that ``serve()`` knows, or as "prefork-pool" one in worker processes: then what is told is
    of all of them together. ``timeout`` is of the handler, ``refuse`` what ``verify_request`` does, ``own_loop`` one
    over ``handle_request``; ``drain_timeout`` is how long a request that is in progress in the end may take,
    ``linger_seconds`` what replaces the two seconds in which a client may still read its answer then.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    if linger_seconds is not None:
        lingering.LINGER_SECONDS = linger_seconds
    timer = Storm()
    is_stopped = threading.Event()

    class Handler(EchoLines):
        def setup(self) -> None:
            super().setup()
            if storm and model == "fork":
                timer.begin()

    is_preforked = model.startswith(PREFORK)
    bases = (server_class(model.removeprefix(PREFORK), "tcp"),)

    class Server(*((sockserve.PreForkMixIn, *bases) if is_preforked else bases)):  # type: ignore[misc]
        timeout = LOOK_AGAIN
        min_workers = max_workers = THREADS
        processes = WORKERS

        def setup_worker(self) -> None:
            if storm:
                timer.begin()

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

        def tell() -> State:
            return state_of_all(server, timer) if is_preforked else state(counters, timer)

        peaks: list[int] = []

        def take_commands() -> None:
            if not own_loop:
                # The loop's own descriptors are part of what the server holds at rest.
                server.wait_until_serving()
            if is_preforked:
                wait_until(lambda: all_are_there(server))
            for command in map(str.strip, sys.stdin):
                if command == "stop":
                    break
                print(json.dumps(tell()), flush=True)
            peaks.append(tell().peak)
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
    # Worker processes took theirs with them.
    last = tell()
    print(json.dumps(last._replace(peak=max(last.peak, *peaks))), flush=True)


def state(counters: sockserve.Counters, timer: Storm) -> State:
    """Tell what the process holds."""
    threads, descriptors, children = threading.active_count(), len(os.listdir("/proc/self/fd")), len(child_processes())
    # Only now: if by these numbers all requests are over, nothing of them is counted below.
    gc.collect()
    numbers = status_of(os.getpid())
    return State(
        threads=threads,
        descriptors=descriptors,
        children=children,
        objects=len(gc.get_objects()),
        resident=numbers["VmRSS"] * 1024,
        peak=numbers["VmHWM"] * 1024,
        accepted=counters.accepted,
        active=counters.active,
        handled=counters.handled,
        refused=counters.refused,
        failed=counters.failed,
        signals=timer.signals,
    )


def status_of(pid: int) -> dict[str, int]:
    """The numbers that proc(5) tells of a process; its memory is counted in KiB."""
    # Not getrusage(2): what it knows begins before the exec(3) that started this program.
    with open(f"/proc/{pid}/status") as status:
        return {name: int(value) for name, value in re.findall(r"^(\w+):\s*(\d+)", status.read(), re.MULTILINE)}


def all_are_there(server: Any) -> bool:
    """Say whether all worker processes serve with all their threads."""
    pids = child_processes()
    # The one that runs the loop, the one that listens to the supervisor, and those of a pool.
    threads = 2 + (THREADS if isinstance(server, sockserve.ThreadPoolMixIn) else 0)
    return len(pids) == WORKERS and all(status_of(pid).get("Threads") == threads for pid in pids)


def state_of_all(server: Any, timer: Storm) -> State:
    """Tell what a supervisor and its workers hold, and what they have done. Objects are the supervisor's alone."""
    supervisor = server._serving_supervisor
    ended = supervisor.counters
    pages = [worker.page.numbers for worker in supervisor.workers.values()]
    own = state(ended, timer)
    statuses = [status_of(pid) for pid in child_processes()]
    return own._replace(
        threads=own.threads + sum(status["Threads"] for status in statuses),
        descriptors=own.descriptors + sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in child_processes()),
        resident=own.resident + sum(status["VmRSS"] for status in statuses) * 1024,
        peak=own.peak + sum(status["VmHWM"] for status in statuses) * 1024,
        accepted=ended.accepted + sum(page[ACCEPTED] for page in pages),
        active=sum(page[ACTIVE] for page in pages),
        handled=ended.handled + sum(page[HANDLED] for page in pages),
        refused=ended.refused + sum(page[REFUSED] for page in pages),
        failed=ended.failed + sum(page[FAILED] for page in pages),
    )
