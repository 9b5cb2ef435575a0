"""A worker process, from the inside: what it is told, what it tells, and how it ends.

Rule 1. The supervisor decides and measures the time; a worker does what it is told, at once, and ends when nothing is
in progress any more. Without a supervisor it ends within 5 seconds.
Rule 2. It is told through a socket and not by signals: a terminal and a service manager signal the whole group.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from sockserve.concurrency.children import leave_process
from sockserve.concurrency.prefork.patience import Patience
from sockserve.concurrency.prefork.protocol import (
    CAUSE,
    CUT,
    DRAIN,
    FREE,
    HANDLED,
    LAME,
    LEAVE,
    LOOK,
    RETIRE,
    SUSPEND,
)
from sockserve.concurrency.prefork.worker_commands import Duties
from sockserve.concurrency.prefork.worker_link import Link
from sockserve.core.events import LogObserver, Observer
from sockserve.core.lifecycle import Lifecycle, wait_until_idle
from sockserve.core.one_shot import OneShot
from sockserve.core.serving import ServedInLoop, begin_anew, finish_lingering, serving_of, table_of
from sockserve.core.taken_signals import take, when_forked
from sockserve.log import log

__all__ = ["be_worker", "live"]


ORPHAN_DRAIN = 3.0
"""Seconds that requests in progress get when the supervisor is gone."""

ORPHAN_END = 1.0
"""Seconds after that, until such a worker ends whatever it is at: both are less than the 5 that are promised."""


def live(
    link: Link,
    servers: Sequence[Any],
    serve: Callable[[], None],
    finish: Callable[[], None] = lambda: None,
    *,
    observers: Sequence[Observer] = (),
    shares_listener: bool,
) -> None:
    """Live a worker's life: do what the supervisor says, ``serve()``, and return when no request is in progress.

    ``serve`` returns when the worker was told to leave; ``finish``, called after that was told, when no request needs a
    loop any more. ``shares_listener``: whether other workers accept from the same listeners. Raises what they raise,
    and RuntimeError if there is no thread to be had.
    """
    duties = Duties(link, servers)
    for server in servers:
        begin_anew(server)
        serving_of(server).shares_listener = shares_listener
        vars(server)["worker_id"] = link.orders.worker_id
        server.observers = (*getattr(server, "observers", (LogObserver(),)), *observers, duties)
        if not isinstance(server, ServedInLoop):
            _beat_and_count_by_hooks(server, link, duties)
    _obey(link, duties)
    serve()
    link.has_stopped()
    finish()
    for server in servers:
        server.server_close()
    for server in servers:
        # Those in daemon threads too.
        wait_until_idle([(Lifecycle(), table_of(server))], None, OneShot.wait)
        finish_lingering(server)
    duties.wait_to_end()


def _beat_and_count_by_hooks(server: Any, link: Link, duties: Duties) -> None:
    """On a standard library's server, whose loop is not ours and tells no observer; in one worker's copy of it."""
    # It is ready after the first turn, in which it may have accepted.
    link.page.begin()
    service_actions, get_request, close_request = server.service_actions, server.get_request, server.close_request

    def beat() -> None:
        service_actions()
        link.beat()

    def accept() -> Any:
        accepted = get_request()
        duties.begin_one()
        return accepted

    def close(request: Any) -> None:
        close_request(request)
        duties.end_one(HANDLED)

    server.service_actions = beat
    server.get_request = accept
    server.close_request = close


def _obey(link: Link, duties: Duties) -> None:
    link.when_called_off = duties.leave
    duties.pause_or_go_on()

    take(signal.SIGTERM, lambda _: duties.leave())
    threading.Thread(target=_listen, args=(link, duties), name="sockserve-control", daemon=True).start()


def _listen(link: Link, duties: Duties) -> None:
    patience = Patience(link, duties.servers)
    verbs: dict[int, Callable[[], None]] = {
        RETIRE[0]: duties.retire,
        LEAVE[0]: duties.leave,
        DRAIN[0]: duties.drain,
        CUT[0]: duties.cut,
        SUSPEND[0]: duties.pause_or_go_on,
        LOOK[0]: duties.look,
        FREE[0]: patience.free,
        LAME[0]: duties.be_lame,
    }
    while (commands := link.next_orders(patience.longest_wait())) is not None:
        for command in commands:
            _do(verbs[command])
        _do(patience.look)
    log.warning("worker %d: its supervisor is gone; it drains and ends", link.orders.worker_id)
    _do(duties.drain)
    # The end of the main thread's work is the end of the process, and of these waits.
    never = OneShot()
    never.wait(ORPHAN_DRAIN)
    _do(duties.cut)
    never.wait(ORPHAN_END)
    os._exit(1)


def _do(verb: Callable[[], None]) -> None:
    try:
        verb()
    except Exception:
        log.exception("a worker cannot do what it was told")


def be_worker(link: Link, work: Callable[[Link], None]) -> NoReturn:
    """Do a worker's work and end the process."""
    status = 1
    try:
        when_forked(link.let_go)
        link.write_stacks_on(link.orders.dump_signal)
        work(link)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        link.tell(CAUSE + f"SystemExit: {error}".encode(errors="replace"))
    except BaseException as error:
        log.exception("worker %d failed", link.orders.worker_id)
        link.tell(CAUSE + f"{type(error).__name__}: {error}".encode(errors="replace"))
    finally:
        leave_process(status)
