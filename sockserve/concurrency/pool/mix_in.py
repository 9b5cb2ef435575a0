"""A few threads that serve everything: ``ThreadPoolMixIn``."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable
from typing import Any

from sockserve.concurrency.cpus import cpu_count
from sockserve.concurrency.dispatch import WaitingForWorkersMixIn
from sockserve.concurrency.pool.coordinator import Coordinator
from sockserve.concurrency.pool.workers import Pool, PoolSettings
from sockserve.concurrency.threads import WorkerThreads
from sockserve.core.base_order import refuse_other_way
from sockserve.core.base_server import BaseServer
from sockserve.core.loop import Loop
from sockserve.core.serving import Accepting, ServedInLoop
from sockserve.seconds import LONGEST_WAIT

__all__ = ["ThreadPoolMixIn"]

_numbers = itertools.count(1)

NO_POOL = {"DispatchingMixIn", "ThreadingMixIn", "ForkingMixIn"}


class ThreadPoolMixIn(WaitingForWorkersMixIn, ServedInLoop):
    """Serves all requests in a few threads. Write it before the server class: ``class S(ThreadPoolMixIn, TCPServer)``.

    The thread that calls ``serve_forever()`` coordinates and serves nothing. Each worker takes its next request itself:
    ``get_request()``, ``verify_request()`` and ``process_request()`` run in the workers, several at once, each time in
    a copy of the context variables of the thread that called ``serve_forever()``. While all workers are busy clients
    wait in the backlog. ``handle_request()`` serves in the thread that calls it.

    Of what one request leaves behind, the next in its thread sees no context variable (decimal's context is one) and no
    time-out, which belongs to a connection. It does see what is in a ``threading.local``, such as a connection to a
    database. What is to end with the request goes into a context variable, or is removed in ``finish()``.

    A connection that a handler keeps with ``keep_open()`` holds no thread while its client is silent. A handler that
    waits for its client in any other way holds its thread: give it a ``timeout``, or ``max_workers`` silent clients
    keep all others waiting. When the loop ends, connections kept in this way end too, as in a drain; other requests
    in progress go on.

    A worker that dies of an exception which ``handle_error()`` did not take is replaced, and the log says so.
    A class that mixes in another way to run handlers as well is refused with a TypeError.
    """

    __module__ = "sockserve"

    # Read when serve_forever() begins.

    max_workers: int | None = None
    """Threads at most. None: as concurrent.futures.ThreadPoolExecutor, 4 more than there are CPUs, 32 at most."""

    min_workers: int = 1
    """Threads at least, from the start. More are started when all are busy."""

    idle_timeout: float | None = 60.0
    """Seconds without work after which a thread above ``min_workers`` ends; None or infinity: never.

    ``serve_forever()`` raises ValueError for a negative number and for NaN."""

    daemon_threads = False
    """Whether the threads are daemons, which neither ``server_close()`` nor the interpreter's end waits for."""

    block_on_close = True
    """Whether ``server_close()`` waits for the threads."""

    def make_thread(self, target: Callable[[], object]) -> threading.Thread:
        """Make the thread that is to call ``target``, and do not start it. Override it to choose name or class."""
        name = f"{type(self).__name__}-{next(_numbers)}"
        return threading.Thread(target=target, name=name, daemon=self.daemon_threads)

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """As that of the server, with the requests served by the pool's threads."""
        if isinstance(self, BaseServer):
            super().serve_forever(poll_interval)
        else:
            # A standard library's class.
            self._serving_run(poll_interval)

    def _serving_make_acceptor(self, loop: Loop, poll_interval: float) -> Accepting:
        return Coordinator(self, loop, poll_interval)

    def _serving_close_workers(self, timeout: float | None) -> bool:
        pool = self._serving_pool
        if pool is not None:
            # The loop may be waiting for the caller.
            pool.stop()
        return self._serving_threads.join(timeout)

    @property
    def _serving_threads(self) -> WorkerThreads:
        return self._serving_state.part(WorkerThreads)

    @property
    def _serving_pool(self) -> Pool | None:
        """That of the present stay in a loop, or of the last."""
        return self._serving_state.find(Pool)

    def _serving_pool_settings(self) -> PoolSettings:
        idle_timeout = math.inf if self.idle_timeout is None else self.idle_timeout
        # Not "< 0", which is false of NaN.
        if not idle_timeout >= 0:
            raise ValueError(f"idle_timeout must be None, or a number of seconds from 0 on, not {idle_timeout!r}")
        most = self.max_workers if self.max_workers is not None else min(32, cpu_count() + 4)
        return PoolSettings(
            name=str(self),
            fewest=max(1, min(self.min_workers, most)),
            most=most,
            idle_timeout=-1 if idle_timeout == math.inf else min(idle_timeout, LONGEST_WAIT),
            make_thread=self.make_thread,
            block_on_close=self.block_on_close,
        )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_other_way(
            cls,
            NO_POOL,
            "a pool's threads serve their requests themselves, and {other} gives each of them to another thread",
        )
        for ours in (BaseServer.process_request, BaseServer.service_actions, BaseServer._handle_request_noblock):  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            # The standard library's own are exchanged for ours, overrides of them stay.
            if _is_of_stdlib(getattr(cls, ours.__name__, None)):
                setattr(cls, ours.__name__, ours)


def _is_of_stdlib(hook: object) -> bool:
    return getattr(hook, "__qualname__", "").startswith("BaseServer.") and hook.__module__ == "socketserver"
