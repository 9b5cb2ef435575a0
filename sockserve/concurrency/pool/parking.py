"""Connections that hold no thread: parked until their client has more to say.

The package's docstring says in which order all this happens, and why. In short:

Rule 1. The thread that takes a connection out of ``parked`` owns it. Only the owner touches or closes it.
Rule 2. Parking is the last act of the thread that serves a connection: afterwards another thread may own it.
Rule 3. An event is trusted only if the wait that told it began after the connection was parked, and after the last
claim. Any other connection is parked again, and the kernel tells again what there is.
"""

from __future__ import annotations

import collections
import contextvars
import math
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from sockserve.concurrency.pool.poller import SharedPoller
from sockserve.concurrency.pool.record import ParkingRecord
from sockserve.concurrency.pool.silence import LIMITS_PER_SECOND, Silences, first, has_spoken
from sockserve.core.active_requests import LiveRequest
from sockserve.core.request_life import contain, handle, resume
from sockserve.log import log
from sockserve.net.closing import end_input
from sockserve.net.tls import is_tls
from sockserve.seconds import limit_of

__all__ = ["Parking"]


CROWD = 1000
"""Parked connections from which on the next ones give up what they do not need: the buffers of fewer are 8 MiB."""

TURN = 0.01
"""Seconds after which a worker that finds more of a client's messages in its buffer looks whether others wait: some
hundred short messages, beside which the look costs nothing."""


