"""A worker process, from the inside: what it is told, what it tells, and how it ends.

Rule 1. The supervisor decides and measures the time; a worker does what it is told, at once, and ends when nothing is
in progress any more. Without a supervisor it ends within 5 seconds.
Rule 2. It is told through a socket and not by signals: a terminal and a service manager signal the whole group.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from sockserve.concurrency.child_process import leave_process
from sockserve.concurrency.prefork.patience import Patience
from sockserve.concurrency.prefork.protocol import (
    CAUSE,
    CUT,
    DRAIN,
    FREE,
    LEAVE,
    LOOK,
    RETIRE,
    SUSPEND,
)
from sockserve.concurrency.prefork.worker_commands import Duties
from sockserve.concurrency.prefork.worker_link import Link
from sockserve.core.lifecycle import Lifecycle
from sockserve.core.one_shot import OneShot
from sockserve.core.serving import finish_lingering, table_of
from sockserve.core.taken_signals import take, when_forked
from sockserve.log import log

__all__ = ["be_worker", "obey", "wait_for_requests"]


ORPHAN_DRAIN = 3.0
"""Seconds that requests in progress get when the supervisor is gone."""

ORPHAN_END = 1.0
"""Seconds after that, until such a worker ends whatever it is at: both are less than the 5 that are promised."""


def obey(link: Link, duties: Duties) -> None:
    """Do what the supervisor says, from now on. Raises RuntimeError if there is no thread to be had."""
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


def wait_for_requests(servers: Iterable[Any]) -> None:
    """Wait until nothing is in progress, in daemon threads either."""
    for server in servers:
        Lifecycle().wait_until_idle(table_of(server), None, OneShot.wait)
        finish_lingering(server)
