"""The live table: every request in progress, where in its life it is, and since when.

Rule 1. Each operation on the table is one atomic operation on a dict or a list, so that a signal handler that
interrupts one of them can do another; only what workers do with a request that a subclass keeps needs a lock.
Rule 2. A thread that waits registers first and looks at the table second; one that changes the table does that first
and tells the waiters second. So no change goes unseen.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from sockserve.core.forked import tell_when_forked
from sockserve.core.one_shot import OneShot
from sockserve.core.request_states import Outcome, RequestState
from sockserve.core.servable import Address, Request

__all__ = ["ActiveRequest", "ActiveRequests", "LiveRequest", "ParkingPlace", "ServingProcess"]


class ActiveRequest(NamedTuple):
    """One request in progress, as it was when ``server.active_requests`` was read."""

    client_address: Address
    """The client, as ``get_request()`` told it."""
    state: RequestState
    """Where in its life it is: "accept", "verify", "dispatch", "prepare", "handle", "error", "shutdown",
    "parked" (in a pool, until its client has more to say), or "kept" (by a subclass, which may serve it later)."""
    since: float
    """When it was accepted, in seconds of ``time.monotonic()``."""
    handler: Any
    """The handler, from the moment its constructor runs; None before."""
    connection_info: Any = None
    """The ``ConnectionInfo`` that the PROXY header and the TLS handshake gave; None before, and without either."""


ActiveRequest.__module__ = "sockserve"


class Budget(Protocol):
    """What is asked before a request is verified, and told when it has ended. From any thread."""

    def admit(self, live: LiveRequest, *, is_proxied: bool) -> bool:
        """Count it; false: it is to be refused."""
        ...

    def readmit(self, live: LiveRequest) -> bool:
        """Count it for the client that a proxy has named; false: it is to be refused."""
        ...

    def release(self, live: LiveRequest) -> None:
        """Give back what was counted. No effect on one that was not."""

    farewell: bytes | None
    """What a connection gets that is refused."""


class ServingProcess(Protocol):
    """Another process that serves a request."""

    def drain(self) -> None:
        """Let it end soon: its client shall have no more to say."""

    def cut(self) -> None:
        """End it now."""


class ServingGreenlet(Protocol):
    """What a handler runs in, if its thread serves others as well."""

    def is_current(self) -> bool:
        """Whether it is what calls this."""
        ...


class ParkingPlace(Protocol):
    """Where a connection waits for its client without a thread."""

    def park(self, live: LiveRequest, limit: float | None = None) -> bool:
        """Go on with it when its client speaks; true: the caller owns it no more; false: that will never be.

        ``limit``: seconds that it may be silent; None: the socket's time-out.
        """
        ...

    def await_first_word(self, live: LiveRequest) -> bool:
        """Wait for a new client that is to speak first, and has not; true as for ``park()``."""
        ...

    def is_crowded(self) -> bool:
        """Whether so many wait here that memory counts more than the time for each message."""
        ...

    def is_turn_over(self, live: LiveRequest) -> bool:
        """Whether others are to be looked at, though there is more of its input already; then park it."""
        ...

    def detach(self, live: LiveRequest) -> None:
        """Forget one that its handler gives away, or that is about to be closed. By the thread that serves it."""


class LiveRequest:
    """A request in progress as the server itself sees it; observers read it, and write nothing.

    Attributes may be read in any thread. They are written by the thread that has the request: the loop's, then a
    worker's, in a pool perhaps another one after each wait. ``claim()``, ``is_callers_own()``: from any thread.
    """

    __module__ = "sockserve"

    state: RequestState
    """Where in its life it is, in the words of ``ActiveRequest.state``."""
    handler: Any
    outcome: Outcome = "handled"
    """What became of it, so far: "handled", "refused", "failed", "left" (the peer did, before the end), or
    "cut" (the peer was too slow)."""
    exceeded: str | None = None
    """Which of ``deadlines`` cut it, or which of ``limits`` refused it; None: none."""
    detached: bool
    """Whether ``detach_request()`` gave its socket away, so that the server must not close it."""
    thread: int | None
    """The identity of the thread that serves it; None while no thread of this process does."""
    greenlet: ServingGreenlet | None = None
    """If a greenlet serves it: that one. Its thread serves others as well."""
    owner: str | None = None
    """What serves or closes it: "loop" or "worker"; None: neither has claimed it."""
    kept: weakref.ref[socket.socket] | None = None
    """The request, if a subclass keeps it: ``request`` is None then, and nothing here keeps it alive."""
    process: ServingProcess | None = None
    """The child process that serves it, if one does."""

    continue_handler: Callable[[bool], object] | None
    """While its handler waits for its client, in a pool: makes the handler go on, with the question whether there is
    input already answered, or not."""
    parking_record: Any
    """What ``parking`` knows of it, from the first wait on."""

    preparation: Any = None
    """The steps that come before its handler, while they are not done; and those of ``start_tls()``."""
    connection_info: Any = None
    """What they have found out; None: what the socket itself tells."""

    admission: Any = None
    """What ``limits`` have counted it for."""

    end_told: bool
    """Whether its client may see the end of the connection from now on, though the server has yet to close it."""

    escaped = False
    """Whether a caller of the table may hold it: then it must not become another request's record."""

    def __init__(self, table: ActiveRequests, events: Any, request: Request, client_address: Address) -> None:
        self.table = table
        self.events = events
        self.parking = table.parking
        self.key = id(request)
        self.request = request
        self.client_address = client_address
        self.since = time.monotonic()
        # What changes in every life is no attribute of the class, beside which it would be slower to find.
        self.state = "accept"
        self.handler = None
        self.detached = self.end_told = False
        self.continue_handler = self.parking_record = None
        # The thread that enters it serves it, or gives it away: it cannot wait for its end meanwhile.
        self.thread = threading.get_ident()

    def is_callers_own(self) -> bool:
        """Whether the calling thread or greenlet serves it, and so cannot wait for its end. From any thread."""
        return self.thread == threading.get_ident() and (self.greenlet is None or self.greenlet.is_current())

    def peer_stalls(self, stalls: bool) -> None:
        """Its end waits (or does no longer) for its client to take what was sent before: until then none is told."""
        self.end_told = not stalls

    def offer(self) -> None:
        """Let ``claim()`` decide what serves or closes it. By the thread that has it."""
        self._unclaimed = True

    def claim(self, owner: str) -> bool:
        """Whether ``owner`` serves or closes it: the first that claims it after an ``offer()``. From any thread."""
        try:
            # Atomic: of two threads that try it at once one fails.
            del self._unclaimed
        except AttributeError:
            return False
        self.owner = owner
        return True


