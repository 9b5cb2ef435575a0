"""Signal handlers for the length of a ``with`` block."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Generator, Sequence

from sockserve.core.taken_signals import Taken, give_back, is_ignored, take

__all__ = ["STOP_SIGNALS", "handling", "noting_sigterm"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""What a terminal's Ctrl-C sends, and what a supervisor sends: systemd, Docker, kill(1)."""


FROM_TERMINALS = {signum for signum in (signal.SIGINT, getattr(signal, "SIGHUP", None)) if signum is not None}
"""What a terminal sends to all that run in it: at Ctrl-C, and when it is closed."""


@contextlib.contextmanager
def handling(
    on_signal: Callable[[signal.Signals], object], signals: Sequence[signal.Signals] = STOP_SIGNALS
) -> Generator[None]:
    """Call ``on_signal`` for each of these signals until the block ends; then they have the handlers that they had.

    One that may come from a terminal and is ignored stays so: it was asked for, by nohup(1) or a shell's ``&``. For the
    main thread only: ValueError in any other.
    """
    taken: list[Taken] = []
    try:
        for signum in signals:
            if signum in FROM_TERMINALS and is_ignored(signum):
                continue
            taken.append(take(signum, lambda number: on_signal(signal.Signals(number))))
        yield
    finally:
        # The first last: that is SIGINT, whose handler may raise.
        for each in reversed(taken):
            give_back(each)


@contextlib.contextmanager
def noting_sigterm(*, noted: bool) -> Generator[Sequence[signal.Signals]]:
    """Add each SIGTERM to a list, for whoever can stop what is being made; nothing unless ``noted``.

    By default it would end the process at once, with sockets of the file system left behind. SIGINT raises
    KeyboardInterrupt meanwhile, so that Ctrl-C ends a name's long look-up too.
    """
    early: list[signal.Signals] = []
    with handling(early.append, (signal.SIGTERM,)) if noted else contextlib.nullcontext():
        yield early