class Parking:
    """The parked connections of one server."""

    def __init__(self, server: Any, poller: SharedPoller, wake: Callable[[], None]) -> None:
        self.server = server
        self.poller = poller
        self.parked: dict[int, LiveRequest] = {}
        """By descriptor, the longest parked first. Each operation on it is a single atomic one."""
        self.held: set[int] = set()
        """Descriptors that stay armed, so that parking them again is no system call."""
        self.holds = False
        """Whether those parked from now on are to stay armed. The coordinator says so."""
        self.claimed_at = 0.0
        """When the last claim ended, in seconds of ``time.monotonic()``; infinite while one is under way."""
        self.wants_look = False
        """Whether the coordinator is to call ``look()`` now."""
        self.next_look = math.inf
        """When it is to call it anyway, in seconds of ``time.monotonic()``."""
        self._wake = wake
        self._is_closed = False
        self._claiming = threading.Lock()
        self.silences = Silences()
        self.later: collections.deque[LiveRequest] = collections.deque()
        """Those with more input, of which the poller need not tell: a worker takes one after each look at others."""
        self.unheard: collections.deque[LiveRequest] = collections.deque()
        """Taken out, and the system cannot watch them again: a thread has to call ``end_unheard()``."""

    # for the thread that serves a connection

    def park(self, live: LiveRequest, limit: float | None = None) -> bool:
        """Leave a connection to the thread that will see its client speak; false: no thread ever will.

        ``limit``: seconds that it may be silent; None: the socket's time-out. If true the caller must not touch it
        again. If the system cannot watch it, the log says so, and it is false.
        """
        request = live.request
        fd = request.fileno()
        if fd < 0 or self._is_closed or live.detached:
            return False
        record = live.parking_record
        if record is None:
            record = live.parking_record = ParkingRecord()
        record.fd = fd
        # A copy: this thread has not left the present one when the next enters it.
        record.context = contextvars.copy_context()
        live.thread = None
        before, live.state = live.state, "parked"
        if record.turn:
            is_over = record.turn < 0
            record.turn = 0.0
            if is_over:
                self.later.append(live)
                return True
        if limit is None:
            limit = request.gettimeout()
        if limit:
            self._limit(live, limit)
        elif record.limit:
            record.limit = 0.0
        if self._enter(live):
            return True
        if record.limit:
            self.silences.forget(record)
        live.thread = threading.get_ident()
        live.state = before
        return False

    def await_first_word(self, live: LiveRequest) -> bool:
        """Park a new connection whose client speaks first and has not yet; true as for ``park()``.

        When it speaks, or leaves, or has been silent for the handler's ``timeout``, the handler is made.
        """
        handler = getattr(self.server, "RequestHandlerClass", None)
        if not getattr(handler, "client_speaks_first", False):
            return False
        request = live.request
        if not isinstance(request, socket.socket) or request.type != socket.SOCK_STREAM or has_spoken(request):
            return False
        live.continue_handler = _first_word
        if self.park(live, limit_of(getattr(handler, "timeout", None))):
            return True
        live.continue_handler = None
        return False

    def is_crowded(self) -> bool:
        """Whether so many are parked that memory counts more than the time for each message. From any thread."""
        return len(self.parked) >= CROWD

    def is_turn_over(self, live: LiveRequest) -> bool:
        """Whether it has had its turn, though there is more of its input already; then ``park()`` puts it in ``later``.

        Called by the thread that serves it.
        """
        record: ParkingRecord | None = live.parking_record
        if record is None:
            record = live.parking_record = ParkingRecord()
        now = time.monotonic()
        if not record.turn:
            record.turn = now
        elif now - record.turn >= TURN:
            record.turn = -1.0
        return record.turn < 0

    def detach(self, live: LiveRequest) -> None:
        """Watch it no more: its handler gives it away, or it is about to be closed. By the thread that serves it.

        A descriptor that is closed while it is watched, and open in a forked child, is told of for ever (epoll(7)).
        """
        record = live.parking_record
        if record is not None and record.is_registered:
            record.is_registered = False
            self.held.discard(record.fd)
            if live.request.fileno() == record.fd:
                self.poller.unwatch(record.fd)

    # for workers

    def serve(self, live: LiveRequest, has_input: bool) -> None:
        """Go on with a connection that the caller has taken out, until it is parked again or over.

        ``has_input`` says that its client spoke; else that may be, or it is the end.
        """
        record = live.parking_record
        if record.limit:
            self.silences.forget(record)
        if live.continue_handler is _first_word:
            record.context.run(contain, self.server, live, _begin)
            return
        if has_input and type(live.request) is not socket.socket:
            # What came may be a part of a record, or none of the client's words.
            has_input = not is_tls(live.request)
        # Nothing after that: another thread may have it.
        record.context.run(resume, self.server, live, has_input)

    def serve_later(self) -> None:
        """Go on with the one that has waited longest of those whose turn was over, if there is any."""
        try:
            live = self.later.popleft()
        except IndexError:
            return
        continue_handler = live.continue_handler
        try:
            self.serve(live, False)
        except BaseException:
            self.undo_taking(live, continue_handler)
            raise

    def quiet(self, fd: int) -> None:
        """Hear no more of a descriptor that stays armed and is not parked, until it is parked again.

        What was parked meanwhile the caller has to take out, and to put back.
        """
        # In this order: _enter() looks at the second after it has made the third possible.
        try:
            self.poller.rearm(fd, self.poller.mute)
        except (OSError, ValueError):
            # Closed. Whatever has its number now was not armed to stay.
            pass
        self.held.discard(fd)

    def put_back(self, live: LiveRequest) -> None:
        """Park one again that was taken out and not served. For a worker, which ends it if that fails."""
        if not self._enter(live, is_back=True):
            self.end(live)

    def undo_taking(self, live: LiveRequest, continue_handler: object) -> None:
        """Park one again that the caller took out, if serving it has not begun. For a worker that dies of an exception.

        ``continue_handler`` is what the record had when it was taken out; None: that was not yet looked at.
        """
        # Parked again by its handler it has another one, and may be another worker's.
        if live.state != "parked" or (continue_handler is not None and live.continue_handler is not continue_handler):
            return
        if live.parking_record.limit:
            self._limit(live, live.parking_record.limit)
        self._give_back(live)

    def hear_again(self, fd: int | None) -> None:
        """Arm a parked connection again of whose event nothing came; None: all, as it may be any."""
        # Parked again without a system call it might stay unheard.
        if fd is None:
            self.held.clear()
        else:
            self.held.discard(fd)
        for live in self.parked.copy().values() if fd is None else filter(None, [self.parked.get(fd)]):
            if self.claim(live):
                self._give_back(live)

    # for any thread

    def claim(self, live: LiveRequest) -> bool:
        """Take a connection out without an event; false: another thread has done that."""
        record = live.parking_record
        fd = record.fd
        if self.parked.get(fd) is not live:
            return False
        with self._claiming:
            self.claimed_at = math.inf
            try:
                taken = self.parked.pop(fd, None)
                if taken is live:
                    with record.arming:
                        self.held.discard(fd)
                        self.poller.unwatch(fd)
                    record.is_registered = False
            finally:
                self.claimed_at = time.monotonic()
        if taken is not None and taken is not live:
            # In this very moment it ended, and another one has its descriptor.
            self._give_back(taken)
        return taken is live

    def _limit(self, live: LiveRequest, limit: float) -> None:
        # Entered first, and next_look read second: look() does it the other way round.
        if self.silences.enter(live, limit) < self.next_look and not self.wants_look:
            self.wants_look = True
            self._wake()

    def _enter(self, live: LiveRequest, *, is_back: bool = False) -> bool:
        """Park it, and say whether it is: another thread may have it then. False: the caller still has it.

        ``is_back``: it was parked before and has not been served since, so that it is trusted as it was.
        """
        record = live.parking_record
        fd = record.fd
        held = self.held
        # The number may have been another connection's.
        if self.holds and record.is_registered and fd in held:
            if not is_back:
                record.trusted_from = time.monotonic()
            self.parked[fd] = live
            # In this order: close() and quiet() do it the other way round.
            if fd in held and not self._is_closed:
                return True
            if not self._take_back(live):
                return True
        return self._arm(live)

    def _take_back(self, live: LiveRequest) -> bool:
        taken = self.parked.pop(live.parking_record.fd, None)
        if taken is not None and taken is not live:
            # It was served to its end in this very moment, and another one has its descriptor.
            self._give_back(taken)
        return taken is live

    def _arm(self, live: LiveRequest) -> bool:
        """As ``_enter()``, with a system call."""
        record = live.parking_record
        fd = record.fd
        poller, held = self.poller, self.held
        # A claim that comes between entering and arming waits: or the descriptor would be armed that it closed.
        with record.arming:
            holds = self.holds
            if holds:
                record.doubts = 2
            if record.doubts:
                # What was told more often than once may be still on its way to a worker.
                record.doubts -= not holds
                record.trusted_from = time.monotonic()
            self.parked[fd] = live
            # In this order: close() does it the other way round.
            if self._is_closed:
                return self.parked.pop(fd, None) is not live
            if holds:
                held.add(fd)
            else:
                held.discard(fd)
            try:
                if record.is_registered:
                    poller.rearm(fd, poller.held if holds else poller.once)
                else:
                    poller.arm(fd, poller.held if holds else poller.once)
                    record.is_registered = True
            except OSError as error:
                held.discard(fd)
                if self.parked.pop(fd, None) is not live:
                    return True
                log.warning("%s: ends %s, which cannot be waited for: %s", self.server, live.client_address, error)
                return False
        return True

    def _give_back(self, live: LiveRequest) -> None:
        """As ``put_back()``, for any thread: what cannot be parked again waits for one that ends it."""
        if not self._arm(live):
            self.unheard.append(live)
            self.wants_look = True
            self._wake()

    def end(self, live: LiveRequest) -> None:
        """End one that was taken out, as a drain does. Not for the coordinator, as its handler runs."""
        end_input(live.request)
        self.serve(live, False)

    def look(self) -> None:
        """Let those go whose clients have been silent for too long, and say when to look again. The coordinator's."""
        self.wants_look = False
        self.next_look = math.inf
        now = time.monotonic()
        earliest = math.inf
        for limit, queue in self.silences.queues.copy().items():
            while (live := first(queue)) is not None:
                parked_at = live.parking_record.parked_at
                due = parked_at + limit
                if due > now:
                    earliest = min(earliest, due)
                    break
                if not self.claim(live):
                    # Its client spoke in this moment.
                    earliest = min(earliest, now + 1 / LIMITS_PER_SECOND)
                    break
                if live.parking_record.limit != limit or live.parking_record.parked_at != parked_at:
                    # It spoke before it was taken out, and has been served since.
                    self._give_back(live)
                    earliest = min(earliest, now + 1 / LIMITS_PER_SECOND)
                    break
                self.silences.forget(live.parking_record)
                # It may have spoken in time, while all workers were busy.
                if not has_spoken(live.request):
                    log.debug("%s said nothing for %g s", live.client_address, limit)
                    # What is to be done about that is a handler's work, and a worker does it.
                    end_input(live.request)
                self._give_back(live)
        self.next_look = earliest

    def longest_parked(self) -> LiveRequest | None:
        """The one that has been parked longest."""
        return first(self.parked)

    # the end; not the coordinator's, as handlers run

    def end_unheard(self) -> None:
        """End those that could not be parked again."""
        while True:
            try:
                live = self.unheard.popleft()
            except IndexError:
                return
            self.end(live)

    def end_all(self) -> None:
        """End those that are parked now, or whose descriptor is not watched."""
        for live in self.parked.copy().values():
            if not self.claim(live):
                continue
            if live.preparation is not None and live.preparation.is_young():
                # For a moment its handshake goes on, in this thread.
                self.serve(live, False)
            else:
                self.end(live)
        while self.later:
            self.serve_later()
        self.end_unheard()

    def close(self) -> None:
        """Park none from now on. From any thread."""
        self._is_closed = True

    def forked(self) -> None:
        """In a forked child: the parked are the parent's."""
        self._is_closed = True
        for connections in (self.parked, self.later, self.unheard, self.held):
            connections.clear()
        self.silences.forked()
        self._claiming = threading.Lock()


def _first_word(_: bool) -> None:
    """In the place of ``continue_handler`` while the client has not yet said anything, so that no handler is there."""


def _begin(server: Any, live: LiveRequest) -> None:
    """Its client has spoken, or will never."""
    live.thread = threading.get_ident()
    live.continue_handler = None
    handle(server, live)
