"""A child process for every request.

Rule 1. Only our own children are waited for, by their process ids: another one's exit status is its parent's.
Rule 2. The loop never blocks for a child: at ``max_children`` it does not accept, and the exit of one wakes it.
Rule 3. A child leaves through ``os._exit``: nothing of the parent's runs twice but the flush of what the child wrote.
"""

# ruff: noqa: D102 - a dispatcher's methods are explained in dispatch.Dispatcher

from __future__ import annotations

import functools
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from sockserve.concurrency.children import (
    DRAIN_AGAIN,
    POLL_WITHOUT_PIDFD,
    Child,
    fork,
    ignore,
    leave_process,
)
from sockserve.concurrency.dispatch import Dispatcher, DispatchingMixIn
from sockserve.core.active_requests import LiveRequest
from sockserve.core.deferral import Deferral
from sockserve.core.events import Events
from sockserve.core.forked import tell_when_forked
from sockserve.core.hook_marks import needs_no_poll
from sockserve.core.loop import Loop
from sockserve.core.one_shot import OneShot
from sockserve.core.preparation_settings import check_files
from sockserve.core.preparing import sees_drain
from sockserve.core.replaced import reach
from sockserve.core.request_life import forget
from sockserve.core.request_states import Outcome
from sockserve.core.sweeping import sweep_in_child
from sockserve.core.taken_signals import is_taken, raw_signal, take, take_wakeup
from sockserve.log import log
from sockserve.net.closing import end_input
from sockserve.net.lingering import Farewells
from sockserve.seconds import LONGEST_WAIT

__all__ = ["ForkDispatcher", "ForkingMixIn"]


UNHEARD = Events(())

_OUTCOME: dict[int, Outcome] = {0: "handled", 1: "failed", 120: "refused", 121: "left"}
"""What became of a child's request, by its exit status: 0 and 1 as in ``socketserver``, the others out of the way of
what a handler's own ``os._exit()`` may mean."""

_CUT = {122: "first_byte", 123: "idle", 124: "min_rate", 125: "stall"}
"""Why it was cut, likewise."""

EXIT_STATUS: dict[str, int] = {outcome: status for status, outcome in (_OUTCOME | _CUT).items()}


