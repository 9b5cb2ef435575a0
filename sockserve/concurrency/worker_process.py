"""A worker process, from the inside: what it is told, what it tells, and how it ends.

Rule 1. The supervisor decides and measures the time; a worker does what it is told, at once, and ends when nothing is
in progress any more. End-of-file where it hears its supervisor means that there is none: it ends within 5 seconds.
Rule 2. It is told through a socket and not by signals: a terminal and a service manager signal the whole group.
Rule 3. It shows that its loop turns in memory that it shares with its supervisor, so that a thread which holds the
interpreter's lock for ever is found out too.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import logging
import mmap
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

from sockserve.concurrency.children import leave_process
from sockserve.core.active_requests import LiveRequest, table_of
from sockserve.core.events import Counters, Observer
from sockserve.core.lifecycle import Lifecycle
from sockserve.core.loop import Loop
from sockserve.core.one_shot import OneShot
from sockserve.core.request_life import cut_others, drain_one
from sockserve.core.server import TCPServer, UDPServer
from sockserve.net.closing import end_input

__all__ = [
    "ACTIVE",
    "ASLEEP",
    "AWAKE",
    "CAUSE",
    "CUT",
    "CUTS",
    "DRAIN",
    "DUMP_SIGNAL",
    "ENOUGH",
    "HANDLED",
    "LEAVE",
    "LOOK",
    "READY",
    "RESUME",
    "RETIRE",
    "STOPPED",
    "SUSPEND",
    "Duties",
    "Link",
    "Orders",
    "Page",
    "be_worker",
    "wait_for_requests",
    "with_jitter",
]

log = logging.getLogger("sockserve")

RETIRE, LEAVE, DRAIN, CUT, SUSPEND, RESUME, LOOK = b"e", b"l", b"d", b"c", b"s", b"r", b"k"
"""What a worker is told: accept no more and end after the last client; accept no more and end after the last request;
end the requests' input as well; cut them; pause accepting; go on; see whether a client waits that somebody else was
woken for."""

READY, ENOUGH, STOPPED, ASLEEP, AWAKE, CAUSE = b"\x01", b"\x02", b"\x03", b"\x04", b"\x05", b"\x06"
"""What it tells: it serves; it has served its number of requests; it accepts no more; its loop waits for a request and
shows no more that it turns; it does again; why it fails, a text until the end. Anything else is the stacks that
faulthandler writes, a text without such bytes."""

ORPHAN_DRAIN = 3.0
"""Seconds that requests in progress get when the supervisor is gone."""

ORPHAN_END = 1.0
"""Seconds after that, until such a worker ends whatever it is at: both are less than the 5 that are promised."""

END_PAUSE = 0.02
"""Seconds for which a worker with nothing more to do leaves the processor to others before it ends: the kernel takes
milliseconds to clear a process away, and ``shutdown()`` may be waiting for the next worker."""

DUMP_SIGNAL = signal.SIGQUIT
"""Makes a worker tell the stacks of all its threads, as it does to Java's machine."""

BEAT, ACCEPTED, ACTIVE, HANDLED, REFUSED, FAILED, CUTS, BEGUN, TOO_LATE = range(9)


_SLEEPS = 0
"""In the place of the last beat: there is none to come, until there is something to do."""


class Page:
    """Memory that a worker and its supervisor share: when its loop last turned, and its counters."""

    def __init__(self) -> None:
        self.numbers = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
        self.beat()

    def beat(self) -> None:
        """The loop turns now."""
        # By CLOCK_MONOTONIC, which all processes share.
        self.numbers[BEAT] = time.monotonic_ns()

    def sleep(self) -> None:
        """The loop is about to wait without limit."""
        self.numbers[BEAT] = _SLEEPS

    def is_asleep(self) -> bool:
        """Whether that was the last that was heard."""
        return self.silence() is None

    def silence(self) -> float | None:
        """Seconds since the last beat; None: it sleeps."""
        beat = self.numbers[BEAT]
        return None if beat == _SLEEPS else (time.monotonic_ns() - beat) / 1e9

    def begin(self) -> bool:
        """The worker is about to accept: whether it may. Once ``call_off()`` was true, it may not."""
        # In this order, and there the other way round: of two that meet here at least one sees the other.
        self.numbers[BEGUN] = 1
        return not self.numbers[TOO_LATE]

    def call_off(self) -> bool:
        """The worker shall not begin: whether it has not, so that nobody need wait until it has stopped."""
        self.numbers[TOO_LATE] = 1
        return not self.numbers[BEGUN]

    def add_to(self, counters: Counters) -> None:
        """Add what the worker counted, which has ended: what it still had in progress has failed."""
        numbers = self.numbers
        counters.accepted += numbers[ACCEPTED]
        counters.handled += numbers[HANDLED]
        counters.refused += numbers[REFUSED]
        counters.failed += numbers[FAILED] + numbers[ACTIVE]


