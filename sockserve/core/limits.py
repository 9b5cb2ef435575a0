"""``Limits``: how much a server, or several together, takes on at once and in a second, and from one source.

Rule 1. Whatever clients do, the memory is bounded: a source has an entry only while it has requests in progress, and
rates have a table of fixed size.
Rule 2. What is counted is given back at the end of the request, in whichever way and thread it ends.
Rule 3. At a limit a server waits or refuses; it never fails, and never stops to hear ``shutdown()``.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

from sockserve.core.active_requests import LiveRequest
from sockserve.core.forked import tell_when_forked
from sockserve.core.rates import Rate, SourceRates
from sockserve.log import Seldom, log
from sockserve.net.networks import networks_of
from sockserve.net.sources import source_of

__all__ = ["Limits", "limits_of"]


def limits_of(server: object) -> Limits | None:
    """Those of a server; None: it has none, or means something else by that name."""
    found = getattr(server, "limits", None)
    return found if isinstance(found, Limits) else None


class _Admission:
    """What a request has been counted for."""

    __slots__ = ("books", "source")

    def __init__(self, books: object) -> None:
        self.books: object = books
        """Where it is counted; None: no more."""
        self.source: str | None = None


class Limits:
    """A budget. The same object on several servers is one budget for all of them. From any thread.

    requests: in progress at once; those that a pool has parked count.
    per_source: the same of one source, which is an IPv4 address, an IPv6 network of 64 bits, or the user (uid) at the
        other end of a Unix socket. Behind a proxy it is the client that the PROXY header names.
    rate, per_source_rate: requests a second, of which as many may come at once after a pause.
    ipv4_prefix, ipv6_prefix: bits of an address that make a source.
    reserved: places among ``requests`` that only ``reserved_for`` may take: networks as "10.0.0.0/8", and "unix".
        For those neither ``per_source`` nor the rates count.
    when_full: what happens at ``requests`` or ``rate``. "wait": no more is accepted until there is room, and the
        kernel's backlog holds the clients; "refuse": they are refused. With ``reserved`` they always are, because a
        backlog is first come, first served. What ``per_source`` forbids is always refused.
    farewell: bytes that a refused connection gets before its end, 64 connections at once at most and never over TLS;
        None: it is reset, which costs least.

    With "wait", requests that are accepted in the very moment may be more than ``requests``, by as many as there are
    workers that accept. Raises ValueError, AddressError.
    """

    __module__ = "sockserve"

    def __init__(
        self,
        *,
        requests: int | None = None,
        per_source: int | None = None,
        rate: float | None = None,
        per_source_rate: float | None = None,
        ipv4_prefix: int = 32,
        ipv6_prefix: int = 64,
        reserved: int = 0,
        reserved_for: Sequence[str] = (),
        when_full: Literal["wait", "refuse"] = "wait",
        farewell: bytes | None = None,
    ) -> None:
        for name, number in (("requests", requests), ("per_source", per_source)):
            if number is not None and not number >= 1:
                raise ValueError(f"{name} must be a positive number, or None: {number!r}")
        for name, speed in (("rate", rate), ("per_source_rate", per_source_rate)):
            if speed is not None and not 0 < speed < math.inf:
                raise ValueError(f"{name} must be a positive number of requests a second, or None: {speed!r}")
        for name, prefix, bits in (("ipv4_prefix", ipv4_prefix, 32), ("ipv6_prefix", ipv6_prefix, 128)):
            if not 1 <= prefix <= bits:
                raise ValueError(f"{name} must be 1 to {bits}: {prefix!r}")
        if when_full not in ("wait", "refuse"):
            raise ValueError(f'when_full must be "wait" or "refuse": {when_full!r}')
        if reserved and (requests is None or not 0 <= reserved < requests):
            raise ValueError(f"reserved must be less than requests: {reserved!r}")
        self.requests, self.per_source, self.rate, self.per_source_rate = requests, per_source, rate, per_source_rate
        self.ipv4_prefix, self.ipv6_prefix = ipv4_prefix, ipv6_prefix
        self.reserved, self.reserved_for = reserved, tuple(reserved_for)
        self.when_full, self.farewell = when_full, farewell
        self._waits = when_full == "wait" and not reserved
        self._exempt = networks_of(["unix" if text == "unix:" else text for text in reserved_for])
        self._has_exempt = bool(reserved_for)
        self._needs_source = per_source is not None or per_source_rate is not None
        self._forget()
        tell_when_forked(self)

    def _forget(self) -> None:
        # Reentrant: a signal handler may serve a request, too.
        self._lock = threading.RLock()
        self._books = object()
        self._active = 0
        self._by_source: dict[str, int] = {}
        self._rate = None if self.rate is None else Rate(self.rate)
        self._rates = None if self.per_source_rate is None else SourceRates(self.per_source_rate)
        self._on_room: list[Callable[[], object]] = []
        self._seldom = Seldom()
        self._top, self._votes = "", 0
        self._unsaid: dict[str, int] = {}

    def forked(self) -> None:
        """In a forked child: its requests are counted anew, and another thread of the parent may have held the lock."""
        self._forget()

    def __repr__(self) -> str:
        names = ("requests", "per_source", "rate", "per_source_rate")
        given = [f"{name}={getattr(self, name):g}" for name in names if getattr(self, name) is not None]
        return f"Limits({', '.join(given)})"

    @property
    def active(self) -> int:
        """Requests in progress."""
        return self._active

    # the verbs; they may be called, or overridden, by a policy of one's own

    def admit(self, live: LiveRequest, *, is_proxied: bool = False) -> bool:
        """Count a request that was accepted. False: it is to be refused, and ``live.exceeded`` says for what.

        ``is_proxied``: its address is a proxy's; ``readmit()`` follows.
        """
        now = time.monotonic()
        is_exempt = self._has_exempt and self._exempt.prefix_of(live.client_address) >= 0
        source = None
        if self._needs_source and not is_exempt and not is_proxied:
            source = source_of(live.client_address, live.request, self.ipv4_prefix, self.ipv6_prefix)
        with self._lock:
            exceeded = None
            if self.requests is not None and not self._waits:
                places = self.requests if is_exempt else self.requests - self.reserved
                exceeded = "requests" if self._active >= places else None
            if exceeded is None and self._rate is not None and not is_exempt:
                if not self._waits and self._rate.seconds_until_due(now):
                    exceeded = "rate"
                else:
                    self._rate.count(now)
            if exceeded is None and source is not None:
                exceeded = self._count_source(source, now)
            if exceeded is None:
                self._active += 1
                live.admission = admission = _Admission(self._books)
                if self.per_source is not None:
                    admission.source = source
                return True
        self._refuse(live, exceeded, source)
        return False

    def readmit(self, live: LiveRequest) -> bool:
        """Count it for the client that its PROXY header names. False: it is to be refused, as for ``admit()``."""
        admission = live.admission
        if admission is None or not self._needs_source or admission.source is not None:
            return True
        if self._has_exempt and self._exempt.prefix_of(live.client_address) >= 0:
            return True
        # Not its credentials: a Unix socket's are the proxy's.
        source = source_of(live.client_address, None, self.ipv4_prefix, self.ipv6_prefix)
        with self._lock:
            exceeded = self._count_source(source, time.monotonic())
            if exceeded is None:
                if self.per_source is not None:
                    admission.source = source
                return True
        self._refuse(live, exceeded, source)
        return False

    def release(self, live: LiveRequest) -> None:
        """Give back what was counted for it. No effect on one that was not admitted, or was released."""
        admission, live.admission = live.admission, None
        if admission is None:
            return
        with self._lock:
            if admission.books is not self._books:
                return
            admission.books = None
            was_full = self.requests is not None and self._active >= self.requests
            self._active -= 1
            source = admission.source
            if source is not None:
                left = self._by_source[source] - 1
                if left:
                    self._by_source[source] = left
                else:
                    del self._by_source[source]
            callbacks, self._on_room = (self._on_room, []) if was_full else ([], self._on_room)
        for callback in callbacks:
            callback()

    def is_full(self) -> bool:
        """Whether the next request, from any client, would have to wait or be refused now."""
        if self.requests is not None and self._active >= self.requests:
            return True
        return self._rate is not None and self._rate.seconds_until_due(time.monotonic()) > 0

    def on_room(self, callback: Callable[[], object]) -> None:
        """Call back once, in whichever thread, when a request has ended that was the last that there was room for."""
        with self._lock:
            if callback not in self._on_room:
                self._on_room.append(callback)
        if self.requests is None or self._active < self.requests:
            # It has ended since the caller looked.
            with self._lock:
                if callback not in self._on_room:
                    return
                self._on_room.remove(callback)
            callback()

    # for the servers

    def must_wait(self) -> bool:
        """Whether no server with this budget is to accept now."""
        return self._waits and self.is_full()

    def seconds_until_due(self) -> float:
        """Seconds until ``rate`` allows the next; 0: it does, or there is none."""
        return 0.0 if self._rate is None else self._rate.seconds_until_due(time.monotonic())

    def tell_waiting(self, server: object) -> None:
        """Say in the log that clients wait, once a minute at most."""
        if count := self._seldom.count():
            text = "%s: at its limit, %r: clients wait%s"
            log.warning(text, server, self, f", {count} times since the last such line" if count > 1 else "")

    def _count_source(self, source: str, now: float) -> str | None:
        count = self._by_source.get(source, 0)
        if self.per_source is not None and count >= self.per_source:
            return "per_source"
        if self._rates is not None and not self._rates.is_due(source, now):
            return "per_source_rate"
        if self.per_source is not None:
            self._by_source[source] = count + 1
        return None

    def _refuse(self, live: LiveRequest, exceeded: str, source: str | None) -> None:
        live.exceeded = exceeded
        log.debug("refused %s: %s", live.client_address, exceeded)
        with self._lock:
            self._unsaid[exceeded] = self._unsaid.get(exceeded, 0) + 1
            if source is not None:
                # Which of them it is mostly, without a table of them (Boyer and Moore's vote).
                if not self._votes:
                    self._top = source
                self._votes += 1 if source == self._top else -1
            count = self._seldom.count()
            if not count:
                return
            unsaid, self._unsaid = self._unsaid, {}
            top = f", mostly {self._top}" if self._votes > 0 else ""
            self._votes = 0
        reasons = ", ".join(f"{name}: {number}" for name, number in unsaid.items())
        log.warning("refused %d by %r%s (%s)", count, self, top, reasons)
