"""Servers as a program: ``serve()`` binds, serves, and on a signal stops without losing a request."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable

from sockserve.core.base_server import HandlerFactory
from sockserve.core.events import Counters, Observer
from sockserve.core.lifecycle import CutShort
from sockserve.core.loop import Loop
from sockserve.net.address import format_address
from sockserve.run.opening import AnyServer, open_servers
from sockserve.run.signals import handling
from sockserve.run.stopping import Stop, time_limit

__all__ = ["serve"]

log = logging.getLogger("sockserve")


def serve(
    handler: HandlerFactory,
    *addresses: str,
    # who runs the handler
    model: str = "thread",
    max_children: int | None = None,
    max_workers: int | None = None,
    # how it listens
    backlog: int | None = None,
    # how it ends
    drain_timeout: float | None = 30.0,
    install_signal_handlers: bool = True,
    # who hears of it
    observers: Iterable[Observer] = (),
    ready: Callable[[tuple[AnyServer, ...]], object] | None = None,
) -> Counters:
    """Serve the addresses until SIGTERM or SIGINT, let the requests in progress end, and return what was counted.

    All addresses are bound, or none. On the signal their ports are free at once, handlers that wait for input see
    end-of-file, and what is still in progress after ``drain_timeout`` seconds (None: without limit) is cut; a second
    signal cuts at once. A thread that goes on even then is left behind as a daemon, an inline handler is ended by an
    exception, a child is killed. On return all is closed and the signals mean again what they did before.

    handler: the class, or any callable that takes ``(request, client_address, server)``.
    addresses: ``tcp://host:port``, ``tcp://[::1]:0``, ``udp://…``, ``unix:/path``, ``unix-dgram:/path``, ``fd:N``. Of a
        host name one address is bound, an IPv4 one if there is any. A descriptor is closed at the end.
    model: "thread", "pool", "fork", "greenlet" or "inline", which serves one request at a time, whatever the addresses.
    max_children: with "fork", how many requests are served at once; None: the class's default.
    max_workers: with "pool", how many threads each address has at most; None: the class's default.
    backlog: connections that the kernel may hold while nobody accepts (listen(2)); None: as many as the system allows.
    install_signal_handlers: false leaves signals alone. So does any other thread than the main one, where Python allows
        no handlers. Serving then ends when ``shutdown()`` has been called on every server.
    observers: hear what happens to requests, beside the log and the counters.
    ready: called with the servers, in the order of the addresses, once all of them listen.

    Raises AddressError for a text that is no address, or one that the handler's class cannot serve (a
    StreamRequestHandler on datagrams); BindError for one that the system refuses; ValueError for a model that this
    platform lacks, ImportError for one whose extra is not installed; ListenerLostError when a listening socket fails
    later, once the requests in progress have ended.
    """
    _check(addresses, model, max_children, max_workers, drain_timeout)
    others = tuple(observers)
    handles_signals = install_signal_handlers and threading.current_thread() is threading.main_thread()
    counters = Counters()
    settings: dict[str, object] = {
        # A thread that ignores being cut must not keep the process from ending.
        "daemon_threads": True,
        # When they are closed their requests have had all the time there is.
        "drain_timeout": 0.0,
        "request_queue_size": backlog,
        "max_children": max_children,
        "max_workers": max_workers,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    with contextlib.ExitStack() as last_first:
        servers = open_servers(handler, addresses, model, given)
        for server in servers:
            last_first.callback(server.server_close)
        loop = last_first.enter_context(Loop())
        stop = Stop(servers, loop)
        for server in servers:
            server.observers += (counters, *others, stop)
            server.attach(loop)
        if handles_signals:
            last_first.enter_context(handling(stop.on_signal))
            if model in ("inline", "greenlet") and drain_timeout is not None:
                last_first.enter_context(time_limit(stop, drain_timeout))
        for server in servers:
            log.info("listening on %s", format_address(server.socket))
        if ready is not None:
            ready(tuple(servers))
        try:
            with contextlib.suppress(CutShort):
                loop.run()
        finally:
            stop.drain(drain_timeout)
    log.info(
        "stopped: %d requests accepted, %d handled, %d failed, %d refused",
        counters.accepted,
        counters.handled,
        counters.failed,
        counters.refused,
    )
    return counters


def _check(
    addresses: tuple[str, ...],
    model: str,
    max_children: int | None,
    max_workers: int | None,
    drain_timeout: float | None,
) -> None:
    if not addresses:
        raise TypeError("serve() needs an address")
    if max_children is not None and model != "fork":
        raise ValueError(f"max_children limits child processes, and the model {model!r} has none")
    if max_workers is not None and model != "pool":
        raise ValueError(f"max_workers limits a pool's threads, and the model {model!r} has none")
    if max_workers is not None and max_workers < 1:
        raise ValueError(f"max_workers must be at least 1: {max_workers!r}")
    if drain_timeout is not None and not 0 <= drain_timeout <= threading.TIMEOUT_MAX:
        raise ValueError(f"drain_timeout must be from 0 to {threading.TIMEOUT_MAX} seconds, or None: {drain_timeout!r}")
