"""``serve()`` in the main thread, as in a program, while a script in another thread is its clients and its operator."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from support.waiting import wait_until, wait_until_blocked

import sockserve

__all__ = ["Operator", "serve_with"]


class Operator:
    """What a script needs: the servers, and the signals."""

    def __init__(self, servers: tuple[Any, ...]) -> None:
        self.servers = servers
        self.server = servers[0]

    def signal(self, signum: int = signal.SIGTERM) -> None:
        """Send this process a signal, as kill(1) does, once its main thread waits for something."""
        wait_until_blocked(os.getpid())
        os.kill(os.getpid(), signum)

    def wait_until_asked(self) -> None:
        """Return when the program has been told to stop."""
        wait_until(lambda: self.server.draining, tell=lambda: "the servers were not told to drain")


def serve_with(
    script: Callable[[Operator], object], handler: Any, *addresses: str, **options: Any
) -> sockserve.Counters:
    """Return what ``serve()`` returned, or raise what it or the script raised; the script has to end it."""
    errors: list[BaseException] = []
    threads: list[threading.Thread] = []
    is_over = threading.Event()

    def run(operator: Operator) -> None:
        try:
            script(operator)
        except BaseException as error:
            errors.append(error)
            for server in operator.servers:
                server.shutdown()
            for _ in range(2):
                if not is_over.is_set():
                    operator.signal()

    def ready(servers: tuple[Any, ...]) -> None:
        threads.append(threading.Thread(target=run, args=(Operator(servers),), name="script"))
        threads[0].start()

    # Outlasts serve(): a signal that comes a moment too late must not end the test run.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        counters = sockserve.serve(handler, *addresses, ready=ready, **options)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
        signal.signal(signal.SIGTERM, before)
        if errors:
            raise errors[0]
    return counters
