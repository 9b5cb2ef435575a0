"""Each change of a request's state, compared with the table in ``sockserve/core/request_states.py``.

Not a subclass, as the package makes its records itself: a descriptor in the place of the attribute.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from sockserve.core.active_requests import LiveRequest
from sockserve.core.request_states import TRANSITIONS

__all__ = ["WatchedState", "watch_states"]


class WatchedState:
    """The attribute ``state`` of a LiveRequest. A change that is not in the table is an ERROR in the log.

    So it fails its test in a forked child and in any thread, and changes nothing in what is tested.
    """

    def __get__(self, live: LiveRequest | None, owner: type) -> Any:
        return self if live is None else live._watched_state  # type: ignore[attr-defined]

    def __set__(self, live: Any, state: str) -> None:
        writer = sys._getframe(1).f_globals["__name__"].rpartition(".")[2]
        try:
            before = live._watched_state
        except AttributeError:
            is_allowed, before = (state, writer) == ("accept", "active_requests"), None
        else:
            is_allowed = writer in TRANSITIONS[before].get(state, ())
        live._watched_state = state
        if not is_allowed:
            logging.getLogger("sockserve").error("request state: %s -> %s by %s", before, state, writer)


def watch_states() -> None:
    """Watch all requests of this process and its forked children from now on."""
    LiveRequest.state = WatchedState()  # type: ignore[assignment]
