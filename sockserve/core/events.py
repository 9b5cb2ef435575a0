"""What can happen to a request: the nine words of its life, their observers, and the log.

=========  ==========================================================================
wait       the server pauses accepting, with a reason; or it does so no longer
accept     a request was accepted
verify     ``verify_request()`` decided
dispatch   the request was given to a worker
prepare    ``prepare_request()`` succeeded: the PROXY header, the TLS handshake
handle     the handler returned
error      accept, verify, dispatch, prepare or handle raised
shutdown   the request is over: its socket closed, or detached
tick       the loop has ended a turn
=========  ==========================================================================
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from sockserve.core.active_requests import LiveRequest
from sockserve.core.forked import tell_when_forked
from sockserve.core.servable import AnyServer
from sockserve.errors import DatagramTruncatedError
from sockserve.log import Seldom, log

__all__ = ["Counters", "Events", "LogObserver", "Observer"]


class Observer:
    """Hears what happens to requests. Subclass it and override what you want to hear; the rest costs nothing.

    A method is called in the thread where the event happens, several at once, and should return quickly. What it raises
    is logged and changes nothing for the request.
    """

    __module__ = "sockserve"

    def on_wait(self, server: AnyServer, reason: str | None) -> None:
        """Accepting pauses because of ``reason`` ("full", "back off", "suspended", "limit"), or goes on (None)."""

    def on_accept(self, server: AnyServer, request: LiveRequest) -> None:
        """A request was accepted."""

    def on_verify(self, server: AnyServer, request: LiveRequest, accepted: bool) -> None:
        """``verify_request()`` said yes or no."""

    def on_dispatch(self, server: AnyServer, request: LiveRequest) -> None:
        """A worker is about to get the request."""

    def on_prepare(self, server: AnyServer, request: LiveRequest) -> None:
        """The request is ready for its handler."""

    def on_handle(self, server: AnyServer, request: LiveRequest) -> None:
        """The handler did its work and raised nothing."""

    def on_error(self, server: AnyServer, request: LiveRequest | None, error: BaseException) -> None:
        """Something was raised: in accept when ``request`` is None, else at ``request.state``."""

    def on_shutdown(self, server: AnyServer, request: LiveRequest) -> None:
        """The request is over; the last event of every accepted one."""

    def on_tick(self, server: AnyServer) -> None:
        """The loop has ended a turn."""


_WORDS = ("wait", "accept", "verify", "dispatch", "prepare", "handle", "error", "shutdown", "tick")


class Events:
    """The observers of one server, sorted by what they want to hear, so that silence is one truth test.

    Never changed after it is made: another set of observers is another object. ``emit()``: in the thread where the
    event happens, several threads at once.
    """

    wait: tuple[Callable[..., None], ...]
    accept: tuple[Callable[..., None], ...]
    verify: tuple[Callable[..., None], ...]
    dispatch: tuple[Callable[..., None], ...]
    prepare: tuple[Callable[..., None], ...]
    handle: tuple[Callable[..., None], ...]
    error: tuple[Callable[..., None], ...]
    shutdown: tuple[Callable[..., None], ...]
    tick: tuple[Callable[..., None], ...]

    def __init__(self, observers: tuple[Observer, ...]) -> None:
        self.observers = observers
        for word in _WORDS:
            method = f"on_{word}"
            unheard = getattr(Observer, method)
            hooks = (getattr(observer, method, None) for observer in observers)
            heard = (hook for hook in hooks if hook is not None and getattr(hook, "__func__", hook) is not unheard)
            setattr(self, word, tuple(heard))
        self.hear_all = bool(
            self.accept or self.verify or self.dispatch or self.prepare or self.handle or self.shutdown
        )
        """Whether an observer hears of requests that nothing goes wrong with."""

    @staticmethod
    def emit(callbacks: tuple[Callable[..., None], ...], *args: object) -> None:
        """Call each; what one raises is logged and stops neither the others nor the request."""
        for callback in callbacks:
            try:
                callback(*args)
            except Exception:
                log.exception("an observer failed: %r", callback)


class LogObserver(Observer):
    """Says in the log what an operator needs to hear: pauses, and accepts that failed."""

    __module__ = "sockserve"

    def on_wait(self, server: AnyServer, reason: str | None) -> None:
        """One DEBUG line."""
        log.debug("%s: %s", server, f"accepting pauses: {reason}" if reason else "accepting goes on")

    def on_error(self, server: AnyServer, request: LiveRequest | None, error: BaseException) -> None:
        """One line for an accept that failed; an error of a request is reported by ``handle_error()``.

        For datagrams that are too long one line a minute, with their number.
        """
        if isinstance(error, DatagramTruncatedError):
            # Any address can send them, at the speed of the network and with a forged sender.
            seldom: Seldom = server.__dict__.setdefault("_serving_long_datagrams", Seldom())
            if count := seldom.count():
                more = f", and {count - 1} more since the last such line" if count > 1 else ""
                log.warning("%s: %s%s", server, error, more)
        elif request is None:
            log.debug("%s: accept failed: %s", server, error)


class Counters(Observer):
    """Counts requests; exact at any number of threads.

    ``accepted`` is everything that came in; each of them ends as one of ``refused`` (``verify_request()`` or the TLS
    handshake said no, or ``limits``), ``failed`` (an error was reported), ``cut`` (the peer was too slow for
    ``deadlines``) or ``handled`` (also when the peer left early); until then it is ``active``. ``refused_by`` and
    ``cut_by`` count those of ``limits`` and of ``deadlines`` by the name of the limit or deadline.
    """

    __module__ = "sockserve"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        tell_when_forked(self)
        self.accepted = 0
        self.refused = 0
        self.active = 0
        self.handled = 0
        self.failed = 0
        self.cut = 0
        self.refused_by: dict[str, int] = {}
        self.cut_by: dict[str, int] = {}

    def forked(self) -> None:
        """In a forked child, where no thread of the parent's gives its lock back."""
        self._lock = threading.Lock()

    def on_accept(self, server: AnyServer, request: LiveRequest) -> None:
        """Count it as accepted and active."""
        with self._lock:
            # First, and below last: a thread that sees without the lock that none is active finds all counted.
            self.active += 1
            self.accepted += 1

    def on_shutdown(self, server: AnyServer, request: LiveRequest) -> None:
        """Count it as what became of it."""
        with self._lock:
            reason = request.exceeded
            if request.outcome == "refused":
                self.refused += 1
                if reason is not None:
                    self.refused_by[reason] = self.refused_by.get(reason, 0) + 1
            elif request.outcome == "cut":
                self.cut += 1
                if reason is not None:
                    self.cut_by[reason] = self.cut_by.get(reason, 0) + 1
            elif request.outcome == "failed":
                self.failed += 1
            else:
                self.handled += 1
            self.active -= 1
