"""A greenlet for every request, all of them in the loop's thread."""

# ruff: noqa: D102 - a dispatcher's methods are explained in dispatch.Dispatcher

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Callable
from typing import Any, cast

from sockserve.concurrency.cooperative.hub import Hub
from sockserve.concurrency.cooperative.request_greenlet import RequestGreenlet, current_request_greenlet
from sockserve.concurrency.cooperative.sockets import CooperativeMethods, CooperativeSocket
from sockserve.concurrency.cooperative.watchdog import Watchdog
from sockserve.concurrency.dispatch import Dispatcher, DispatchingMixIn
from sockserve.core.accepting import Acceptor
from sockserve.core.active_requests import LiveRequest
from sockserve.core.base_order import refuse_other_way
from sockserve.core.base_server import BaseServer
from sockserve.core.cutting import cut_others, tell_cut
from sockserve.core.lifecycle import CUT_GRACE, CutShort
from sockserve.core.loop import Loop
from sockserve.core.one_shot import OneShot
from sockserve.core.request_life import unprepared
from sockserve.core.serving import Accepting
from sockserve.net.tls import is_tls

__all__ = ["GreenletDispatcher", "GreenletMixIn", "cooperative"]


NO_GREENLETS = {"ThreadingMixIn", "ForkingMixIn", "ThreadPoolMixIn"}
"""Mix-ins that also decide where a handler runs."""


