"""``Deadlines``: how slow a peer may be, and the judgement of one connection.

Rule 1. What is judged is what the kernel counts (TCP_INFO), and how long our own reader waits. A handler that computes
is never blamed on its client.
Rule 2. Before a connection is cut it is looked up once more: the record must still be that of the same message.
"""

from __future__ import annotations

import math
import socket
from typing import Any, TypeAlias

from sockserve.core.active_requests import LiveRequest
from sockserve.core.replaced import reach, successor
from sockserve.core.streams import SocketReader
from sockserve.log import log
from sockserve.net.aborting import abort
from sockserve.net.tcp_info import Progress, progress_of
from sockserve.seconds import limit_of

__all__ = ["LONGEST_TICK", "Deadlines", "Watch", "deadlines_of"]

SHORTEST_TICK = 0.02
"""Seconds between two sweeps at least."""

LONGEST_TICK = 1.0
"""Seconds between two looks at what is being served, at most: nothing is cut much later than it is due."""

PROCESS_GRACE = 1.0
"""Seconds that a child process has between SIGTERM and SIGKILL."""

_Turn: TypeAlias = tuple[object, int]

_TIMES = ("first_byte", "idle", "grace", "stall", "request")


class Deadlines:
    """How slow the peer of a connection may be before it is cut: all in seconds, None: as slow as it likes.

    first_byte: from accept to its first byte.
    idle: of silence, while the server waits for it: the connection is kept open, or ``rfile`` is being read.
    min_rate: bytes a second that it sends at least while ``rfile`` is being read, over one message, after ``grace``.
    stall: in which it takes nothing of an answer (of which the kernel holds a part that is not acknowledged).
    request: for one message, from accept, or from its first byte on a connection that is kept open, to its end.

    ``first_byte`` and ``stall`` need Linux and TCP. A handler that does not read from ``rfile`` is ``idle`` if nothing
    has moved on its connection in either direction; for it there is no ``min_rate``. Immutable. Raises ValueError.
    """

    __module__ = "sockserve"

    __slots__ = ("first_byte", "grace", "idle", "min_rate", "request", "stall", "tick")

    def __init__(
        self,
        *,
        first_byte: float | None = None,
        idle: float | None = None,
        min_rate: float | None = None,
        grace: float = 5.0,
        stall: float | None = None,
        request: float | None = None,
    ) -> None:
        given = {"first_byte": first_byte, "idle": idle, "grace": grace, "stall": stall, "request": request}
        for name in _TIMES:
            seconds = limit_of(given[name], name)
            if seconds is not None and seconds <= 0:
                raise ValueError(f"{name} must be a positive number of seconds, or None: {given[name]!r}")
            object.__setattr__(self, name, seconds)
        if min_rate is not None and not 0 < min_rate < math.inf:
            raise ValueError(f"min_rate must be a positive number of bytes a second, or None: {min_rate!r}")
        object.__setattr__(self, "min_rate", min_rate)
        if self.grace is None:
            # Without an end of the grace no rate is ever too low.
            object.__setattr__(self, "min_rate", None)
        times = [first_byte, idle, stall, request, None if min_rate is None else grace]
        shortest = min((seconds for seconds in times if seconds is not None), default=math.inf)
        object.__setattr__(self, "tick", min(max(shortest / 4, SHORTEST_TICK), LONGEST_TICK))

    first_byte: float | None
    idle: float | None
    min_rate: float | None
    grace: float | None
    stall: float | None
    request: float | None
    tick: float
    """Seconds between two looks at a connection that is being served. Not for programs."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Deadlines cannot be changed: make another, to set {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"Deadlines cannot be changed: make another, without {name}")

    def asks_kernel(self) -> bool:
        """Whether any of them is about what the kernel counts. Not for programs."""
        return self.first_byte is not None or self.idle is not None or self.stall is not None

    def _values(self) -> tuple[float | None, ...]:
        return (self.first_byte, self.idle, self.min_rate, self.grace, self.stall, self.request)

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, Deadlines) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, self._values()

    def __repr__(self) -> str:
        names = ("first_byte", "idle", "min_rate", "grace", "stall", "request")
        given = [f"{name}={value:g}" for name, value in zip(names, self._values(), strict=True) if value is not None]
        return f"Deadlines({', '.join(given)})"


def _made_again(*values: Any) -> Deadlines:
    first_byte, idle, min_rate, grace, stall, request = values
    return Deadlines(first_byte=first_byte, idle=idle, min_rate=min_rate, grace=grace, stall=stall, request=request)


def deadlines_of(holder: object) -> Deadlines | None:
    """Those of a server, a handler or its class; None: it has none, or means something else by that name."""
    found = getattr(holder, "deadlines", None)
    return found if isinstance(found, Deadlines) else None


class Watch:
    """What is remembered of one connection between two looks at it. Used by one thread at a time."""

    __slots__ = (
        "_acked",
        "_counts_request",
        "_has_spoken",
        "_is_told",
        "_moved_at",
        "_parked_at",
        "_received_before",
        "_taken_at",
        "_turn",
        "_turn_began",
        "_waited_before",
        "look_at",
    )

    def __init__(self, live: LiveRequest) -> None:
        self.look_at = 0.0
        """When to look again, in seconds of ``time.monotonic()``."""
        self._turn = _turn_of(live)
        self._turn_began = live.since
        self._parked_at: float | None = None
        self._has_spoken = self._is_told = False
        self._acked, self._moved_at, self._taken_at = 0, live.since, live.since
        self._waited_before, self._received_before = 0.0, 0

    def look(self, live: LiveRequest, deadlines: Deadlines, now: float, *, counts_request: bool = True) -> None:
        """Cut the connection if it is due, and say in ``look_at`` when to look again."""
        self._counts_request = counts_request
        self.look_at = now + deadlines.tick
        if live.process is not None:
            self._look_at_process(live, deadlines, now)
            return
        state = live.state
        if state not in ("handle", "parked") or live.outcome == "cut":
            return
        if not isinstance(live.request, socket.socket):
            # A datagram has a sender, and no connection: only the handler's own time counts, and nothing wakes it.
            self.look_at = math.inf
            return
        turn = _turn_of(live)
        reason = self._judge(live, turn, deadlines, now, is_parked=state == "parked")
        if reason is None:
            if state == "parked":
                # Nothing but its silence can be due, and for thousands of them each look counts.
                self.look_at = now + max(deadlines.tick, min(4 * deadlines.tick, LONGEST_TICK * 4))
        elif _is_same(live, turn):
            live.exceeded = reason
            live.outcome = "cut"
            log.debug("%s is cut: %s", live.client_address, reason)
            reach(live, lambda connection: abort(connection, reason))
            self.look_at = math.inf

    def _look_at_process(self, live: LiveRequest, deadlines: Deadlines, now: float) -> None:
        """The parent's side of a child: its own end it cannot make sure of."""
        process = live.process
        if process is None or deadlines.request is None:
            return
        if now - live.since < deadlines.request:
            return
        if self._is_told:
            process.cut()
            self.look_at = math.inf
            return
        self._is_told = True
        live.exceeded = "request"
        log.debug("%s is cut: request", live.client_address)
        process.drain()
        self.look_at = now + PROCESS_GRACE

    def _judge(
        self, live: LiveRequest, turn: _Turn, deadlines: Deadlines, now: float, *, is_parked: bool
    ) -> str | None:
        """For which of them it is to be cut; None: for none."""
        raw = _reader_of(live.handler)
        if not _is_equal(turn, self._turn):
            self._begin_turn(turn, raw, now)
        if not is_parked:
            self._parked_at = None
        elif self._parked_at is None:
            self._parked_at = now
        waits_since: float = getattr(live.handler, "_serving_waits_since", 0.0)
        if self._parked_at is not None:
            waits_since = self._parked_at
        progress = None
        if deadlines.asks_kernel():
            progress = progress_of(_connection_of(live))
            if progress is not None:
                self._note_output(progress, now)
        first_byte, stall, idle, min_rate = deadlines.first_byte, deadlines.stall, deadlines.idle, deadlines.min_rate
        if first_byte is not None and now - live.since >= first_byte and self._is_mute(live, raw, progress):
            return "first_byte"
        if stall is not None and progress is not None and now - self._taken_at >= stall:
            return "stall"
        if idle is not None and self._silence(waits_since, raw, progress, now) >= idle:
            return "idle"
        if waits_since:
            # Between two messages.
            return None
        if self._counts_request and deadlines.request is not None and now - self._turn_began >= deadlines.request:
            return "request"
        if min_rate is not None and deadlines.grace is not None and raw is not None:
            return self._judge_rate(raw, min_rate, deadlines.grace, now)
        return None

    def _begin_turn(self, turn: _Turn, raw: SocketReader | None, now: float) -> None:
        """Another message has begun since the last look."""
        self._turn = turn
        self._turn_began = now
        self._parked_at = None
        if raw is not None:
            self._waited_before, self._received_before = raw.waited, raw.taken

    def _is_mute(self, live: LiveRequest, raw: SocketReader | None, progress: Progress | None) -> bool:
        """Whether nothing has come from the peer yet."""
        if not self._has_spoken:
            if progress is not None:
                self._has_spoken = progress.received > 0
            elif raw is not None:
                # Without the kernel's word: as far as our reader knows, while it waits.
                self._has_spoken = raw.taken > 0 or not raw.waits_since
            else:
                self._has_spoken = live.handler is not None
        return not self._has_spoken

    def _note_output(self, progress: Progress, now: float) -> None:
        """Note when the peer has last taken something, or had nothing to take."""
        if progress.acked != self._acked:
            self._acked, self._moved_at = progress.acked, now
        if self._moved_at == now or not progress.is_sending:
            self._taken_at = now

    def _silence(self, waits_since: float, raw: SocketReader | None, progress: Progress | None, now: float) -> float:
        """Seconds that the server has waited for the peer, which was silent."""
        silence = math.inf if progress is None else progress.silence
        if waits_since:
            return min(now - waits_since, silence)
        if raw is not None:
            # Read first: it may be reset at any moment.
            since = raw.waits_since
            return min(now - since, silence) if since else 0.0
        if progress is None or progress.is_sending:
            return 0.0
        # Its handler reads in a way of its own: it is blamed on the client only if nothing moves at all.
        return min(silence, now - self._moved_at)

    def _judge_rate(self, raw: SocketReader, min_rate: float, grace: float, now: float) -> str | None:
        since = raw.waits_since
        waited = raw.waited + (now - since if since else 0.0)
        received = raw.taken - self._received_before
        if not received:
            # Before the first byte of a message it is idle, and no faster for that.
            self._waited_before = waited
            return None
        waited -= self._waited_before
        return "min_rate" if waited >= grace and received < min_rate * waited else None


def _turn_of(live: LiveRequest) -> _Turn:
    """What is another object, or number, for each message of a connection."""
    record = live.parking_record
    # A new copy each time that it is parked.
    context = None if record is None else getattr(record, "context", None)
    return context, getattr(live.handler, "_serving_turns", 0)


def _is_equal(one: _Turn, other: _Turn) -> bool:
    # By identity: copies of a context are equal.
    return one[0] is other[0] and one[1] == other[1]


def _is_same(live: LiveRequest, turn: _Turn) -> bool:
    """Whether it is still at the message that was judged, and the server's to end."""
    return (
        live.table.by_id.get(live.key) is live
        and live.state in ("handle", "parked")
        and not live.detached
        and _is_equal(_turn_of(live), turn)
    )


def _reader_of(handler: object) -> SocketReader | None:
    rfile = getattr(handler, "rfile", None)
    raw = rfile if isinstance(rfile, SocketReader) else getattr(rfile, "raw", None)
    return raw if isinstance(raw, SocketReader) else None


def _connection_of(live: LiveRequest) -> object:
    request = live.request
    if isinstance(request, socket.socket) and request.fileno() < 0:
        return successor(live)
    return request
