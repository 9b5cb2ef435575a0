"""N worker processes, made before the first request comes, and a supervisor that keeps them.

Rule 1. ``serve_forever()`` is what each worker runs, in the server's own way: inline, in threads, in a pool, in
greenlets. The supervisor takes no request.
Rule 2. Sockets belong to places and not to processes: the successor of a dead worker finds the clients that wait there.
Rule 3. The verbs mean all workers in the supervisor's process, and that one worker inside of it.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from sockserve.concurrency.forks import ForkingMixIn
from sockserve.concurrency.prefork.server_service import ServerService, begin_to_listen, close_twins, take_place
from sockserve.concurrency.prefork.signals import handling_signals
from sockserve.concurrency.prefork.supervisor import Supervisor
from sockserve.concurrency.prefork.worker_handle import leave_within
from sockserve.concurrency.prefork.worker_link import Link
from sockserve.concurrency.prefork.worker_main import live
from sockserve.core.base_order import refuse_wrong_order
from sockserve.core.deferral import Deferral
from sockserve.core.lifecycle import Drained, Stay
from sockserve.core.loop import Loop
from sockserve.core.one_shot import OneShot
from sockserve.core.preparation_settings import check_settings
from sockserve.core.serving import Served, stay_begins, stay_ends
from sockserve.errors import AlreadyServingError, ServerClosedError
from sockserve.net import blocking_mode
from sockserve.net.listen import listens
from sockserve.seconds import check_times, limit_of

__all__ = ["PreForkMixIn"]

FIRST_IDLE_POLL = 0.001
IDLE_POLL = 0.05
"""Seconds between two looks at what the workers have in progress, while a thread waits for all of it: at first, for
workers that have only to pause, and at last."""


class SupervisorStay(Stay):
    """The supervisor's stay in a loop, as a server's ``Lifecycle`` knows it."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.stop_requested = False
        self.ended = OneShot()

    def has_paused(self) -> bool:
        """The supervisor takes no request."""
        return True

    def listener_closes(self) -> None:
        """Without its listener it stops."""
        self.stop_requested = True
        self.loop.wake()

    def forked(self) -> None:
        """It is the parent's."""