class GreenletDispatcher(Dispatcher):
    """Runs each request in a greenlet of the loop's thread."""

    def __init__(self, watch: Callable[[Loop], Watchdog | None] = lambda _: None) -> None:
        self.hub = Hub()
        self._watch = watch
        self._watchdog: Watchdog | None = None
        self._left_behind: list[Hub] = []
        self._loop: Loop | None = None

    def dispatch(self, serve: Callable[[], str], release: Callable[[], None]) -> RequestGreenlet:
        return self.run(serve)

    def run(self, function: Callable[..., object], argument: object = None) -> RequestGreenlet:
        """Run a function, with its argument if it has one, in a greenlet until it pauses or ends."""
        hub = self.hub_here()
        if self._loop is not None:
            return hub.begin(function, argument)
        # No loop runs greenlets here: this is a standard library's server, or handle_request(). So run it to its end.
        return hub.run(function if argument is None else functools.partial(function, argument))

    def hub_here(self) -> Hub:
        """Return the hub of this thread; a greenlet can never leave the thread that it began in."""
        if self.hub.is_elsewhere():
            left, self.hub = self.hub, Hub()
            if left.greenlets:
                self._left_behind.append(left)
            else:
                left.unreserve()
            if self._loop is not None:
                self._host(self._loop)
        return self.hub

    def _host(self, loop: Loop) -> None:
        self.hub.move_to(loop)
        self.hub.lets_rest = True
        self.hub.reserve()

    def close(self, timeout: float | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        for hub in (self.hub, *self._left_behind):
            is_idle = hub.wait_until_idle(None if deadline is None else deadline - time.monotonic())
            if is_idle or hub.is_lost():
                hub.close_threads()
                hub.unreserve()
            if not is_idle:
                return False
        self._left_behind.clear()
        return True

    def kill(self, timeout: float) -> bool:
        """Raise GreenletExit in the greenlets but the caller; return whether all end in ``timeout`` seconds a hub."""
        return False not in [hub.kill(timeout) for hub in (self.hub, *self._left_behind)]

    def attach(self, loop: Loop) -> None:
        self._loop = loop
        self._watchdog = self._watch(loop)
        if not self.hub.is_elsewhere():
            self._host(loop)

    def detach(self) -> None:
        self._loop = None
        self.hub.dismiss()
        if not self.hub.greenlets:
            self.hub.unreserve()
        if self._watchdog is not None:
            self._watchdog.stop()


class GreenletMixIn(DispatchingMixIn):
    """Serves each request in a greenlet. Write it before the server class: ``class S(GreenletMixIn, TCPServer)``.

    ``self.request``, and with it ``rfile`` and ``wfile``, is a cooperative socket, with TLS too: while it waits, other
    handlers run, in the same thread. What blocks in any other way (a lock, a database driver, ``time.sleep()``) stops
    them all: see ``sockserve.greenlets`` for what to use. The socket that a datagram is answered on is a plain one.

    ``shutdown()`` returns once nothing more is accepted. Requests in progress go on in the thread that serves, and
    ``serve_forever()`` returns when they have ended. After ``drain_timeout`` seconds they are cut, and a second later
    ended by GreenletExit.
    ``handle_request()`` returns when its request has ended.

    Over a standard library's server (``class S(GreenletMixIn, http.server.HTTPServer)``) it serves one request at a
    time: that one's own ``serve_forever()`` waits for nothing but its listener. Use a server of sockserve.
    """

    slow_handler_warning: float | None = 5.0
    """Seconds that a handler may keep all others from going on before a warning tells where it is; None: never."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_other_way(
            cls, NO_GREENLETS, "a request runs in a greenlet of the loop's thread or where {other} puts it"
        )

    def make_dispatcher(self) -> Dispatcher:
        """One that starts greenlets."""
        return GreenletDispatcher(self._serving_watch)

    def _serving_watch(self, loop: Loop) -> Watchdog | None:
        if self.slow_handler_warning is None:
            return None
        watchdog = Watchdog(self, loop, lambda: self.slow_handler_warning)
        watchdog.start()
        return watchdog

    def _serving_make_acceptor(self, loop: Loop, poll_interval: float) -> Accepting:
        return Acceptor(self, loop, poll_interval, self._serving_dispatcher, CooperativeSocket)

    def _serving_dispatch(self, live: LiveRequest) -> None:
        if isinstance(live.request, socket.socket):
            request = cooperative(live.request)
            if request is not live.request:
                live.table.replace(live, request)
        self._serving_dispatcher.run(self._serving_work, live)

    def _serving_work(self, live: LiveRequest) -> str:
        live.greenlet = current_request_greenlet()
        try:
            return super()._serving_work(live)
        except CutShort:
            # It ends this request alone: the loop has others.
            tell_cut(self, live)
            return live.outcome

    def _serving_wrapped(self, request: Any) -> Any:
        # Before the handshake: one that has begun must not stop all others.
        return cooperative(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Run the handler; a request that ``prepare_request()`` wrapped for TLS becomes cooperative before."""
        if is_tls(request):
            cooperative(request)
        hook: Any = super().finish_request
        handler_class: Any = cast("Any", self).RequestHandlerClass
        new: Any = object.__new__
        is_plain = type(handler_class) is type and handler_class.__new__ is new
        if is_plain and not unprepared and getattr(hook, "__func__", None) is BaseServer.finish_request:
            # No local for the bound method: the frame would keep it for every waiting client.
            del hook
            # perf: as type.__call__() does, without its frame of C, which each switch between greenlets would copy.
            # NOTEBOOK.md#greenlets-and-ping500-p2
            handler = new(handler_class)
            handler.__init__(request, client_address, self)
        else:
            hook(request, client_address)

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve until ``shutdown()``, and until the requests in progress then have ended."""
        try:
            super().serve_forever(poll_interval)
        except BaseException:
            self._serving_loop_ended(failed=True)
            raise
        self._serving_loop_ended(failed=False)

    def _serving_loop_ended(self, *, failed: bool) -> None:
        """Let the requests in progress end, in this thread; after ``drain_timeout`` seconds they are cut."""
        if failed:
            self._serving_dispatcher.hub.is_stranded = True
            return
        hub = self._serving_dispatcher.hub_here()
        lifecycle = self._serving_state.lifecycle
        if lifecycle.has_served and hub.greenlets:
            lifecycle.draining = True
        if not hub.wait_until_idle(self.drain_timeout):
            cut_others(self)
            if not hub.wait_until_idle(CUT_GRACE):
                hub.kill(CUT_GRACE)
        hub.close_threads()
        hub.unreserve()

    def _serving_end_cut_workers(self) -> bool:
        # A handler that neither reads nor writes has not noticed that its connection was cut.
        return super()._serving_end_cut_workers() or bool(self._serving_dispatcher.kill(CUT_GRACE))

    _serving_waits_in_turns = True

    def _serving_wait_for_change(self, change: OneShot, timeout: float | None) -> bool:
        return self._serving_dispatcher.hub.wait(change, timeout)  # type: ignore[no-any-return]


def cooperative(sock: socket.socket) -> socket.socket:
    """Return a cooperative socket for a connection: use only what is returned, which may be a new object."""
    if isinstance(sock, CooperativeMethods):
        return sock
    if not is_tls(sock):
        limit = sock.gettimeout()
        made = CooperativeSocket(sock.family, sock.type, sock.proto, sock.detach())
        made.settimeout(limit)
        return made
    # A program without TLS need not pay for the ssl module.
    from sockserve.concurrency.cooperative.tls_sockets import CooperativeTLSSocket  # noqa: PLC0415

    return CooperativeTLSSocket.adopt(sock)
