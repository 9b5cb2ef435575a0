"""Connections that hold no thread: parked until their client has more to say.

Rule 1. Whoever takes a parked connection out of ``parked`` owns it, and only its owner touches or closes it.
Rule 2. Parking is the last act of whoever serves a connection: afterwards another thread may own it.
Rule 3. An event names a descriptor, whose number may be another connection's by the time somebody acts on it. That
takes a connection to be taken out without its event, a *claim*; so an event that a claim may have overtaken is not
believed: its connection is armed again, and speaks again if it did.
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
from sockserve.core.active_requests import LiveRequest
from sockserve.core.poller import wait_readable
from sockserve.core.request_life import resume
from sockserve.log import log
from sockserve.net.closing import end_input
from sockserve.net.tls import is_tls

__all__ = ["MOST_LIMITS", "ParkingLot"]


LIMITS_PER_SECOND = 16
"""A limit of silence is rounded up to a multiple of this part of a second."""

ROOM = 16
"""Connections closed at once when descriptors have run out: a little more than the one that is asked for."""

ROOM_WAIT = 0.05
"""Seconds that a worker waits at most for another one's closing, before it tries to accept again."""

ROOM_LOG_INTERVAL = 60.0
"""Seconds between two lines in the log about that."""


MOST_LIMITS = 16
"""Limits of silence whose queues stay when they are empty: to make one anew for each wait costs a microsecond."""

TURN = 0.01
"""Seconds after which a worker that finds more of a client's messages in its buffer looks whether others wait: some
hundred short messages, beside which the look costs nothing."""


class Ticket:
    """What the lot knows of one connection, from its first wait on."""

    # No attributes of a class as values to begin with: beside them those of an object are slower to find.
    __slots__ = ("arming", "context", "fd", "is_registered", "limit", "parked_at", "turn")

    def __init__(self) -> None:
        self.fd = -1
        self.is_registered = False
        """Whether the poller knows the descriptor."""
        self.limit = 0.0
        """Seconds of silence that the handler bears; 0: any."""
        self.parked_at = 0.0
        self.turn = 0.0
        """When it was first found to have more input at once, in this turn; 0: not yet; -1: the turn is over."""
        self.context: contextvars.Context
        """The context variables of the handler."""
        self.arming = threading.Lock()
        """Held while the connection is entered and armed."""


