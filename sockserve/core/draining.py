"""The drain of one server, or of several as if they were one.

All of it may be called from any thread, and in a handler, whose own request is not waited for.

Rule 1. All servers are told before any is waited for.
Rule 2. The time is one for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sockserve.core.active_requests import LiveRequest
from sockserve.core.cutting import cut_others, drain_one
from sockserve.core.lifecycle import CUT_GRACE, Drained, wait_until_idle
from sockserve.core.serving import serving_of, table_of
from sockserve.seconds import limit_of

__all__ = ["drain_together", "wait_until_all_idle"]


def wait_until_all_idle(
    servers: Sequence[Any], timeout: float | None, see: Callable[[LiveRequest], object] | None = None
) -> bool:
    """Wait as ``wait_until_idle()``, in a way that lets greenlets of the calling thread go on."""
    # One that has greenlets in its thread knows how to wait there, for the others too.
    waits = next((server for server in servers if server._serving_waits_in_turns), servers[0])  # noqa: SLF001
    watched = [(serving_of(server).lifecycle, table_of(server)) for server in servers]
    return wait_until_idle(watched, timeout, waits._serving_wait_for_change, see)  # noqa: SLF001


def drain_together(servers: Sequence[Any], timeout: float | None) -> Drained:
    """Accept no more, let the requests end, cut those that have not after ``timeout`` seconds; say how they ended."""
    timeout = limit_of(timeout, "timeout")
    # Before the drain is told to any request, or those that end at once would not be counted.
    waited_for = [live for server in servers for live in table_of(server).others()]
    for server in servers:
        lifecycle = serving_of(server).lifecycle
        lifecycle.draining = True
        if not lifecycle.suspended:
            lifecycle.suspended_by_drain = True
            server.suspend()
    of_table = {id(table_of(server)): server for server in servers}

    def see(live: LiveRequest) -> None:
        waited_for.append(live)
        drain_one(of_table[id(live.table)], live)

    late: list[LiveRequest] = []
    if not wait_until_all_idle(servers, timeout, see):
        late = [live for server in servers for live in cut_others(server)]
        wait_until_all_idle(servers, CUT_GRACE)
    left = {live for server in servers for live in table_of(server).all()}
    return Drained(finished=len(set(waited_for) - {*late} - left), cut=len(late))
