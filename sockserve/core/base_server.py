"""BaseServer: the hooks of ``socketserver``, in its order, and the verbs that start and stop them."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Self, TypeAlias

from sockserve.core.accepting import Acceptor
from sockserve.core.active_requests import ActiveRequest
from sockserve.core.aftercare import wait_for_request
from sockserve.core.base_order import refuse_wrong_order
from sockserve.core.connection_info import ConnectionInfo, info_of
from sockserve.core.deadlines import Deadlines
from sockserve.core.deferral import Deferral
from sockserve.core.draining import drain_together, wait_until_all_idle
from sockserve.core.events import LogObserver, Observer
from sockserve.core.hook_marks import needs_no_poll
from sockserve.core.life_in_place import own
from sockserve.core.lifecycle import Drained, Lifecycle
from sockserve.core.limits import Limits
from sockserve.core.loop import Loop
from sockserve.core.one_shot import OneShot
from sockserve.core.request_life import begin, serve, takes_record, unprepared
from sockserve.core.servable import Address, Request
from sockserve.core.serving import Accepting, ServedInLoop, table_of
from sockserve.core.sweeping import end_sweeping
from sockserve.core.type_parameters import TypeVar, filled_up
from sockserve.core.without_loop import take_without_loop
from sockserve.errors import RefusedError, ServerClosedError
from sockserve.log import log
from sockserve.net.departure import has_left
from sockserve.seconds import limit_of

__all__ = ["AddressT", "BaseServer", "HandlerFactory", "RequestT"]


# Formatting a traceback imports it, which takes a descriptor just when the report may be that there is none left.
importlib.import_module("tokenize")

_exchanging = threading.RLock()
"""Held while a server's observers are exchanged for others."""


def _begin_anew() -> None:
    """In a forked child, where no thread of the parent's gives the lock back."""
    global _exchanging  # noqa: PLW0603
    _exchanging = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)

RequestT = TypeVar("RequestT", default=Any)
AddressT = TypeVar("AddressT", default=Any)
# Not "-> BaseRequestHandler": the standard library's handlers, and functions, are handler classes too.
HandlerFactory: TypeAlias = Callable[[Any, Any, Any], Any]


