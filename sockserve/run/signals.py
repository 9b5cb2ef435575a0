"""Signal handlers for the length of a ``with`` block."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Generator

__all__ = ["STOP_SIGNALS", "handling"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""What a terminal's Ctrl-C sends, and what a supervisor sends: systemd, Docker, kill(1)."""


@contextlib.contextmanager
def handling(on_signal: Callable[[signal.Signals], object]) -> Generator[None]:
    """Call ``on_signal`` for each stop signal until the block ends; then they have the handlers again that they had.

    For the main thread only: ValueError in any other.
    """
    before = {
        signum: signal.signal(signum, lambda number, _frame: on_signal(signal.Signals(number)))
        for signum in STOP_SIGNALS
    }
    try:
        yield
    finally:
        for signum, handler in before.items():
            # None: what it had was not installed by Python.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
