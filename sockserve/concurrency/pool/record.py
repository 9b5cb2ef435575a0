"""What the parking knows of a connection."""

from __future__ import annotations

import contextvars
import threading

__all__ = ["ParkingRecord"]


class ParkingRecord:
    """Made when a connection is parked for the first time; lives as long as its record."""

    # No attributes of a class as values to begin with: beside them those of an object are slower to find.
    __slots__ = ("arming", "context", "doubts", "fd", "is_registered", "limit", "parked_at", "trusted_from", "turn")

    def __init__(self) -> None:
        self.fd = -1
        self.is_registered = False
        """Whether the poller knows the descriptor."""
        self.limit = 0.0
        """Seconds of silence that the handler bears; 0: any."""
        self.parked_at = 0.0
        """When it was parked last with such a limit, in seconds of ``time.monotonic()``."""
        self.trusted_from = 0.0
        """An event is trusted if the wait that told it began later, in seconds of ``time.monotonic()``."""
        self.doubts = 0
        """How often ``trusted_from`` is still to be set anew when it is parked. Twice after it was armed to stay: a
        wait that began after the first time may still have found it armed in that way."""
        self.turn = 0.0
        """When it was first found to have more input at once, in this turn; 0: not yet; -1: the turn is over."""
        self.context: contextvars.Context
        """The context variables of the handler."""
        self.arming = threading.Lock()
        """Held while the connection is entered and armed."""