class PreForkMixIn(Served):
    """Serves in worker processes. Write it first: ``class S(PreForkMixIn, ThreadPoolMixIn, TCPServer)``.

    ``serve_forever()`` forks the workers and supervises them until ``shutdown()``: one that ends is replaced, one whose
    loop stands still is killed and replaced. It raises CrashLoopError when workers end as soon as they begin, again and
    again. In the main thread, these signals get a meaning for that time, unless the program has given them one:

    - SIGTERM: drain and return; a second one cuts
    - SIGHUP: replace the workers one after the other, each new one being ready before the old one drains. A client
      of the old one keeps its connection, for at most ``drain_timeout`` seconds, then it ends between two requests
    - SIGTTIN, SIGTTOU: one worker more, one less

    Ctrl-C is for the supervisor alone, and a KeyboardInterrupt as always; then ``server_close()`` ends the workers.

    All hooks of a request's life run in the workers, each of which has its own copy of the server and of its observers.
    ``active_requests`` is what this process serves: nothing, in the supervisor. ``handle_request()`` makes no worker.

    A class that forks for each request as well is refused with a TypeError.
    """

    __module__ = "sockserve"

    processes: int | None = None
    """How many workers; None: as many as there are CPUs that this process may use. Read by ``serve_forever()``."""

    max_requests: int | None = None
    """After about how many requests a worker is replaced, against memory that grows; None: never."""

    max_requests_jitter: int | None = None
    """How many more at random, so that not all are replaced at once; None: up to a tenth."""

    worker_timeout: float | None = 60.0
    """Seconds after which a worker whose loop has not turned is killed, with its threads' stacks in the log; None:
    never. An inline handler keeps the loop from turning, so that this bounds its request: its input ends then, and a
    moment later its connection is cut; the worker is killed only if that does not help. Time in which the supervisor
    itself did not run does not count."""

    drain_timeout: float | None = 30.0
    """Seconds that a worker which is to end may take for its requests, before they are cut; None: without limit."""

    worker_id: int | None = None
    """In a worker the number of its place, from 0, which its successor has too; None in the supervisor."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_wrong_order(cls)
        _refuse_senseless(cls)

    _serving_can_share_loop = False

    def setup_worker(self) -> None:
        """Called in each worker before it serves; what it raises ends that worker. Does nothing here."""

    # serving

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Keep workers that serve until ``shutdown()``, and return when none of them accepts any more.

        Their requests in progress go on: ``server_close()`` waits for them. ``poll_interval`` is for the workers.
        Raises CrashLoopError, ServerClosedError, AlreadyServingError, and what a signal handler raises.
        """
        if self.worker_id is not None:
            super().serve_forever(poll_interval)
            return
        limit_of(poll_interval, "poll_interval")
        check_times(self)
        check_settings(self)
        if self.worker_timeout is not None and self.worker_timeout <= 0:
            raise ValueError(f"worker_timeout must be positive, or None: {self.worker_timeout!r}")
        lifecycle = self._serving_state.lifecycle
        supervisor = self._serving_supervisor
        with Deferral() as signals, Loop() as loop:
            loop.thread = threading.get_ident()
            stay = SupervisorStay(loop)
            if not lifecycle.begin(stay):
                raise AlreadyServingError(f"{self} is already being served by another serve_forever()")
            stay_begins(self)
            try:
                if self.fileno() < 0 and not stay.stop_requested:
                    raise ServerClosedError(f"{self} is closed: it cannot serve before it gets a new socket")
                self._serving_poll_interval = poll_interval
                self._serving_take_blocking_mode()
                with handling_signals(supervisor):
                    signals.lifted(
                        lambda: supervisor.run(loop, lambda: stay.stop_requested, lambda: lifecycle.suspended)
                    )
            finally:
                loop.close()
                self._serving_return_blocking_mode()
                lifecycle.end()
                stay_ends(self)
                stay.ended.set()

    def attach(self, loop: Loop, poll_interval: float = 0.5) -> None:
        """Not here: raises TypeError, because one loop cannot be run by several processes."""
        raise TypeError(f"{type(self).__name__} runs loops of its own, in worker processes: call serve_forever()")

    def wait_until_serving(self, timeout: float | None = None) -> bool:
        """Wait until a worker is ready, at most ``timeout`` seconds; say whether one is."""
        return self._serving_state.lifecycle.serving.wait(timeout)

    @property
    def _serving_supervisor(self) -> Supervisor:
        state = self._serving_state
        supervisor = state.find(Supervisor)
        if supervisor is None or supervisor.pid != os.getpid():
            supervisor = Supervisor(self, ServerService(self), self)
            state.put(supervisor)
        return supervisor

    # All the time, not only while a worker has it: the description is the same for all of them.

    def _serving_take_blocking_mode(self) -> None:
        listener: Any = getattr(self, "socket", None)
        if listens(listener) and self._serving_state.find(_LentListener) is None:
            blocking_mode.lend(listener)
            self._serving_state.put(_LentListener(listener))

    def _serving_return_blocking_mode(self) -> None:
        if not self._serving_supervisor.workers:
            lent = self._serving_state.pop(_LentListener)
            if lent is not None:
                blocking_mode.give_back(lent.listener)

    # stopping

    def _serving_prefork_shutdown(self, timeout: float | None = None) -> None:
        """Stop ``serve_forever()``; when this returns no worker accepts any more. In a worker: end this worker.

        Otherwise as ``BaseServer.shutdown()``.
        """
        if self.worker_id is not None:
            super().shutdown()  # type: ignore[misc]
        else:
            self._serving_state.lifecycle.stop(timeout)

    if TYPE_CHECKING:
        # As in BaseServer.
        shutdown: Any
    else:
        shutdown = _serving_prefork_shutdown

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Wait until no worker has a request in progress, at most ``timeout`` seconds; say whether so.

        After ``suspend()`` this includes a request that was just being accepted, in whichever worker: when it returns
        true no worker accepts any until ``resume()``.
        """
        if self.worker_id is not None:
            return bool(super().wait_idle(timeout))  # type: ignore[misc]
        limit = limit_of(timeout, "timeout")
        deadline = None if limit is None else time.monotonic() + limit
        lifecycle, supervisor = self._serving_state.lifecycle, self._serving_supervisor
        never, pause = OneShot(), FIRST_IDLE_POLL
        while True:
            if self._serving_end_elsewhere() is None:
                supervisor.pauses.tell(lambda: lifecycle.suspended)
            # In this order: a worker that has paused takes nothing more.
            if (not lifecycle.suspended or supervisor.pauses.has_come()) and supervisor.is_idle():
                return True
            remaining = pause if deadline is None else deadline - time.monotonic()
            if remaining <= 0:
                return False
            never.wait(min(pause, remaining))
            pause = min(2 * pause, IDLE_POLL)

    def drain(self, timeout: float | None = None) -> Drained:
        """Let all workers end: their requests may end too, those that have not after ``timeout`` seconds are cut.

        There are no workers then until ``resume()`` or the next ``serve_forever()``. Otherwise as
        ``BaseServer.drain()``.
        """
        if self.worker_id is not None:
            return super().drain(timeout)  # type: ignore[misc, no-any-return]
        timeout = limit_of(timeout, "timeout")
        lifecycle = self._serving_state.lifecycle
        lifecycle.draining = True
        if not lifecycle.suspended:
            lifecycle.suspended = lifecycle.suspended_by_drain = True
        return Drained(*self._serving_supervisor.drain(timeout, self._serving_end_elsewhere()))

    def _serving_end_elsewhere(self) -> OneShot | None:
        """The end of the ``serve_forever()`` of another thread, if there is one, so that this one can wait for it."""
        stay = self._serving_state.lifecycle.acceptor
        return None if stay is None or stay.loop.thread in (None, threading.get_ident()) else stay.ended

    def server_close(self) -> None:
        """Close the server and end its workers; after ``drain_timeout`` seconds their connections are cut.

        An exception that ends the wait, such as KeyboardInterrupt, kills them and propagates.
        """
        supervisor = self._serving_state.find(Supervisor)
        if self.worker_id is not None or supervisor is None or supervisor.pid != os.getpid():
            super().server_close()
            return
        stay = self._serving_state.lifecycle.acceptor
        if stay is not None:
            stay.listener_closes()
        supervisor.leave_ports()
        self._serving_close_ports()
        ends_elsewhere = self._serving_end_elsewhere()
        if ends_elsewhere is not None:
            ends_elsewhere.wait()
        supervisor.end(leave_within(self.drain_timeout))
        self._serving_return_blocking_mode()

    def _serving_close_ports(self) -> None:
        super().server_close()
        close_twins(self)

    # in a worker

    _serving_link: Link | None = None

    def _serving_work_as_worker(self, link: Link) -> None:
        self.worker_id = link.orders.worker_id
        self._serving_link = link
        # The supervisor has the clock.
        self.drain_timeout = None
        serve_forever = super().serve_forever

        def serve() -> None:
            self._serving_state.when_begun = link.beat_in
            self.setup_worker()
            begin_to_listen(self)
            serve_forever(self._serving_poll_interval)

        # In this order: the listeners of all places are part of what live() forgets.
        shares_listener = take_place(self)
        live(link, [self], serve, shares_listener=shares_listener)


class _LentListener(NamedTuple):
    """A listener whose blocking mode the supervisor has changed, and gives back."""

    listener: Any


def _refuse_senseless(cls: type) -> None:
    """Raise TypeError for a combination of mix-ins that makes no sense, and say why."""
    for base in cls.__mro__:
        if base is ForkingMixIn or (base.__module__, base.__name__) == ("socketserver", "ForkingMixIn"):
            raise TypeError(
                f"{cls.__name__}: a fork per request inside of processes that were forked before makes no sense; "
                "take PreForkMixIn with a model for its workers, inline or threads, or ForkingMixIn alone"
            )
    for base in cls.__mro__[: cls.__mro__.index(PreForkMixIn)]:
        if "serve_forever" in vars(base) and not issubclass(base, PreForkMixIn):
            raise TypeError(
                f"{cls.__name__}: {base.__name__} would run its loop in the supervisor, and its threads before the "
                f"fork; write PreForkMixIn before it"
            )