class ActiveRequests:
    """The requests of one server that were accepted and not yet closed.

    All methods may be called from any thread and from a signal handler, but: ``take()`` and ``keep()``, which wait for
    a lock, by the thread that has the request; ``keep_only()`` and ``forked()`` in a child, where it is alone.
    """

    def __init__(self) -> None:
        # Not private: take_again() and handlers do in place what enter(), find() and discard() do.
        self.by_id: dict[int, LiveRequest] = {}
        """By identity: a datagram's request is a tuple, and equal ones may be served at once."""
        self.watchers: list[Callable[[], None]] = []
        self.parking: ParkingPlace | None = None
        """Where those that come in now may be parked."""
        self.limits: Budget | None = None
        """What is asked for room, and told of each end."""
        # Guards the change between "verify" or "dispatch", "kept" and being served; no verb of a server takes it.
        self._keeping = threading.Lock()
        tell_when_forked(self)

    def add(self, request: Request, client_address: Address, events: Any = None) -> LiveRequest:
        """Enter a request that was just accepted; ``events`` goes with it: its observers hear the whole of its life."""
        live = LiveRequest(self, events, request, client_address)
        self.enter(live)
        return live

    def enter(self, live: LiveRequest) -> None:
        """As ``add()``, for a record that its maker holds already."""
        self.by_id[live.key] = live
        if self.watchers:
            self.tell_watchers()

    def take(self, request: Request) -> LiveRequest | None:
        """The record of a request that the caller is going to serve, or to give to a worker."""
        live = self.by_id.get(id(request))
        if live is None or live.state not in ("verify", "kept", "dispatch"):
            return live
        with self._keeping:
            if live.kept is not None:
                if live.kept() is not request:
                    return None
                live.request = request
                live.kept = None
            # Out of the state that keep() may be asked about.
            live.state = "prepare" if live.state == "dispatch" else "dispatch"
        return live

    def find(self, request: Request) -> LiveRequest | None:
        """The record of a request that is being served."""
        return self.by_id.get(id(request))

    def keep(self, live: LiveRequest, gone: Callable[[], object], state: RequestState) -> bool:
        """Let go of a request that no thread took out of this state, but not of its record, until that or its end.

        ``gone()`` is called when the subclass that has it forgets it. False: that could not be noticed, or is past.
        """
        with self._keeping:
            if live.state != state:
                return True
            request = live.request
            if not isinstance(request, socket.socket) or request.fileno() < 0:
                return False
            live.state = "kept"
            live.thread = None
            live.request = None
            live.kept = weakref.ref(request, lambda _: gone())
        return True

    def replace(self, live: LiveRequest, request: Request) -> None:
        """Find the record by what ``prepare_request()`` made of its request from now on."""
        self.by_id.pop(live.key, None)
        live.request = request
        live.key = id(request)
        self.by_id[live.key] = live

    def keep_only(self, live: LiveRequest) -> None:
        """Forget all others, and all waiters: this process is a child that has nothing to do with them."""
        self.watchers.clear()
        self.by_id = {live.key: live}

    def discard(self, live: LiveRequest) -> None:
        """Strike a request out. No effect on one that is not in the table."""
        self.by_id.pop(live.key, None)
        if self.limits is not None:
            self.limits.release(live)
        if self.watchers:
            self.tell_watchers()

    def all(self) -> list[LiveRequest]:
        """Those in progress now, oldest first."""
        # copy() is atomic, iteration is not.
        found = self.by_id.copy().values()
        for live in found:
            live.escaped = True
        # Again: before that it may have become another request's, or none's. Of what is kept a worker may take one
        # meanwhile: it is looked at once.
        return [
            live
            for live in found
            if self.by_id.get(live.key) is live and ((kept := live.kept) is None or _is_open(kept()))
        ]

    def forked(self) -> None:
        """In a forked child: keep what the forking thread serves; a cut of others would reach the parent's clients."""
        self.watchers.clear()
        if self._keeping.locked():
            self._keeping = threading.Lock()
        self.by_id = {key: live for key, live in self.by_id.copy().items() if live.is_callers_own()}

    def others(self) -> list[LiveRequest]:
        """Those in progress now that the caller does not serve itself: the ones it can wait for."""
        return [live for live in self.all() if not live.is_callers_own()]

    def snapshot(self) -> tuple[ActiveRequest, ...]:
        """What users see: a request whose client may have seen its end is listed no more, though its entry is here.

        Only what serves it still finds it, in the hooks of its end, until its connection is closed.
        """
        return tuple(
            ActiveRequest(live.client_address, live.state, live.since, live.handler, live.connection_info)
            for live in self.all()
            if (not live.end_told or live.is_callers_own())
            and (live.state != "shutdown" or getattr(live.request, "_closed", False) is not True)
        )

    def next_change(self) -> OneShot:
        """An event that is set as soon as a request enters or leaves the table, or ``touch()`` is called.

        It stays with the table until then: give one that is waited for no more to ``forget_change()``.
        """
        change = OneShot()
        self.on_next_change(change.set)
        return change

    def on_next_change(self, callback: Callable[[], None]) -> None:
        """Call back once, in whichever thread, at the next such change."""
        self.watchers.append(callback)

    def not_on_next_change(self, callback: Callable[[], None]) -> None:
        """Undo ``on_next_change()``. No effect if it was called back."""
        with contextlib.suppress(ValueError):
            self.watchers.remove(callback)

    def forget_change(self, change: OneShot) -> None:
        """Undo ``next_change()``. No effect on an event that is set."""
        self.not_on_next_change(change.set)

    def touch(self) -> None:
        """Set the events of ``next_change()``: something else happened that a thread may be waiting for."""
        self.tell_watchers()

    def tell_watchers(self) -> None:
        """Call all that wait for a change."""
        while True:
            try:
                callback = self.watchers.pop()
            except IndexError:
                return
            callback()


def _is_open(request: socket.socket | None) -> bool:
    return request is not None and request.fileno() >= 0
