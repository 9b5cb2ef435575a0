"""Reports of a program's states to the service manager that started it, and signs of life (sd_notify(3)).

Rule 1. What could not be sent is sent again, in its order: a reload is over for systemd once it has heard both of its
ends.
Rule 2. Signs of life come from the loop, so that a loop which stands still is found out.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Generator

from sockserve.core.loop import Loop, Timer
from sockserve.net.systemd import Notifier, monotonic_usec
from sockserve.run.states import STATES, State, States

__all__ = ["ServiceManager", "notifying"]

AGAIN = 0.1
"""Seconds until the next try to report a state that found no room."""

MOST_UNSENT = 16
"""Reports that are kept for the next try, the latest."""

SIGNS_IN_TIME = 2
"""How many signs of life come in the time of the watchdog: sd_watchdog_enabled(3) advises half of it."""


class ServiceManager:
    """Tells the service manager each change of the states, and that the loop turns. In the loop's thread."""

    def __init__(self, notifier: Notifier, states: States, loop: Loop) -> None:
        self._notifier = notifier
        self._states = states
        self._loop = loop
        self._unsent: collections.deque[dict[str, str]] = collections.deque(maxlen=MOST_UNSENT)
        self._timers: dict[str, Timer] = {}
        states.hears.append(self._tell)
        self._live()

    def _live(self) -> None:
        watchdog = self._notifier.watchdog
        if watchdog is not None:
            self._notifier.tell(WATCHDOG=1)
            self._timers["life"] = self._loop.call_later(watchdog / SIGNS_IN_TIME, self._live)

    def _tell(self, state: State) -> None:
        fields = dict(STATES[state].notify)
        if "RELOADING" in fields:
            # Without it a service of Type=notify-reload waits for ever.
            fields["MONOTONIC_USEC"] = str(monotonic_usec())
        self._unsent.append({**fields, "STATUS": state.value})
        self._send()

    def _send(self) -> None:
        timer = self._timers.pop("again", None)
        if timer is not None:
            timer.cancel()
        while self._unsent:
            if not self._notifier.tell(**self._unsent[0]):
                self._timers["again"] = self._loop.call_later(AGAIN, self._send)
                return
            self._unsent.popleft()

    def close(self) -> None:
        """Tell nothing more."""
        self._states.hears.remove(self._tell)
        for timer in self._timers.values():
            timer.cancel()


@contextlib.contextmanager
def notifying(states: States, loop: Loop) -> Generator[None]:
    """Tell the service manager of this process, if there is one, each change of the states while the block runs."""
    with Notifier() as notifier:
        manager = ServiceManager(notifier, states, loop)
        try:
            yield
        finally:
            manager.close()