class ParkingLot:
    """The parked connections of one server."""

    def __init__(self, server: Any, poller: SharedPoller, wake: Callable[[], None]) -> None:
        self.server = server
        self.poller = poller
        self.parked: dict[int, LiveRequest] = {}
        """By descriptor, the longest parked first. Each operation on it is a single atomic one."""
        self.claims = 0
        """Odd while a claim is under way; each one changes it."""
        self.wants_look = False
        """Whether the coordinator is to call ``look()`` now."""
        self.next_look = math.inf
        """When it is to call it anyway, in seconds of ``time.monotonic()``."""
        self._wake = wake
        self._is_closed = False
        self._said_room_at = -math.inf
        self._claiming = threading.Lock()
        self._making_room = threading.Lock()
        # For each time-out those parked with it, the longest first: only the first of each has to be looked at.
        self._silent: dict[float, dict[int, LiveRequest]] = {}
        # Held while one is entered there or taken out.
        self._limiting = threading.Lock()
        self.later: collections.deque[LiveRequest] = collections.deque()
        """Those with more input, of which the poller need not tell: a worker takes one after each look at others."""
        self.unheard: collections.deque[LiveRequest] = collections.deque()
        """Taken out, and the system cannot watch them again: a thread has to call ``end_unheard()``."""

    def park(self, live: LiveRequest, limit: float | None = None) -> bool:
        """Give a connection to whoever sees that its client speaks; false: nobody will any more.

        If true the caller must not touch it again. If the system cannot watch it, the log says so, and it is false.
        """
        request = live.request
        fd = request.fileno()
        if fd < 0 or self._is_closed or live.detached:
            return False
        ticket = live.parking_record
        if ticket is None:
            ticket = live.parking_record = Ticket()
        ticket.fd = fd
        # A copy: this thread has not left the present one when the next enters it.
        ticket.context = contextvars.copy_context()
        live.thread = None
        before, live.state = live.state, "parked"
        if ticket.turn:
            is_over = ticket.turn < 0
            ticket.turn = 0.0
            if is_over:
                self.later.append(live)
                return True
        if limit is None:
            limit = request.gettimeout()
        if limit:
            self._limit(live, limit)
        elif ticket.limit:
            ticket.limit = 0.0
        if self._arm(live):
            return True
        if ticket.limit:
            self._forget_limit(ticket)
        live.thread = threading.get_ident()
        live.state = before
        return False

    def is_turn_over(self, live: LiveRequest) -> bool:
        """Whether it has had its turn, though there is more of its input already; then ``park()`` puts it in ``later``.

        Called by the thread that serves it.
        """
        ticket: Ticket | None = live.parking_record
        if ticket is None:
            ticket = live.parking_record = Ticket()
        now = time.monotonic()
        if not ticket.turn:
            ticket.turn = now
        elif now - ticket.turn >= TURN:
            ticket.turn = -1.0
        return ticket.turn < 0

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

    def _limit(self, live: LiveRequest, limit: float) -> None:
        ticket = live.parking_record
        # Rounded up, or a program that computes its time-outs would make a queue for each.
        limit = ticket.limit = math.ceil(limit * LIMITS_PER_SECOND) / LIMITS_PER_SECOND
        ticket.parked_at = time.monotonic()
        # Entered first, and next_look read second: look() does it the other way round.
        with self._limiting:
            try:
                self._silent[limit][ticket.fd] = live
            except KeyError:
                self._silent[limit] = {ticket.fd: live}
        if ticket.parked_at + limit < self.next_look and not self.wants_look:
            self.wants_look = True
            self._wake()

    def _forget_limit(self, ticket: Ticket) -> None:
        with self._limiting:
            queue = self._silent.get(ticket.limit)
            if queue is not None:
                queue.pop(ticket.fd, None)
                if not queue and len(self._silent) > MOST_LIMITS:
                    # A handler that computes its time-outs may never ask for this one again.
                    del self._silent[ticket.limit]

    def _arm(self, live: LiveRequest) -> bool:
        """Park it, and say whether it is: another thread may have it then. False: the caller still has it."""
        ticket = live.parking_record
        fd = ticket.fd
        # Whoever claims it between the two steps waits for the second: or the descriptor would be armed that it closed.
        with ticket.arming:
            self.parked[fd] = live
            # In this order: close() does it the other way round.
            if self._is_closed:
                return self.parked.pop(fd, None) is not live
            try:
                if ticket.is_registered:
                    self.poller.rearm(fd, self.poller.once)
                else:
                    self.poller.arm(fd)
                    ticket.is_registered = True
            except OSError as error:
                if self.parked.pop(fd, None) is not live:
                    return True
                log.warning("%s: ends %s, which cannot be waited for: %s", self.server, live.client_address, error)
                return False
        return True

    def serve(self, live: LiveRequest, has_input: bool) -> None:
        """Go on with a connection that the caller has taken out, until it is parked again or over.

        ``has_input`` says that its client spoke; else that may be, or it is the end.
        """
        ticket = live.parking_record
        if ticket.limit:
            self._forget_limit(ticket)
        if has_input and type(live.request) is not socket.socket:
            # What came may be a part of a record, or none of the client's words.
            has_input = not is_tls(live.request)
        # Nothing after that: another thread may have it.
        ticket.context.run(resume, self.server, live, has_input)

    def detach(self, live: LiveRequest) -> None:
        """Watch no more what its handler gives away. Called by the thread that serves it, before any can close it."""
        ticket = live.parking_record
        if ticket is not None and ticket.is_registered and live.request.fileno() == ticket.fd:
            ticket.is_registered = False
            self.poller.unwatch(ticket.fd)

    def claim(self, live: LiveRequest) -> bool:
        """Take a connection out without an event; false: somebody else has."""
        ticket = live.parking_record
        fd = ticket.fd
        if self.parked.get(fd) is not live:
            return False
        with self._claiming:
            self.claims += 1
            taken = self.parked.pop(fd, None)
            if taken is live:
                with ticket.arming:
                    self.poller.unwatch(fd)
                ticket.is_registered = False
            self.claims += 1
        if taken is not None and taken is not live:
            # In this very moment it ended, and another one has its descriptor.
            self._give_back(taken)
        return taken is live

    def put_back(self, live: LiveRequest) -> None:
        """Park one again that was taken out and not served. For a worker, which ends it if that fails."""
        if not self._arm(live):
            self._end(live)

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
        for live in self.parked.copy().values() if fd is None else filter(None, [self.parked.get(fd)]):
            if self.claim(live):
                self._give_back(live)

    def _give_back(self, live: LiveRequest) -> None:
        """The same, for any thread: what cannot be parked again waits for one that ends it."""
        if not self._arm(live):
            self.unheard.append(live)
            self.wants_look = True
            self._wake()

    def _end(self, live: LiveRequest) -> None:
        end_input(live.request)
        self.serve(live, False)

    def look(self) -> None:
        """Let those go whose clients have been silent for too long, and say when to look again. For one thread."""
        self.wants_look = False
        self.next_look = math.inf
        now = time.monotonic()
        earliest = math.inf
        for limit, queue in self._silent.copy().items():
            while (live := _first(queue)) is not None:
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
                self._forget_limit(live.parking_record)
                # It may have spoken in time, while all workers were busy.
                if not _has_spoken(live.request):
                    log.debug("%s said nothing for %g s", live.client_address, limit)
                    # What is to be done about that is a handler's work, and a worker does it.
                    end_input(live.request)
                self._give_back(live)
        self.next_look = earliest

    def end_unheard(self) -> None:
        """End those that could not be parked again. For any thread but the one that calls ``look()``."""
        while True:
            try:
                live = self.unheard.popleft()
            except IndexError:
                return
            self._end(live)

    def make_room(self) -> bool:
        """Close some of those that have been parked longest, because descriptors have run out; say whether there were.

        If another worker is at it, what it closes is enough for both; then the answer is true as well.
        """
        if not self._making_room.acquire(blocking=False):
            if self._making_room.acquire(timeout=ROOM_WAIT):
                self._making_room.release()
            return True
        try:
            return self._close_longest_parked() > 0
        finally:
            self._making_room.release()

    def _close_longest_parked(self) -> int:
        room = 0
        while room < ROOM and (live := _first(self.parked)) is not None:
            if self.claim(live):
                room += 1
                self._end(live)
        if room and time.monotonic() - self._said_room_at > ROOM_LOG_INTERVAL:
            self._said_room_at = time.monotonic()
            log.warning("%s: out of descriptors: closing the connections that have been parked longest", self.server)
        return room

    def end_all(self) -> None:
        """End those that are parked now, or whose descriptor is not watched."""
        for live in self.parked.copy().values():
            if self.claim(live):
                self._end(live)
        while self.later:
            self.serve_later()
        self.end_unheard()

    def forked(self) -> None:
        """In a forked child: the parked are the parent's."""
        self._is_closed = True
        for connections in (self.parked, self.later, self.unheard, self._silent):
            connections.clear()
        self._claiming, self._making_room, self._limiting = threading.Lock(), threading.Lock(), threading.Lock()

    def close(self) -> None:
        """Park nobody any more."""
        self._is_closed = True


def _first(connections: dict[int, LiveRequest]) -> LiveRequest | None:
    while True:
        try:
            return next(iter(connections.values()), None)
        except RuntimeError:
            # Another thread changed it between the two calls.
            continue


def _has_spoken(request: Any) -> bool:
    """Whether there is unread input, or the end of it."""
    try:
        return wait_readable(request.fileno(), 0)
    except (OSError, ValueError):
        # It cannot be asked: as if it had been silent.
        return False
