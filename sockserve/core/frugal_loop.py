"""A loop that needs no descriptor, for the end of a program that has none left."""

from __future__ import annotations

import selectors
from collections.abc import Callable

from sockserve.core.loop import Loop, Source
from sockserve.core.poller import Poller, SelectorPoller

__all__ = ["FrugalLoop", "host_somehow"]

LOOK_AGAIN = 0.05
"""Seconds of one wait at most: nothing ends it but what is watched."""


class _PlainPoller(SelectorPoller):
    """poll(2) and select(2) keep nothing between two calls: they need no descriptor, and cannot refuse one."""

    def make_selector(self) -> selectors.BaseSelector:
        """The one that opens no descriptor."""
        made: selectors.BaseSelector = getattr(selectors, "PollSelector", selectors.SelectSelector)()
        return made


class FrugalLoop(Loop):
    """Opens no descriptor, so that it always can be made; it hears late what other threads tell it."""

    def wake(self) -> None:
        """Nothing: the wait is short."""

    def _open(self) -> Poller:
        return _PlainPoller()

    def _begin_to_hear(self) -> None:
        pass

    def _take_wakeup(self) -> tuple[int, int] | None:
        return None

    def _stop_hearing(self) -> None:
        pass

    def _close_wake_pair(self) -> None:
        pass

    def _wait_limit(self, sources: tuple[Source, ...]) -> float | None:
        limit = super()._wait_limit(sources)
        return LOOK_AGAIN if limit is None else min(limit, LOOK_AGAIN)


def host_somehow(host: Callable[[Loop], None]) -> None:
    """Call ``host`` with a loop, and once more with a frugal one if the system refused the other what it needs."""
    try:
        with Loop() as loop:
            host(loop)
    except OSError:
        with FrugalLoop() as loop:
            host(loop)
