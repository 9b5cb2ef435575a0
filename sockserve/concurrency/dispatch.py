"""The dispatcher, which decides where a handler runs, and the mix-in that gives one to a server.

Rule 1. A dispatcher knows neither socket nor server; it runs the functions that it is given.
Rule 2. A mix-in uses nothing of a server but ``socketserver``'s hooks, so it works on any server class.
"""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Callable
from typing import Any, Protocol

from sockserve.core.accepting import Acceptor
from sockserve.core.active_requests import LiveRequest
from sockserve.core.base_order import refuse_wrong_order
from sockserve.core.cutting import cut_others
from sockserve.core.events import Events
from sockserve.core.lifecycle import CUT_GRACE
from sockserve.core.loop import Loop
from sockserve.core.request_life import begin, call, contain, fail, give_up, let_go, serve, takes_record
from sockserve.core.serving import Accepting, Served, finish_lingering, table_of
from sockserve.log import log
from sockserve.net.lingering import LINGER_SECONDS
from sockserve.seconds import limit_of

__all__ = ["Dispatcher", "DispatchingMixIn", "WaitingForWorkersMixIn"]


class Dispatcher(Protocol):
    """Runs requests somewhere. Subclass it: ``dispatch()`` and ``close()`` are needed, the rest does nothing here.

    ``dispatch()`` is called in the thread that takes requests, ``close()`` in the thread that closes the server, all
    else in the thread of the loop that serves.
    """

    def dispatch(self, serve: Callable[[], str], release: Callable[[], None]) -> object:
        """Have ``serve()`` called, which returns what became of the request; return the worker that calls it.

        If the worker gets its own copy of the request, call ``release()`` here. Raises if there can be no worker now;
        then neither was called.
        """
        ...

    def reap(self) -> None:
        """Forget finished workers. Called once per turn of the loop."""
        return

    def full(self) -> bool:
        """Whether no request can be taken now: the loop does not accept then. False here."""
        return False

    def close(self, timeout: float | None) -> bool:
        """Wait at most ``timeout`` seconds (None: without limit) for the workers; return whether all are done."""
        ...

    def attach(self, loop: Loop) -> None:
        """Wake this loop, which begins to serve, when ``reap()`` has something to do."""
        return

    def detach(self) -> None:
        """Forget the loop, which ends."""
        return

    def must_poll(self) -> float | None:
        """Return after how many seconds ``reap()`` is due though nothing wakes the loop; None, as here: never."""
        return None


Dispatcher.__module__ = "sockserve"


