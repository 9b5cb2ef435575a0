"""Servers as a program: ``serve()`` binds, serves, and on a signal stops without losing a request."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sockserve.core.base_server import HandlerFactory
from sockserve.core.deferral import Deferral
from sockserve.core.events import Counters, Observer
from sockserve.core.handlers import StreamRequestHandler
from sockserve.core.lifecycle import CutShort
from sockserve.core.loop import Loop
from sockserve.log import counted, log
from sockserve.run.loading import load_handler
from sockserve.run.opening import AnyServer, address_of, check_tls, open_servers, reload_tls, with_inherited
from sockserve.run.options import check, has_workers, server_attributes
from sockserve.run.orphans import leave_orphans_to_a_parent
from sockserve.run.program import DESKS, Desk, Program
from sockserve.run.service_manager import notifying
from sockserve.run.signals import answering_for_processes, handling, noting_sigterm, telling_stacks
from sockserve.run.states import State, States
from sockserve.run.stopping import Stop, time_limit

if hasattr(os, "fork"):
    from sockserve.run.processes import Processes, serve_in_processes

__all__ = ["serve"]


def serve(
    handler: HandlerFactory | str,
    *addresses: str,
    # what runs the handler
    model: str = "thread",
    max_children: int | None = None,
    max_workers: int | None = None,
    # in how many processes
    processes: int | None = None,
    max_requests: int | None = None,
    worker_timeout: float | None = 60.0,
    # how it listens
    backlog: int | None = None,
    # what comes before a handler
    tls: Any = None,
    proxy_from: Sequence[str] = (),
    direct_from: Sequence[str] | None = None,
    # how it is watched
    health: str | None = None,
    agent: str | None = None,
    control: str | None = None,
    # how it ends
    drain_timeout: float | None = 30.0,
    lame_duck: float = 0.0,
    install_signal_handlers: bool = True,
    # what hears of it
    observers: Iterable[Observer] = (),
    ready: Callable[[tuple[AnyServer, ...]], object] | None = None,
) -> Counters:
    """Serve the addresses until SIGTERM or SIGINT, let the requests in progress end, and return what was counted.

    All addresses are bound, or none. On the signal their ports are free at once, handlers that wait for input see
    end-of-file, and what is still in progress after ``drain_timeout`` seconds (None: without limit) is cut; a second
    signal cuts at once. A thread that goes on even then is left behind as a daemon, an inline handler is ended by an
    exception, a child is killed. On return all is closed and the signals mean again what they did before.

    As process 1 (of a container), called in the main thread of a program without other threads or children, it forks:
    process 1 reaps orphans and passes signals on, its child returns from here, and process 1 ends when that does, with
    its exit status. No status is taken from the program's own children. Else as process 1 a warning is logged.

    handler: the class, or any callable that takes ``(request, client_address, server)``; or "package.module:Class".
    addresses: ``tcp://host:port``, ``tcp://[::1]:0``, ``udp://…``, ``unix:/path``, ``unix-dgram:/path``, ``fd:N``;
        ``tls://host:port`` is TCP with TLS; ``systemd:`` all sockets that systemd passes, ``systemd:web`` those of the
        name.
        On every interface (``tcp://*:80``, or ``tcp://:80``) two servers have the port, for IPv4 and for IPv6; of a
        host name all addresses are bound, each by a server. A descriptor is closed at the end.
    model: "thread", "pool", "fork", "greenlet" or "inline", which serves one request at a time, whatever the addresses.
    max_children: with "fork", how many requests are served at once; None: the class's default.
    max_workers: with "pool", how many threads each address has at most; None: the class's default.
    processes: how many worker processes serve, kept by a supervisor as by ``PreForkMixIn``; None: this process serves.
        Then SIGHUP replaces them, and if the handler was given by its name they import the program's modules anew;
        SIGTTIN and SIGTTOU make it one more or less. Observers hear in the workers; the counters are those of all, and
        no address is left before all are. ``suspend()`` has an effect once all servers are suspended, and what the
        workers have in progress is nothing that ``wait_idle()`` or ``drain()`` of a server would know of.
        Without processes a SIGHUP with its default meaning is logged as without effect, unless it loads ``tls`` anew,
        and so are SIGTTIN and SIGTTOU if there is no controlling terminal, which would stop a background job by them.
    max_requests: after about how many requests a worker is replaced; None: never.
    worker_timeout: seconds after which a worker whose loop stands still is replaced; None: never.
    backlog: connections that the kernel may hold until they are accepted (listen(2)); None: as many as the system
        allows.
    tls: what the ``tls://`` addresses need, and no other has: a ``sockserve.TLS``, an ``ssl.SSLContext``, or a function
        that makes one. SIGHUP loads it anew.
    proxy_from, direct_from: which peers must send a PROXY header, and which may come without: as the attributes of
        ``TCPServer``.
    health: an address as above, without TLS, where HTTP is answered: ``/live``, ``/ready`` (200, or 503 unless new
        clients are welcome and a worker serves) and ``/metrics`` for Prometheus. A supervisor answers, whatever the
        workers are busy with: without ``processes`` there is one worker then, with "fork" too.
    agent: an address where HAProxy's agent-check is answered, in the same way: "up ready", "drain" or "down".
    control: ``unix:/path`` of a socket at which ``sockserve ctl`` asks and tells what to do, in the same way. It has
        the permissions 0600, and only this process's user and root are heard.
    lame_duck: seconds between SIGTERM and the end of accepting, for load balancers to hear of it. Until then all is
        served as before, but ``server.draining`` is true, ``/ready`` is 503, and HTTP connections are kept no longer.
        A second SIGTERM, and SIGINT at any time, ends that at once. inf: until then.
    install_signal_handlers: false leaves signals alone. So does any other thread than the main one, where Python allows
        no handlers. Serving then ends when ``shutdown()`` has been called on every server.
    observers: hear what happens to requests, beside the log and the counters.
    ready: called with the servers, in the order of the addresses, once all of them listen.

    Raises AddressError for a text that is no address, or one that the handler's class cannot serve (a
    StreamRequestHandler on datagrams); BindError for one that the system refuses; ValueError for a model that this
    platform lacks, or a name that is no handler's, ImportError for a model whose extra is not installed;
    ListenerLostError when a listening socket fails later, once the requests in progress have ended; CrashLoopError when
    workers end as soon as they begin, again and again.
    """
    # First of all, so that there is nothing in it but what was given.
    given = locals()
    if not addresses:
        raise TypeError("serve() needs an address")
    values = check(given)
    check_tls(addresses, tls)
    addresses = tuple(with_inherited(addresses))
    leave_orphans_to_a_parent()
    name = handler if isinstance(handler, str) else None
    factory = load_handler(handler) if isinstance(handler, str) else handler
    handles_signals = install_signal_handlers and threading.current_thread() is threading.main_thread()
    settings: dict[str, object] = {
        # A thread that ignores being cut must not keep the process from ending.
        "daemon_threads": True,
        # When they are closed their requests have had all the time there is.
        "drain_timeout": 0.0,
        "tls": tls,
        **server_attributes(values),
    }
    with Deferral() as signals, contextlib.ExitStack() as last_first:
        early = last_first.enter_context(noting_sigterm(noted=handles_signals))
        loop, states = last_first.enter_context(Loop()), States()
        if handles_signals:
            # Another one is a part of a program that speaks for itself.
            last_first.enter_context(notifying(states, loop))
        servers = open_servers(factory, addresses, model, settings, signals)
        for server in servers:
            last_first.callback(server.server_close)
        for server in servers:
            log.info("listening on %s", address_of(server))
        program = Program(
            servers=servers,
            loop=loop,
            states=states,
            desks=_open_desks(values, signals, last_first),
            observers=tuple(observers),
            ready=functools.partial(ready or _tell_nobody, tuple(servers)),
            signals=signals,
            early=early,
            handles_signals=handles_signals,
        )
        if not has_workers(values):
            counters = _serve_here(program, model, values["drain_timeout"], values["lame_duck"])
        else:
            # The table has seen that there is fork.
            limits = Processes(  # pyright: ignore[reportPossiblyUnboundVariable]
                processes or 1, max_requests, values["worker_timeout"], values["drain_timeout"], values["lame_duck"]
            )
            counters = serve_in_processes(program, name, limits)  # pyright: ignore[reportPossiblyUnboundVariable]
        states.change(State.STOPPED)
    log.info(
        "stopped: %s accepted, %d handled, %d failed, %d refused",
        counted(counters.accepted, "request"),
        counters.handled,
        counters.failed,
        counters.refused,
    )
    return counters


serve.__module__ = "sockserve"


def _serve_here(program: Program, model: str, drain_timeout: float | None, lame_duck: float | None) -> Counters:
    counters = Counters()
    servers, loop, states, signals = program.servers, program.loop, program.states, program.signals
    with contextlib.ExitStack() as last_first:
        last_first.callback(loop.close)
        stop = Stop(servers, loop, states, lame_duck)
        for server in servers:
            server.observers += (counters, *program.observers, stop)
            server.attach(loop)
        if program.handles_signals:
            has_tls = any(server.tls is not None for server in servers)
            reload = functools.partial(reload_tls, servers) if has_tls else None
            last_first.enter_context(handling(stop.on_signal))
            last_first.enter_context(telling_stacks())
            last_first.enter_context(answering_for_processes(loop, reload, states.reloading))
            if model in ("inline", "greenlet") and (drain_timeout, lame_duck) != (None, None):
                last_first.enter_context(time_limit(stop, drain_timeout))
        signals.lifted(program.ready)
        if not program.early:
            states.change(State.READY)

        def run() -> None:
            with contextlib.suppress(CutShort):
                if program.early:
                    # No client was ever welcome.
                    stop.lame_duck = 0.0
                for signum in program.early:
                    stop.on_signal(signum)
                loop.run()

        try:
            signals.lifted(run)
        finally:
            signals.lifted(lambda: stop.drain(drain_timeout))
    return counters


def _open_desks(values: dict[str, Any], signals: Deferral, undo: contextlib.ExitStack) -> list[Desk]:
    desks: list[Desk] = []
    for name in DESKS:
        if values[name] is not None:
            servers = open_servers(StreamRequestHandler, with_inherited([values[name]]), "inline", DESKS[name], signals)
            for server in servers:
                undo.callback(server.server_close)
                log.info("%s: listening on %s", name, address_of(server))
            desks.append(Desk(name, servers))
    return desks


def _tell_nobody(_: tuple[AnyServer, ...]) -> None:
    """Nothing: no ``ready`` was given."""