class Orders(NamedTuple):
    """What a worker knows from its beginning."""

    worker_id: int
    """The number of its place, from 0; whoever replaces it has the same."""
    is_anew: bool
    """Whether a rolling restart made it, so that it has to load its program anew."""
    is_suspended: bool
    """Whether it shall not accept before it is told to."""
    worker_timeout: float | None
    """Seconds within which its loop has to turn, or within which it is told to be seen alive; None: at will."""
    max_requests: int | None
    """After how many requests it asks for a successor; None: never."""


class Duties(Observer):
    """What a worker does for its supervisor; one of its servers' observers."""

    def __init__(self, link: Link, servers: Sequence[Any]) -> None:
        self._link = link
        self._servers = servers
        self._numbers = link.page.numbers
        self._lock = threading.Lock()
        self._limit = link.orders.max_requests
        self._ends_input = False
        self._retires = False
        self._leaves = False
        self._may_end = OneShot()

    def on_accept(self, server: Any, request: LiveRequest) -> None:
        """Count it; one that came in the moment of a drain is drained too."""
        self.begin_one()
        if self._ends_input:
            _drain_one(server, request)

    def on_shutdown(self, server: Any, request: LiveRequest) -> None:
        """Count what became of it."""
        outcome = request.outcome
        self.end_one(FAILED if outcome == "failed" else REFUSED if outcome == "refused" else HANDLED)

    def begin_one(self) -> None:
        """Count a request, and ask for a successor if that is enough."""
        numbers = self._numbers
        with self._lock:
            numbers[ACCEPTED] += 1
            numbers[ACTIVE] += 1
            is_last = numbers[ACCEPTED] == self._limit
        if numbers[BEAT] == _SLEEPS:
            # A pool's worker took it: its loop sleeps on.
            self._link.stir()
        if is_last:
            self._link.tell(ENOUGH)

    def end_one(self, outcome: int) -> None:
        """Count what became of one: HANDLED, REFUSED or FAILED."""
        with self._lock:
            self._numbers[ACTIVE] -= 1
            self._numbers[outcome] += 1

    # Told by the supervisor, in the control thread, or by SIGTERM in the main thread.

    def retire(self) -> None:
        """Accept no more, but go on with the clients that are there, the parked among them."""
        self._retires = True
        for server in self._servers:
            lifecycle: Lifecycle | None = getattr(server, "_serving_lifecycle", None)
            retire = getattr(lifecycle and lifecycle.acceptor, "retire", None)
            if retire is None:
                # Who keeps clients waits for them in whatever serves them, and needs no loop that accepts.
                self.leave()
            else:
                retire(functools.partial(self._link.tell, STOPPED))

    def leave(self) -> None:
        """Accept no more. Safe in a signal handler; idempotent, as the others. Told so again: end."""
        if self._leaves:
            self._may_end.set()
        self._leaves = True
        for server in self._servers:
            lifecycle: Lifecycle | None = getattr(server, "_serving_lifecycle", None)
            if lifecycle is None:
                server._BaseServer__shutdown_request = True  # noqa: SLF001 - a standard library's server
            else:
                lifecycle.draining = True
                lifecycle.stop_requested = True
        self._link.tell(STOPPED)

    def drain(self) -> None:
        """Free the ports, and end the input of what is in progress."""
        self._ends_input = True
        self._may_end.set()
        self.leave()
        for server in self._servers:
            if _can_close_early(server):
                # Past the mix-ins, which would wait for their workers.
                TCPServer.server_close(server)
            for live in table_of(server).all():
                _drain_one(server, live)

    def cut(self) -> None:
        """End the connections of what is in progress."""
        self._may_end.set()
        self.leave()
        for server in self._servers:
            late = len(cut_others(server))
            with self._lock:
                self._numbers[CUTS] += late

    def wait_to_end(self) -> None:
        """Let whoever waits for the end of accepting go first."""
        self._may_end.wait(END_PAUSE)

    def suspend(self) -> None:
        """Pause accepting."""
        for server in self._servers:
            with contextlib.suppress(AttributeError):
                server.suspend()

    def resume(self) -> None:
        """Accept again, but not after all."""
        for server in () if self._retires else self._servers:
            with contextlib.suppress(AttributeError):
                server.resume()

    def look(self) -> None:
        """See whether somebody waits."""
        for server in self._servers:
            lifecycle: Lifecycle | None = getattr(server, "_serving_lifecycle", None)
            look_again = getattr(lifecycle and lifecycle.acceptor, "look_again", None)
            if look_again is not None:
                look_again()


def _can_close_early(server: object) -> bool:
    # A datagram server's answer on this very socket.
    return isinstance(server, TCPServer) and not isinstance(server, UDPServer)


def _drain_one(server: Any, live: LiveRequest) -> None:
    if hasattr(server, "drain_request"):
        drain_one(server, live)
    elif not live.detached:
        # A standard library's server.
        end_input(live.request)