class WaitingForWorkersMixIn(Served):
    """Makes ``server_close()`` wait for the workers that serve requests."""

    drain_timeout: float | None = 30.0
    """Seconds that ``server_close()`` waits for workers before it cuts their connections; None: without limit."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_wrong_order(cls)

    def _serving_close_workers(self, timeout: float | None) -> bool:
        """Wait for the workers at most ``timeout`` seconds; return whether all are done."""
        raise NotImplementedError

    def server_close(self) -> None:
        """Close the server, then wait for its workers; after ``drain_timeout`` seconds their connections are cut.

        A datagram socket is closed after the wait, because the workers answer on it. An exception that ends the wait,
        such as KeyboardInterrupt, cuts the connections at once and propagates.
        """
        if getattr(self, "socket_type", None) == socket.SOCK_DGRAM:
            try:
                self._serving_wait_for_workers()
            finally:
                super().server_close()
        else:
            super().server_close()
            try:
                self._serving_wait_for_workers()
            finally:
                finish_lingering(self)

    def _serving_wait_for_workers(self) -> None:
        lifecycle = self._serving_state.lifecycle
        lifecycle.draining = True
        if lifecycle.acceptor is not None:
            # If there was no shutdown() before, new requests would come in while we wait for the old ones.
            lifecycle.acceptor.listener_closes()
        try:
            if not self._serving_close_workers(limit_of(self.drain_timeout, "drain_timeout")):
                cut_others(self)
                if not self._serving_end_cut_workers():
                    log.warning("%s: closed, while workers still run: %s", self, table_of(self).snapshot())
        except BaseException:
            cut_others(self)
            raise
        finally:
            lifecycle.draining = False

    def _serving_end_cut_workers(self) -> bool:
        return self._serving_close_workers(CUT_GRACE)


class DispatchingMixIn(WaitingForWorkersMixIn):
    """Gives each request to a dispatcher, which the concrete mix-ins make."""

    __module__ = "sockserve"

    _serving_patience = LINGER_SECONDS

    @property
    def _serving_dispatcher(self) -> Any:
        # Made on first use: a mix-in has no __init__, which a subclass could forget to call.
        state = self._serving_state
        dispatcher = state.dispatcher
        if dispatcher is None:
            dispatcher = state.dispatcher = self.make_dispatcher()
        return dispatcher

    def _serving_make_acceptor(self, loop: Loop, poll_interval: float) -> Accepting:
        return Acceptor(self, loop, poll_interval, self._serving_dispatcher)

    def make_dispatcher(self) -> Dispatcher:
        """Make the dispatcher of this server, once. A mix-in of your own overrides this, and nothing else."""
        raise NotImplementedError(f"{type(self).__name__} mixes in no way to run a handler")

    def _serving_process(self, live: LiveRequest) -> None:
        live.offer()
        live.state = "dispatch"
        live.thread = None
        if live.events.dispatch:
            Events.emit(live.events.dispatch, self, live)
        try:
            self._serving_dispatch(live)
        except BaseException:
            if live.claim("loop"):
                # Our own servers take it from the table; a standard library's server does not know of it.
                table_of(self).discard(live)
            else:
                live.owner = "worker"
            raise

    @takes_record(_serving_process)
    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the request to a worker. Raises what makes that impossible."""
        self._serving_process(begin(self, request, client_address))

    def _serving_dispatch(self, live: LiveRequest) -> None:
        release = functools.partial(self._serving_release, live)
        # Not a partial: a call through C takes more of the thread's stack than one from Python to Python.
        self._serving_dispatcher.dispatch(lambda: self._serving_work(live), release)

    def _serving_release(self, live: LiveRequest) -> None:
        """Close this process's copy of a request that a child process serves."""
        try:
            self.close_request(live.request)
        except Exception:
            # The request goes on in the child: this error is not its end.
            log.exception("%s: cannot close the parent's copy of %s", self, live.client_address)
            if isinstance(live.request, socket.socket):
                live.request.close()

    def _serving_serve(self, live: LiveRequest) -> None:
        live.thread = threading.get_ident()
        contain(self, live, serve)

    @takes_record(_serving_serve)
    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a request from PREPARE to SHUTDOWN, errors included, in the thread that calls this.

        It raises no Exception: a server may submit it to an executor of its own.
        """
        self._serving_serve(begin(self, request, client_address))

    def _serving_work(self, live: LiveRequest) -> str:
        try:
            # The loop may have claimed it: a signal handler's exception ended its wait for the thread's beginning.
            if live.claim("worker"):
                call(self.process_request_thread, self, live)
        except BaseException as error:
            # Raised before process_request_thread(), or in an override of it: nothing else closes the request then.
            if live.state != "dispatch" or not (live.owner == "worker" or live.claim("worker")):
                raise
            live.thread = threading.get_ident()
            if not isinstance(error, Exception):
                give_up(self, live)
                raise
            fail(self, live, error)
        if live.state == "dispatch" and live.owner == "worker":
            let_go(self, live, "dispatch")
        return live.outcome

    def _serving_close_workers(self, timeout: float | None) -> bool:
        dispatcher: Any = self._serving_state.dispatcher
        return dispatcher is None or bool(dispatcher.close(timeout))
