"""Signal handlers for the length of a ``with`` block."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Generator, Sequence

__all__ = ["STOP_SIGNALS", "handling", "noting_sigterm"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""What a terminal's Ctrl-C sends, and what a supervisor sends: systemd, Docker, kill(1)."""


@contextlib.contextmanager
def handling(
    on_signal: Callable[[signal.Signals], object], signals: Sequence[signal.Signals] = STOP_SIGNALS
) -> Generator[None]:
    """Call ``on_signal`` for each of these signals until the block ends; then they have the handlers that they had.

    For the main thread only: ValueError in any other.
    """
    before = {
        signum: signal.signal(signum, lambda number, _frame: on_signal(signal.Signals(number))) for signum in signals
    }
    try:
        yield
    finally:
        # The first last: that is SIGINT, whose handler may raise.
        for signum, handler in reversed(before.items()):
            # None: what it had was not installed by Python.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def noting_sigterm(*, noted: bool) -> Generator[Sequence[signal.Signals]]:
    """Add each SIGTERM to a list, for whoever can stop what is being made; nothing unless ``noted``.

    By default it would end the process at once, with sockets of the file system left behind. SIGINT raises
    KeyboardInterrupt meanwhile, so that Ctrl-C ends a name's long look-up too.
    """
    early: list[signal.Signals] = []
    with handling(early.append, (signal.SIGTERM,)) if noted else contextlib.nullcontext():
        yield early
