"""How servers in one loop end: asked to stop, their requests drained, the last of them cut.

Rule 1. A signal handler touches nothing that the code which it interrupts may hold: no lock, no log, no new thread.
It sets flags and wakes the loop, and that does the rest.
Rule 2. An inline handler keeps the loop from running: for its request the signal handler itself does what is to do.
Rule 3. Nothing of this happens in a forked child: its parent tells it what to do, and a terminal's Ctrl-C does not.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

from sockserve.concurrency.dispatch import Dispatcher, DispatchingMixIn
from sockserve.core.active_requests import ActiveRequests, LiveRequest
from sockserve.core.cutting import cut_others, drain_one
from sockserve.core.events import Observer
from sockserve.core.lifecycle import CUT_GRACE, CutShort
from sockserve.core.loop import Loop, Source
from sockserve.core.one_shot import OneShot
from sockserve.core.replaced import reach
from sockserve.core.server import TCPServer, UDPServer
from sockserve.core.serving import serving_of, table_of
from sockserve.log import counted, log, progress
from sockserve.net.closing import cut
from sockserve.run.opening import AnyServer
from sockserve.run.states import State, States

__all__ = ["PROGRESS", "Draining", "Stop", "time_limit"]

PROGRESS = 5.0
"""Seconds after which the log says again what a drain waits for, so that it does not look like a hang."""


class Stop(Observer):
    """Stops servers that one loop hosts. It has to be among their observers."""

    def __init__(
        self, servers: Sequence[AnyServer], loop: Loop, states: States | None = None, lame_duck: float | None = 0.0
    ) -> None:
        """``lame_duck``: for how many seconds SIGTERM asks only later; None: until the next signal."""
        self.servers = servers
        self._states = states or States()
        self.lame_duck = lame_duck
        self.is_lame = False
        """Whether it will be asked when that time is over."""
        self.heard = OneShot()
        """Set once a signal came, or all have been asked."""
        self.loop = loop
        self.signal: signal.Signals | None = None
        """What asked; None: no signal did."""
        self.is_asked = False
        """Whether the servers are being told to stop, or have been."""
        self.asked = OneShot()
        """Set once they have been."""
        self.is_to_cut = False
        self._pid = os.getpid()

    def on_signal(self, signum: signal.Signals) -> None:
        """The first signal asks, any other cuts; one that comes while the first asks cuts after that.

        With a lame duck's time SIGTERM as the first one does not count; it asks later.
        """
        if os.getpid() != self._pid:
            return
        if signum == signal.SIGTERM and self.signal is None and not self.is_lame and self.lame_duck != 0:
            self._be_lame()
            return
        if self.signal is not None:
            self.is_to_cut = True
            if self.asked.is_set():
                self.cut()
            return
        self.signal = signum
        self.ask()
        if self.is_to_cut:
            self.cut()

    def _be_lame(self) -> None:
        self.is_lame = True
        for server in self.servers:
            serving_of(server).lifecycle.is_lame = True
        # Not here: see rule 1.
        self.loop.call_soon(self._tell_of_lameness)
        self.loop.wake()
        self.heard.set()

    def _tell_of_lameness(self) -> None:
        log.info("on SIGTERM it serves on for %s, as a lame duck", self._lame_time())
        self._states.change(State.LAME)
        if self.lame_duck is not None:
            self.loop.call_later(self.lame_duck, self.lameness_is_over)

    def _lame_time(self) -> str:
        return "any time" if self.lame_duck is None else f"{self.lame_duck:g} s"

    def lameness_is_over(self) -> None:
        """What SIGTERM has asked for is due now. From any thread; idempotent."""
        if self.signal is None:
            self.signal = signal.SIGTERM
            self.ask()

    def ask(self) -> None:
        """Accept no more, free the ports, end the input of all requests. Safe in a signal handler, idempotent."""
        self.is_asked = True
        for server in self.servers:
            lifecycle = serving_of(server).lifecycle
            lifecycle.draining = True
            lifecycle.stop_requested = True
            if not isinstance(server, UDPServer):
                # Past the mix-ins, which would wait for their workers. A datagram server's answer on this very socket.
                TCPServer._serving_free_address(server)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            for live in table_of(server).all():
                # Children are told by the loop: that takes a lock.
                if live.process is None:
                    drain_one(server, live)
        self.loop.wake()
        # Last: from now on another signal may raise.
        self.asked.set()
        self.heard.set()

    def cut(self) -> None:
        """Let the loop cut what is in progress, and end what this thread serves. Safe in a signal handler.

        Raises CutShort into a handler that runs in this thread.
        """
        self.is_to_cut = True
        self.loop.wake()
        for server in self.servers:
            for live in table_of(server).all():
                if live.is_callers_own() and not live.detached:
                    # What it still does, its finish() for one, shall not wait for the client.
                    reach(live, cut)
                    if live.state in ("prepare", "handle"):
                        raise CutShort

    def on_accept(self, server: Any, request: LiveRequest) -> None:
        """Treat one that came between accept() and the table like those that were asked before it."""
        if self.is_asked:
            drain_one(server, request)

    def drain(self, timeout: float | None) -> None:
        """Return when all requests have ended, or were cut after ``timeout`` seconds and had time to notice."""
        try:
            self.ask()
            # The servers leave.
            self.loop.run()
            self._states.change(State.DRAINING)
            active = sum(len(server.active_requests) for server in self.servers)
            cause = f" on {self.signal.name}" if self.signal else ""
            log.info("stopping%s: %s in progress", cause, counted(active, "request"))
            for server in self.servers:
                for live in table_of(server).all():
                    drain_one(server, live)
            Draining(self.servers, self.loop, timeout, lambda: self.is_to_cut)
            self.loop.run()
        except BaseException:
            for server in self.servers:
                cut_others(server)
            raise


class Draining(Source):
    """Keeps the loop running without its servers, as long as there is something to wait for."""

    def __init__(
        self, servers: Sequence[AnyServer], loop: Loop, timeout: float | None, is_to_cut: Callable[[], bool] = bool
    ) -> None:
        self.max_wait: float | None = None
        self._servers = servers
        self._loop = loop
        self._is_to_cut = is_to_cut
        self._unheard = [table_of(server) for server in servers]
        self._was_cut = False
        self._has_given_up = False
        self._dispatchers: list[Dispatcher] = [
            server._serving_dispatcher  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            for server in servers
            if isinstance(server, DispatchingMixIn)
        ]
        for dispatcher in self._dispatchers:
            dispatcher.attach(loop)
        self._deadline = None if timeout is None else time.monotonic() + timeout
        if timeout is not None:
            loop.call_later(timeout, self._cut)
        self._say()
        loop.add(self)

    def before_wait(self) -> None:
        """Leave when all is over."""
        while self._unheard:
            table = self._unheard.pop()
            table.on_next_change(functools.partial(self._changed, table))
        if self._is_to_cut():
            self._cut()
        if self._has_given_up or not any(table_of(server).all() for server in self._servers):
            self.leave()
        waits = (dispatcher.must_poll() for dispatcher in self._dispatchers)
        self.max_wait = min((wait for wait in waits if wait is not None), default=None)

    def after_turn(self) -> None:
        """Reap the children that have ended."""
        for dispatcher in self._dispatchers:
            dispatcher.reap()

    def leave(self) -> None:
        """Let the loop end."""
        for dispatcher in self._dispatchers:
            dispatcher.detach()
        self._loop.remove(self)

    def _changed(self, table: ActiveRequests) -> None:
        self._unheard.append(table)
        self._loop.wake()

    def _say(self) -> None:
        """Log what is waited for, and again after some time, as long as there is anything."""
        active = sum(len(table_of(server).all()) for server in self._servers)
        if self._was_cut or not active:
            return
        if self._deadline is None:
            how_long = "without a limit"
        else:
            how_long = f"up to {max(0.0, self._deadline - time.monotonic()):.0f} s"
        progress.info("%s in progress, %s; another signal (Ctrl-C) cuts", counted(active, "request"), how_long)
        self._loop.call_later(PROGRESS, self._say)

    def _cut(self) -> None:
        if not self._was_cut:
            self._was_cut = True
            self._loop.call_later(CUT_GRACE, self._give_up)
            for server in self._servers:
                cut_others(server)

    def _give_up(self) -> None:
        self._has_given_up = True


@contextlib.contextmanager
def time_limit(stop: Stop, timeout: float | None) -> Generator[None]:
    """Send the second signal ``timeout`` seconds after the first, because an inline handler keeps timers from running.

    None: not at all. Before that, for the same reason, end a lame duck's time.

    For the thread that handles the signals. Has no effect on Windows, which cannot send one to a thread.
    """
    is_over = OneShot()
    thread = threading.get_ident()

    def wait() -> None:
        stop.heard.wait()
        if stop.is_lame and not stop.asked.wait(stop.lame_duck):
            stop.lameness_is_over()
        stop.asked.wait()
        if timeout is None:
            return
        if not is_over.wait(timeout) and stop.signal is not None and sys.platform != "win32":
            signal.pthread_kill(thread, stop.signal)

    # Started now: a signal handler must not start one.
    watch = threading.Thread(target=wait, name="sockserve-time-limit", daemon=True)
    watch.start()
    try:
        yield
    finally:
        is_over.set()
        stop.asked.set()
        stop.heard.set()
        watch.join()