class _Rest:
    """In a loop until its next wait: the last that happens before that."""

    max_wait: float | None = None

    def __init__(self, link: Link, loop: Loop) -> None:
        self._link = link
        self._loop = loop

    def before_wait(self) -> None:
        """Now."""
        self._loop.remove(self)
        self._link.rest_in(self._loop)

    def after_turn(self) -> None:
        """Nothing."""

    def leave(self) -> None:
        """Let the loop end."""
        self._loop.remove(self)

    def abandon(self) -> None:
        """Nothing to close."""


class Link:
    """A worker's end of the line to its supervisor."""

    def __init__(self, control: socket.socket, page: Page, orders: Orders) -> None:
        self.page = page
        self.orders = orders
        self._control = control
        self._loop: Loop | None = None
        self._duties: Duties | None = None
        self._is_ready = False

    def obey(self, duties: Duties) -> None:
        """Do what the supervisor says, from now on. Raises RuntimeError if there is no thread to be had."""
        self._duties = duties

        def on_sigterm(_signum: int, _frame: object) -> None:
            duties.leave()

        signal.signal(signal.SIGTERM, on_sigterm)
        threading.Thread(target=self._listen, args=(duties,), name="sockserve-control", daemon=True).start()

    def beat_in(self, loop: Loop) -> None:
        """Show from now on that this loop turns; the first time makes the worker ready.

        Nothing is shown, and the loop not woken for it, while it waits for a request and nothing is in progress.
        """
        self._loop = loop
        self.beat()
        if self.orders.worker_timeout is not None:
            loop.call_later(self.orders.worker_timeout / 2, lambda: loop.add(_Rest(self, loop)))

    def rest_in(self, loop: Loop) -> None:
        """Its next wait may be without limit."""
        self.page.sleep()
        # In this order: see Duties.begin_one().
        if self.page.numbers[ACTIVE]:
            self.beat_in(loop)
            return

        def wakes() -> None:
            self.beat_in(loop)
            self.tell(AWAKE)

        loop.after_next_wait(wakes)
        self.tell(ASLEEP)

    def stir(self) -> None:
        """Something is in progress beside the loop that sleeps. From any thread."""
        self.page.beat()
        if self._loop is not None:
            self._loop.wake()

    def beat(self) -> None:
        """The loop turns now."""
        self.page.beat()
        if not self._is_ready:
            self._is_ready = True
            if self.page.begin():
                self.tell(READY)
            elif self._duties is not None:
                self._duties.leave()

    def has_stopped(self) -> None:
        """The loop has ended: nothing more is accepted."""
        self.tell(STOPPED)

    def tell(self, message: bytes) -> None:
        """Tell the supervisor; from any thread."""
        try:
            self._control.send(message, socket.MSG_DONTWAIT)
        except OSError:
            # Nobody there to be told, or not listening for a long time.
            pass

    def write_stacks_on(self, signum: signal.Signals) -> None:
        """Make a signal tell the supervisor the stacks of all threads, whatever they are at."""
        faulthandler.register(signum, self._control.fileno(), all_threads=True, chain=False)

    def _listen(self, duties: Duties) -> None:
        verbs: dict[int, Callable[[], None]] = {
            RETIRE[0]: duties.retire,
            LEAVE[0]: duties.leave,
            DRAIN[0]: duties.drain,
            CUT[0]: duties.cut,
            SUSPEND[0]: duties.suspend,
            RESUME[0]: duties.resume,
            LOOK[0]: duties.look,
        }
        try:
            while commands := self._control.recv(64):
                for command in commands:
                    _do(verbs[command])
        except OSError:
            # Reset: as end-of-file.
            pass
        log.warning("worker %d: its supervisor is gone; it drains and ends", self.orders.worker_id)
        _do(duties.drain)
        # The end of the main thread's work is the end of the process, and of these waits.
        never = OneShot()
        never.wait(ORPHAN_DRAIN)
        _do(duties.cut)
        never.wait(ORPHAN_END)
        os._exit(1)


def _do(verb: Callable[[], None]) -> None:
    try:
        verb()
    except Exception:
        log.exception("a worker cannot do what it was told")


def be_worker(link: Link, work: Callable[[Link], None]) -> NoReturn:
    """Do a worker's work and end the process."""
    status = 1
    try:
        link.write_stacks_on(DUMP_SIGNAL)
        work(link)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        link.tell(CAUSE + f"SystemExit: {error}".encode(errors="replace"))
    except BaseException as error:
        log.exception("worker %d failed", link.orders.worker_id)
        link.tell(CAUSE + f"{type(error).__name__}: {error}".encode(errors="replace"))
    finally:
        leave_process(status)


def wait_for_requests(servers: Iterable[Any]) -> None:
    """Wait until nothing is in progress, in daemon threads either."""
    for server in servers:
        Lifecycle().wait_until_idle(table_of(server), None, OneShot.wait)


def with_jitter(limit: int | None, jitter: int | None) -> int | None:
    """A number of requests, so that not all workers reach theirs at once; ``jitter`` more at most, None: a tenth."""
    if limit is None:
        return None
    # Not of ``random``: whoever has imported that fills it anew in each child they fork.
    return limit + int.from_bytes(os.urandom(8)) % (1 + (limit // 10 if jitter is None else jitter))