class ForkDispatcher(Dispatcher):
    """Runs each request in a child process of its own."""

    def __init__(self, max_children: Callable[[], int]) -> None:
        self._max_children = max_children
        self.children: dict[int, Child] = {}
        self.loop: Loop | None = None
        tell_when_forked(self)

    def forked(self) -> None:
        """In a forked child: its parent's children are not its own."""
        for child in self.children.values():
            child.abandon()
        self.children = {}

    def dispatch(self, serve: Callable[[], str], release: Callable[[], None]) -> Child:
        def work(blocked: set[int]) -> str:
            raw_signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            return serve()

        return self.fork(work, release, lambda _child: None, lambda _status: None)

    def fork(
        self,
        serve: Callable[[set[int]], str],
        release: Callable[[], None],
        began: Callable[[Child], None],
        ended: Callable[[int], None],
    ) -> Child:
        """As ``dispatch()``; ``began`` is told of the child before ``release()``, ``ended`` its exit status.

        That is the negative number of the signal if one killed it. ``serve`` gets the signals that were blocked before
        the fork, and has to unblock the others.
        """
        # Loops that ask neither: a standard library's, or one over handle_request().
        if self.loop is None:
            self.reap()
        while self.full():
            self.wait_for_one(None)
        is_alone = threading.active_count() == 1

        def in_parent(pid: int) -> Child:
            child = self.adopt(pid, ended)
            began(child)
            # Before signal handlers run: the parent's copy would keep the connection open.
            release()
            return child

        return fork(functools.partial(_be_child, serve, is_alone), in_parent)

    def adopt(self, pid: int, ended: Callable[[int], None]) -> Child:
        """Reap this child of the process as well; ``ended`` as for ``fork()``."""
        child = self.children[pid] = Child(pid, ended)
        self._watch(child)
        return child

    def reap(self) -> None:
        for child in list(self.children.values()):
            # The end of the others wakes the loop.
            if self.loop is None or child.pidfd is None:
                self._reap_one(child)
            child.remind()

    def reap_all(self) -> None:
        """As ``reap()``, also those whose end will wake the loop."""
        for child in list(self.children.values()):
            self._reap_one(child)

    def _reap_one(self, child: Child) -> None:
        # Asked first: to defer takes a system call or two for each signal that has a handler, and this is asked in each
        # turn. A signal handler that raises here has lost nothing.
        if not child.has_ended():
            return
        # Else what a signal handler raises could leave a child told and not forgotten.
        with Deferral():
            child.reap()
            if child.is_over:
                loop = self.loop
                child.close(None if loop is None else loop.unwatch)
                self.children.pop(child.pid, None)

    def full(self) -> bool:
        return len(self.children) >= self._max_children()

    def close(self, timeout: float | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        self.reap_all()
        while self.children:
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                return False
            self.wait_for_one(remaining)
        return True

    def wait_for_one(self, timeout: float | None) -> None:
        """Wait until a child has ended, or one has to be looked after, at most ``timeout`` seconds; reap it."""
        poll = select.poll()
        for child in self.children.values():
            if child.pidfd is not None:
                poll.register(child.pidfd, select.POLLIN)
        limit = min((each for each in (timeout, self.must_poll()) if each is not None), default=None)
        poll.poll(None if limit is None else min(limit, LONGEST_WAIT) * 1000)
        self.reap_all()
        for child in self.children.values():
            child.remind()

    def attach(self, loop: Loop) -> None:
        self.loop = loop
        for child in list(self.children.values()):
            self._watch(child)

    def detach(self) -> None:
        if self.loop is not None:
            for child in self.children.values():
                if child.pidfd is not None:
                    self.loop.unwatch(child.pidfd)
            self.loop = None

    def _watch(self, child: Child) -> None:
        if self.loop is not None and child.pidfd is not None:
            try:
                self.loop.watch(child.pidfd, functools.partial(self._reap_one, child))
            except OSError:
                # ENOSPC or ENOMEM of epoll_ctl(2): it is looked after as where there are no such descriptors.
                child.close(self.loop.unwatch)

    def must_poll(self) -> float | None:
        children = list(self.children.values())
        if any(child.pidfd is None for child in children):
            return POLL_WITHOUT_PIDFD
        return DRAIN_AGAIN if any(child.drains for child in children) else None


class ForkingMixIn(DispatchingMixIn):
    """Serves each request in a child process. Write it before the server class: ``class S(ForkingMixIn, TCPServer)``.

    In the child a stream server's listening socket is closed, so that the port is free when the parent closes it, and
    SIGTERM means what ``drain_request()`` does.
    """

    __module__ = "sockserve"

    timeout: float | None = 300
    """Kept for programs that read it; ``handle_request()`` obeys a ``timeout`` that a subclass or instance sets."""

    max_children = 40
    """How many children serve at once; while so many do, no request is accepted."""

    block_on_close = True
    """Whether ``server_close()`` waits for the children."""

    active_children: set[int] | None = None
    """The process ids of the children that serve now; None before the first."""

    def collect_children(self, *, blocking: bool = False) -> None:
        """Reap the children that have ended; with ``blocking`` wait for all."""
        self._serving_adopt_children()
        if blocking:
            self._serving_dispatcher.close(None)
        else:
            self._serving_dispatcher.reap_all()

    def _serving_adopt_children(self) -> None:
        # Those that a subclass forked by itself.
        dispatcher = self._serving_dispatcher
        for pid in set(self.active_children or ()) - set(dispatcher.children):
            dispatcher.adopt(pid, functools.partial(self._serving_adopted_ended, pid))

    def _serving_adopted_ended(self, pid: int, _status: int) -> None:
        if self.active_children is not None:
            self.active_children.discard(pid)

    @needs_no_poll
    def service_actions(self) -> None:
        """Reap the children that have ended."""
        super().service_actions()
        self.collect_children()

    def handle_timeout(self) -> Any:
        """Reap the children that have ended."""
        self.collect_children()
        return super().handle_timeout()

    def make_dispatcher(self) -> Dispatcher:
        """One that forks."""
        return ForkDispatcher(lambda: self.max_children)

    def _serving_dispatch(self, live: LiveRequest) -> None:
        check_files(self)
        release = functools.partial(self._serving_release, live)
        # A terminal sends these to the whole group, and the parent tells its children what they mean.
        for_parent = [signum for signum in (signal.SIGINT, signal.SIGHUP) if is_taken(signum)]
        work = functools.partial(self._serving_work_in_child, live, for_parent)
        began = functools.partial(self._serving_child_began, live)
        self._serving_dispatcher.fork(work, release, began, functools.partial(self._serving_child_ended, live))

    def _serving_child_began(self, live: LiveRequest, child: Child) -> None:
        # What is raised here from now on, a signal handler's exception for one, is not the end of the request.
        live.claim("worker")
        # Before this process closes its copy of the connection: a drain acts on the one or on the other.
        live.process = child
        if self.active_children is None:
            self.active_children = set()
        self.active_children.add(child.pid)
        if self._serving_state.lifecycle.draining:
            # Since the fork: a drain() of this moment may have seen no child yet.
            child.drain()

    def _serving_work_in_child(self, live: LiveRequest, for_parent: Sequence[int], blocked: set[int]) -> str:
        if getattr(self, "socket_type", None) != socket.SOCK_DGRAM:
            # First of all: a copy of the listener would keep the port open after the parent has closed it.
            listener = getattr(self, "socket", None)
            if listener is not None:
                listener.close()
        loop = self._serving_dispatcher.loop
        if loop is not None:
            # Other servers' listeners would stay open as well.
            loop.abandon(keep=self._serving_state.acceptor)
        live.table.keep_only(live)
        sweep_in_child(self)
        lingering = self._serving_state.lingering
        lingering.abandon()
        if (farewells := self._serving_state.find(Farewells)) is not None:
            farewells.abandon()
        # The parent's observers hear it in the parent; here a lock of theirs may be held by a thread that is not here.
        live.events = UNHEARD
        # One of the program's would hear in the parent what this child is told.
        take_wakeup(-1)
        for signum in for_parent:
            take(signum, ignore)
        drain = functools.partial(self._serving_drain_in_child, live)
        take(signal.SIGTERM, drain, was_blocked=signal.SIGTERM in blocked)
        raw_signal.pthread_sigmask(signal.SIG_SETMASK, blocked - {signal.SIGTERM})
        try:
            outcome = self._serving_work(live)
            return live.exceeded if outcome == "cut" and live.exceeded is not None else outcome
        finally:
            # There is no loop here that it could hold up.
            lingering.finish()

    def _serving_drain_in_child(self, live: LiveRequest, signum: int) -> None:
        self._serving_state.lifecycle.draining = True
        if not sees_drain(self, live):
            reach(live, end_input)

    def _serving_wait_for_workers(self) -> None:
        self._serving_adopt_children()
        if self.block_on_close:
            super()._serving_wait_for_workers()
        else:
            self.collect_children()

    def _serving_child_ended(self, live: LiveRequest, status: int) -> None:
        if self.active_children is not None and isinstance(live.process, Child):
            self.active_children.discard(live.process.pid)
        if live.state == "shutdown":
            # An exception after the fork, a signal handler's for one, was the request's end here.
            return
        if live.exceeded is None:
            live.exceeded = _CUT.get(status)
        live.outcome = _OUTCOME.get(status, "failed") if live.exceeded is None else "cut"
        if status < 0 and live.exceeded is None:
            log.warning("%s: the child that served %s was killed by signal %d", self, live.client_address, -status)
        if live.outcome == "handled":
            if live.events.handle:
                Events.emit(live.events.handle, self, live)
        elif live.events.error:
            error = ChildProcessError(f"the child ended with status {status}: {live.outcome}")
            Events.emit(live.events.error, self, live, error)
        forget(self, live)

    def _serving_wait_for_change(self, change: OneShot, timeout: float | None) -> bool:
        dispatcher = self._serving_dispatcher
        loop = dispatcher.loop
        if not dispatcher.children or (loop is not None and loop.thread not in (None, threading.get_ident())):
            if loop is not None:
                # It has to ask anew how long it may wait: children may have been told to drain.
                loop.wake()
            return change.wait(timeout)
        # No other thread reaps, so no other thread would make the change.
        dispatcher.wait_for_one(timeout)
        return change.wait(0) or timeout is None or timeout > 0

    def _serving_before_handle_request(self) -> None:
        self.collect_children()

    def _serving_request_timeout(self) -> float | None:
        if "timeout" not in vars(self):
            owner = next(base for base in type(self).__mro__ if "timeout" in vars(base))
            if owner is ForkingMixIn:
                return super().timeout
        return self.timeout


def _be_child(serve: Callable[[set[int]], str], is_alone: bool, blocked: set[int]) -> NoReturn:
    status = EXIT_STATUS["failed"]
    try:
        status = EXIT_STATUS[serve(blocked)]
    except (SystemExit, KeyboardInterrupt):
        # A terminal sends Ctrl-C to the children as well; the parent says what is to be said.
        pass
    except BaseException:
        # The request's own errors were reported by now; this is one in reporting them.
        log.exception("a child process failed")
    finally:
        leave_process(status, is_alone=is_alone)