class BaseServer(ServedInLoop, Generic[RequestT, AddressT]):
    """Accepts requests and gives each to a handler; subclasses say what a request is.

    Methods for the caller:

    - ``__init__(server_address, RequestHandlerClass)``
    - ``serve_forever(poll_interval=0.5)``, ``shutdown(timeout=None)``, ``server_close()``
    - ``drain(timeout)``, ``suspend()``, ``resume()``, ``wait_idle(timeout)``
    - ``handle_request()``: one request, without ``serve_forever()``
    - ``attach(loop)``: be served by a loop that hosts several servers
    - ``fileno() -> int``: for select()
    - ``active_requests``, ``connection_info(request)``, ``add_observer(observer)``

    Methods that may be overridden, in the order of a request's life (the first three run in the loop's thread, the
    others in the worker that serves the request; in a pool of threads all of them run in its workers):

    - ``get_request() -> request, client_address``
    - ``verify_request(request, client_address) -> bool``
    - ``process_request(request, client_address)``
    - ``prepare_request(request, client_address) -> request, client_address``
    - ``verify_client(request, client_address) -> bool``
    - ``finish_request(request, client_address)``
    - ``handle_error(request, client_address)``
    - ``shutdown_request(request)``, ``close_request(request)``

    and beside it: ``server_activate()``, ``server_close()``; ``service_actions()`` after each turn
    of the loop, ``handle_timeout()`` when ``handle_request()`` saw no request within ``timeout``,
    ``drain_request(request)`` when a drain begins.

    Class attributes that may be overridden: ``timeout``, ``observers``, ``drain_timeout``, ``deadlines``,
    ``limits``.
    """

    __module__ = "sockserve"

    timeout: float | None = None
    """Seconds that ``handle_request()`` waits for a request; None: without limit. ``serve_forever()`` ignores it."""

    drain_timeout: float | None = 30.0
    """Seconds that ``server_close()`` waits for workers before it cuts their connections; None: without limit."""

    deadlines: Deadlines | None = None
    """How slow the peer of a connection may be before it is cut; None: as slow as it likes. Read when the server begins
    to serve, and at each look at the requests in progress. A handler's own ``deadlines`` take their place."""

    limits: Limits | None = None
    """How much is taken on at once, in a second, and from one source; None: as much as comes. Asked just before
    ``verify_request()``. Read when the server begins to serve."""

    observers: tuple[Observer, ...] = (LogObserver(),)
    """The objects that hear what happens to requests."""

    _serving_raises_unprepared = True

    # Whether a subclass overrides verify_client().
    _serving_verifies_client = False

    # Whether a loop can serve it beside others.
    _serving_can_share_loop = True

    _serving_patience = 0.0
    """Seconds that the end of a request may wait for its peer in the thread where it is ended."""

    server_address: Address
    RequestHandlerClass: HandlerFactory

    if sys.version_info < (3, 13) and not TYPE_CHECKING:

        def __class_getitem__(cls, arguments: Any) -> Any:
            return super().__class_getitem__(filled_up(cls, arguments))

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        refuse_wrong_order(cls)
        verifies = cls.verify_client is not BaseServer.verify_client
        if cls._serving_verifies_client is not verifies:
            cls._serving_verifies_client = verifies

    def __init__(
        self,
        server_address: Address,
        RequestHandlerClass: HandlerFactory,  # noqa: N803 - stdlib's name
    ) -> None:
        self.server_address = server_address
        self.RequestHandlerClass = RequestHandlerClass
        self.__is_shut_down = threading.Event()
        # What a life before this one has left behind does not stop this one.
        self._serving_state.lifecycle = Lifecycle()
        self.__shutdown_request = False

    # construction and end

    def server_activate(self) -> None:
        """Begin to listen. Nothing to do here; subclasses override it."""

    def server_close(self) -> None:
        """Give back what the server holds. Safe on a half-built server, twice, and while the loop runs, which it ends.

        Not terminal: with a new socket the server can serve again.
        """
        acceptor = self._serving_state.lifecycle.acceptor
        if acceptor is not None:
            # Its loop ends, and the sweeps with it.
            acceptor.listener_closes()
        else:
            end_sweeping(self)

    def _serving_leave_address(self) -> None:
        """Take no new client from now on, before ``server_close()`` waits for workers. Idempotent."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {vars(self).get('server_address')!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.server_close()

    # serving

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve until ``shutdown()``; return within milliseconds of it.

        ``poll_interval`` is the longest time in seconds between two calls of an overridden ``service_actions()``; it
        delays nothing else, and a server that does not override it sleeps while nothing happens.

        Raises ServerClosedError, AlreadyServingError; ListenerLostError when the socket fails, or is closed or replaced
        by something other than ``server_close()``; what a signal handler, ``handle_error()`` or ``service_actions()``
        raises; and of an inline handler only what is no Exception (SystemExit, KeyboardInterrupt).
        """
        self._serving_run(poll_interval)

    def attach(self, loop: Loop, poll_interval: float = 0.5) -> None:
        """Be served by ``loop.run()``, beside other servers, until ``shutdown()``. Raises as ``serve_forever()``."""
        with Deferral():
            self._serving_make_acceptor(loop, poll_interval)

    def _serving_make_acceptor(self, loop: Loop, poll_interval: float) -> Accepting:
        return Acceptor(self, loop, poll_interval)

    def wait_until_serving(self, timeout: float | None = None) -> bool:
        """Wait until a loop serves this server, at most ``timeout`` seconds; say whether one does."""
        return self._serving_state.lifecycle.serving.wait(timeout)

    @needs_no_poll
    def service_actions(self) -> None:
        """Called after each turn of the loop, and at least every ``poll_interval`` seconds if overridden."""

    # stopping

    def _serving_shutdown(self, timeout: float | None = None) -> None:
        """Stop ``serve_forever()``; it has ended when this returns, which takes milliseconds.

        From the loop's own thread (an inline handler, a signal handler in the thread that serves): asks and returns.
        Before the first ``serve_forever()``: that one will return at once. On a server that ran and stopped: no effect.
        Requests in progress go on; see ``drain()`` and ``server_close()``.
        Raises TimeoutError if the loop has not ended after ``timeout`` seconds (None: wait without limit).
        """
        self._serving_state.lifecycle.stop(timeout)

    if TYPE_CHECKING:
        # Programs override shutdown(self): a parameter declared here would make each such override an error to a
        # type checker, though it works.
        shutdown: Any
    else:
        shutdown = _serving_shutdown

    def suspend(self) -> None:
        """Accept no more until ``resume()``; requests in progress go on, new ones wait in the kernel. Idempotent."""
        self._serving_state.lifecycle.suspended = True
        self._serving_state.lifecycle.wake()

    def resume(self) -> None:
        """Accept again. Idempotent."""
        self._serving_state.lifecycle.suspended = self._serving_state.lifecycle.suspended_by_drain = False
        self._serving_state.lifecycle.wake()

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Wait until no request is in progress (but the caller's own), at most ``timeout`` seconds; say whether so.

        After ``suspend()`` this includes a request that was just being accepted.
        """
        return wait_until_all_idle((self,), timeout)

    def drain(self, timeout: float | None = None) -> Drained:
        """Accept no more, let the requests in progress end, cut those that have not after ``timeout`` seconds.

        ``drain_request()`` is called for each of them, and ``draining`` is true from now until the server serves anew.
        The server stays suspended until ``resume()`` or the next ``serve_forever()``. None waits without limit.
        Returns how many requests finished and how many were cut.
        """
        return drain_together((self,), timeout)

    # Whether a wait in the loop's thread has to let it go on.
    _serving_waits_in_turns = False

    def _serving_wait_for_change(self, change: OneShot, timeout: float | None) -> bool:
        return change.wait(timeout)

    @property
    def draining(self) -> bool:
        """Whether handlers that loop should come to an end: a drain or the wait in ``server_close()`` is under way."""
        lifecycle = self._serving_state.lifecycle
        return lifecycle.draining or lifecycle.is_lame

    def drain_request(self, request: RequestT) -> None:
        """A drain has begun and the request is still in progress. Does nothing here; stream servers end its input."""

    # the live table and its observers

    @property
    def active_requests(self) -> tuple[ActiveRequest, ...]:
        """The requests in progress, oldest first, as they are now.

        Without those whose clients may have seen their end; ``wait_idle()`` and ``drain()`` wait for the close itself.
        """
        return table_of(self).snapshot()

    def connection_info(self, request: Request) -> ConnectionInfo:
        """Both ends of the connection of a request, the PROXY header and the TLS handshake, in any thread.

        For handlers that are not of sockserve; those that are have it as ``self.connection_info``. While PREPARE is not
        over it is what the socket itself tells.
        """
        return info_of(self, request)

    def add_observer(self, observer: Observer) -> None:
        """Let ``observer`` hear this server's events, those of requests from the next one on."""
        with _exchanging:
            self.observers = (*self.observers, observer)

    def remove_observer(self, observer: Observer) -> None:
        """Let it hear them no more. Raises ValueError if it does not."""
        with _exchanging:
            remaining = list(self.observers)
            remaining.remove(observer)
            self.observers = tuple(remaining)

    # one request

    def handle_request(self) -> object:
        """Take exactly one request, waiting for it at most ``timeout`` seconds, and the socket's own if that is less.

        Calls ``handle_timeout()`` if none came. A signal neither shortens nor lengthens the wait. Must not be called
        while ``serve_forever()`` runs. Raises ServerClosedError.
        """
        fd = self.fileno()
        if fd < 0:
            raise ServerClosedError(f"{self} is closed: it takes no request before it gets a new socket")
        self._serving_state.lifecycle.tell_serving()
        self._serving_before_handle_request()
        timeouts = (self._serving_socket_timeout(), self._serving_request_timeout())
        limits = [limit for limit in map(limit_of, timeouts) if limit is not None]
        if wait_for_request(self, fd, min(limits, default=None)):
            return self._handle_request_noblock()
        return self.handle_timeout()

    def _serving_before_handle_request(self) -> None:
        """Do what a loop does between two requests."""

    def _serving_socket_timeout(self) -> float | None:
        listener = getattr(self, "socket", None)
        return None if listener is None else listener.gettimeout()

    def _serving_request_timeout(self) -> float | None:
        return self.timeout

    def handle_timeout(self) -> object:
        """Called when ``handle_request()`` saw no request in time. Does nothing here."""

    def _handle_request_noblock(self) -> bool:
        """Take one request that is ready; True if there was one. For callers that saw ``fileno()`` readable."""
        acceptor = self._serving_state.acceptor
        return take_without_loop(self) if acceptor is None else acceptor.take_one()

    # the hooks of a request's life

    def fileno(self) -> int:
        """The descriptor to wait on; negative when closed. Subclasses must say."""
        raise NotImplementedError(f"{type(self).__name__} must define fileno()")

    def get_request(self) -> tuple[RequestT, AddressT]:
        """Take one request from the socket: ``(request, client_address)``. Subclasses must say how.

        What an override raises once the socket's ``accept()`` or ``recvfrom()`` has returned is reported to
        ``handle_error()`` with that request, which is closed, and the server goes on.
        """
        raise NotImplementedError(f"{type(self).__name__} must define get_request()")

    @own
    def verify_request(self, request: RequestT, client_address: AddressT) -> bool:
        """Say whether the request may be served; True here. What it raises goes to ``handle_error()``."""
        return True

    @takes_record(serve)
    def process_request(self, request: RequestT, client_address: AddressT) -> None:
        """Serve the request here and now, in the loop's thread. Mix-ins override it to give it to a worker."""
        serve(self, begin(self, request, client_address))

    def prepare_request(self, request: RequestT, client_address: AddressT) -> tuple[RequestT, AddressT]:
        """Make the request ready for its handler, in the worker; return it and its address, perhaps replaced."""
        return request, client_address

    def verify_client(self, request: RequestT, client_address: AddressT) -> bool:
        """Say whether the client may be served, now that its address is known; true here.

        Called in the worker, after the PROXY header, the TLS handshake and ``prepare_request()``: ``client_address`` is
        the one in the header, and ``connection_info(request)`` tells the rest. If it is false the connection is closed.
        """
        return True

    @property
    def _serving_has_steps(self) -> bool:
        """Whether something comes between ``process_request()`` and ``prepare_request()``."""
        return False

    @property
    def _serving_prepares(self) -> bool:
        """Whether PREPARE has more to do than to call ``prepare_request()``."""
        return self._serving_verifies_client

    @own
    def finish_request(self, request: RequestT, client_address: AddressT) -> None:
        """Run the handler: construct ``RequestHandlerClass(request, client_address, server)``.

        If the peer left before, or its TLS handshake or PROXY header is refused, it is called too, so that an override
        can give back what ``process_request()`` took; then it raises that PeerError, and no handler runs.
        """
        if unprepared and (error := unprepared.pop(id(request), None)) is not None:
            raise error
        self.RequestHandlerClass(request, client_address, self)

    def shutdown_request(self, request: RequestT) -> None:
        """End the request; then ``close_request()``."""
        self.close_request(request)

    def close_request(self, request: RequestT) -> None:
        """Give back what the request holds. Nothing to do here."""

    def handle_error(self, request: RequestT, client_address: AddressT) -> None:
        """Report the exception being handled: a logged traceback, or one quiet line when the peer merely left.

        ``request`` and ``client_address`` are None if ``get_request()`` raised. What an override raises ends the loop,
        or the worker.
        """
        error = sys.exception()
        if isinstance(error, RefusedError):
            log.info("refused %s: %s", client_address, error)
        elif error is not None and has_left(request, error, client_address):
            log.debug("%s left: %s", client_address, error)
        else:
            log.error("Exception occurred during processing of request from %s", client_address, exc_info=error)
