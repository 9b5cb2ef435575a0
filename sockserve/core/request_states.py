"""The states of a request in progress: which may follow which, and which room of the house makes the change.

A table instead of checks: the server spends nothing on it. Each test of the package runs with a ``LiveRequest`` that
compares every change of state with it (``tests/support/request_states.py``).

Rule 1. A state is written by the thread that has the request. It has one owner at any time: the loop, then a worker,
then perhaps a parking place.
Rule 2. "shutdown" is the last state of a request. Only its record may serve again, as that of a new request.
Rule 3. A request that a child process serves stays in "dispatch" here: what the child writes is its own copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

__all__ = ["TRANSITIONS", "Outcome", "RequestState"]

RequestState: TypeAlias = Literal[
    "accept", "verify", "dispatch", "prepare", "handle", "parked", "kept", "error", "shutdown"
]

Outcome: TypeAlias = Literal["handled", "refused", "failed", "left", "cut"]

_TABLE: Final = frozenset({"active_requests"})
_IN_PLACE: Final = frozenset({"life_in_place"})
_LIFE: Final = frozenset({"request_life"}) | _IN_PLACE
_DISPATCH: Final = frozenset({"dispatch"})
_PARKING: Final = frozenset({"parking"})

TRANSITIONS: Final[Mapping[RequestState, Mapping[RequestState, frozenset[str]]]] = {
    # Taken from the socket. A get_request() that raised after that is an error of this request. "dispatch", "prepare":
    # a standard library's server has verified it, or the caller of process_request_thread() took it in its own way.
    "accept": {"verify": _LIFE, "dispatch": _DISPATCH, "prepare": _LIFE, "error": _LIFE, "shutdown": _LIFE},
    # "prepare": served at once in the loop's thread. "kept": an override of process_request() returned with it.
    "verify": {
        "dispatch": _DISPATCH | _TABLE,
        "prepare": _LIFE,
        "kept": _TABLE,
        "error": _LIFE,
        "shutdown": _LIFE,
    },
    # An override may have taken the record before the mix-in does: "dispatch" again, or "prepare" before its time.
    "dispatch": {
        "dispatch": _DISPATCH,
        "prepare": _LIFE | _TABLE,
        "kept": _TABLE,
        "error": _LIFE,
        "shutdown": _LIFE,
    },
    "kept": {"dispatch": _TABLE},
    # "parked": in a pool, until more of the PROXY header or of the TLS handshake has come.
    "prepare": {"prepare": _LIFE, "handle": _LIFE, "parked": _PARKING, "error": _LIFE, "shutdown": _LIFE},
    "handle": {"parked": _PARKING, "error": _LIFE, "shutdown": _LIFE},
    # Back to where it was by the parking place itself: the system cannot watch it, and its thread goes on with it.
    "parked": {"handle": _LIFE | _PARKING, "prepare": _LIFE | _PARKING, "error": _LIFE, "shutdown": _LIFE},
    "error": {"shutdown": _LIFE},
    # The loop's next request, with the same record.
    "shutdown": {"verify": _IN_PLACE},
}
"""State, next state, and the modules (by the last part of their names) that may make the change."""
