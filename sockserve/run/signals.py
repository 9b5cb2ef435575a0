"""Signal handlers for the length of a ``with`` block."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Generator, Sequence

from sockserve.core.deferral import get_handler
from sockserve.core.loop import Loop
from sockserve.core.taken_signals import give_stacks_back, is_ignored, take_for_stacks, taking
from sockserve.log import log

__all__ = ["STOP_SIGNALS", "answering_for_processes", "handling", "noting_sigterm", "telling_stacks"]

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
    heard = [signum for signum in signals if signum not in FROM_TERMINALS or not is_ignored(signum)]
    with taking(dict.fromkeys(heard, lambda number: on_signal(signal.Signals(number)))):
        yield


@contextlib.contextmanager
def noting_sigterm(*, noted: bool) -> Generator[Sequence[signal.Signals]]:
    """Add each SIGTERM to a list, for the code that will be able to stop what is being made; nothing unless ``noted``.

    By default it would end the process at once, with sockets of the file system left behind. SIGINT raises
    KeyboardInterrupt meanwhile, so that Ctrl-C ends a name's long look-up too.
    """
    early: list[signal.Signals] = []
    with handling(early.append, (signal.SIGTERM,)) if noted else contextlib.nullcontext():
        yield early


@contextlib.contextmanager
def telling_stacks(tell: Callable[[], object] | None = None) -> Generator[None]:
    """Let SIGQUIT, if it has its default meaning, call ``tell()``, safe in a signal handler, while the block runs.

    None: write the stacks of all threads of this process to standard error, also if none of them ever comes to run the
    handler of a signal. For the main thread only: ValueError.
    """
    signum = getattr(signal, "SIGQUIT", None)
    if signum is None or get_handler(signum) != signal.SIG_DFL:
        yield
    elif tell is not None:
        with handling(lambda _: tell(), (signum,)):
            yield
    else:
        take_for_stacks(signum, 2)
        try:
            yield
        finally:
            give_stacks_back(signum)


FOR_PROCESSES = {
    "SIGHUP": "replaces the workers",
    "SIGTTIN": "makes them one more",
    "SIGTTOU": "makes them one less",
}
"""What signals do to worker processes."""


@contextlib.contextmanager
def answering_for_processes(
    loop: Loop,
    reload: Callable[[], object] | None = None,
    while_reloading: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Generator[None]:
    """Without worker processes, log what a signal for them would do, instead of being ended or stopped by it.

    ``reload``: what SIGHUP does instead, in the loop. ``while_reloading()``: a block in which SIGHUP is answered,
    whether there is something to reload or not.

    Only for signals with their default meaning. With a controlling terminal SIGTTIN and SIGTTOU keep theirs, to stop a
    background job: caught, they would come again for each try to read or write. For the main thread only: ValueError.
    """

    def answer(name: str, what: str) -> None:
        with while_reloading() if name == "SIGHUP" else contextlib.nullcontext():
            if name == "SIGHUP" and reload is not None:
                reload()
            else:
                log.warning("%s has no effect: it %s with processes only", name, what)

    def answer_soon(name: str, what: str, _: signal.Signals) -> None:
        # Not here: the code that the signal interrupts may hold a lock of the log.
        loop.call_soon(functools.partial(answer, name, what))
        loop.wake()

    with contextlib.ExitStack() as last_first:
        for name, what in FOR_PROCESSES.items():
            signum = getattr(signal, name, None)
            if signum is None or get_handler(signum) != signal.SIG_DFL:
                continue
            if name == "SIGHUP" or not _has_terminal():
                last_first.enter_context(handling(functools.partial(answer_soon, name, what), (signum,)))
        yield


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
