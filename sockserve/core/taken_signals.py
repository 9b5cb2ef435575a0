"""Signals that this package takes from the program, and gives back: at the end, and in each process that is forked.

Rule 1. In a forked child a signal means what it meant to the program before it was taken here, whatever forks: a
handler, ``multiprocessing``, ``pty.fork()``. What a child of ours needs it takes for itself, after the fork.
Rule 2. A handler that runs in a process which did not take the signal does nothing of its own: it gives all back and
sends the signal once more. It came between fork(2) and the moment in which Rule 1 was obeyed.
Rule 3. A handler that the program has put in place of one of these stays.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
from collections.abc import Callable, Generator, Mapping
from typing import NamedTuple

from sockserve.core.deferral import Handler, end_in_child, get_handler, raw_signal, set_handler

__all__ = [
    "Taken",
    "give_back",
    "give_stacks_back",
    "give_wakeup_back",
    "is_ignored",
    "is_taken",
    "raw_signal",
    "take",
    "take_for_stacks",
    "take_wakeup",
    "take_wakeup_again",
    "taking",
    "when_forked",
]


class Taken(NamedTuple):
    """A signal that was taken."""

    signum: int
    ours: object
    before: Handler
    """What it meant to the program: a handler, SIG_DFL, SIG_IGN; None: one that Python did not install."""
    was_blocked: bool


_taken: list[Taken] = []
_wakeups: list[tuple[int, int]] = []
_for_stacks: list[int] = []
_when_forked: list[Callable[[], object]] = []


def take(signum: int, handler: Callable[[int], object], *, was_blocked: bool = False) -> Taken:
    """Call ``handler`` for this signal in this process, until ``give_back()``. In the main thread only: ValueError.

    ``was_blocked``: the program had it blocked, and the caller unblocks it: what it forks shall have it blocked again.
    """
    pid = os.getpid()

    def ours(number: int, _frame: object) -> None:
        if os.getpid() == pid:
            handler(number)
        else:
            _be_forked()
            raw_signal.raise_signal(number)

    taken = Taken(signum, ours, get_handler(signum), was_blocked)
    # First: a handler of another signal may raise or fork between the two, and this one must still be given back.
    _taken.append(taken)
    try:
        set_handler(signum, ours)
    except ValueError:
        _taken.remove(taken)
        raise
    return taken


def give_back(taken: Taken) -> None:
    """Let the signal mean again what it did before. No effect in a forked child, where it does already."""
    if taken in _taken:
        # None: what it had was not installed by Python.
        set_handler(taken.signum, raw_signal.SIG_DFL if taken.before is None else taken.before)
        _taken.remove(taken)


@contextlib.contextmanager
def taking(meanings: Mapping[int, Callable[[int], object]]) -> Generator[None]:
    """Call these for their signals until the block ends; then each means again what it did before.

    In the main thread only: ValueError in any other, and none of them is taken then.
    """
    taken: list[Taken] = []
    try:
        for signum, handler in meanings.items():
            taken.append(take(signum, handler))
        yield
    finally:
        # The first last: that is SIGINT where it is among them, whose handler may raise.
        for each in reversed(taken):
            give_back(each)


def is_ignored(signum: int) -> bool:
    """Whether a signal is ignored: by the program, or by whatever started it (nohup(1), a shell's ``&``)."""
    return bool(get_handler(signum) == raw_signal.SIG_IGN)


def is_taken(signum: int) -> bool:
    """Whether a handler of ours is in place for a signal."""
    meaning = get_handler(signum)
    return any(taken.ours is meaning for taken in _taken)


def take_for_stacks(signum: int, fd: int) -> None:
    """Make a signal write the stacks of all threads to a descriptor (faulthandler), until ``give_stacks_back()``."""
    faulthandler.register(signum, fd, all_threads=True, chain=False)
    _for_stacks.append(signum)


def give_stacks_back(signum: int) -> None:
    """Let the signal mean again what it did before. No effect in a forked child, where it does already."""
    if signum in _for_stacks:
        faulthandler.unregister(signum)
        _for_stacks.remove(signum)


def take_wakeup(fd: int) -> tuple[int, int]:
    """``signal.set_wakeup_fd()``, until ``give_wakeup_back()`` of what this returns. Raises ValueError as that does."""
    lent = (fd, signal.set_wakeup_fd(fd, warn_on_full_buffer=False))
    _wakeups.append(lent)
    return lent


def take_wakeup_again(lent: tuple[int, int]) -> None:
    """After something may have taken it away: a loop of a handler's own, asyncio's for one, leaves none behind."""
    signal.set_wakeup_fd(lent[0], warn_on_full_buffer=False)


def give_wakeup_back(lent: tuple[int, int]) -> None:
    """Set the descriptor that was set before. No effect in a forked child, where it is already."""
    if lent in _wakeups:
        signal.set_wakeup_fd(-1)
        with contextlib.suppress(ValueError, OSError):
            # Closed meanwhile.
            signal.set_wakeup_fd(lent[1], warn_on_full_buffer=lent[1] == -1)
        _wakeups.remove(lent)


def when_forked(callback: Callable[[], object]) -> None:
    """Call back in each process that is forked from this one, before anything of the program's runs there."""
    _when_forked.append(callback)


def _be_forked() -> None:
    """In the child: give all back. Idempotent."""
    end_in_child()
    while _for_stacks:
        faulthandler.unregister(_for_stacks.pop())
    while _when_forked:
        _when_forked.pop()()
    if _wakeups:
        fd = signal.set_wakeup_fd(-1)
        while _wakeups:
            ours, before = _wakeups.pop()
            fd = before if fd == ours else fd
        # perf: each forked request comes here; without suppress() 18 pages fewer are touched, which the kernel copies.
        # NOTEBOOK.md#a-child-for-each-request
        if fd != -1:
            with contextlib.suppress(ValueError, OSError):
                # Closed meanwhile.
                signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    while _taken:
        signum, ours_, before_, was_blocked = _taken[-1]
        if raw_signal.getsignal(signum) is ours_:
            raw_signal.signal(signum, raw_signal.SIG_DFL if before_ is None else before_)
        if was_blocked:
            raw_signal.pthread_sigmask(raw_signal.SIG_BLOCK, (signum,))
        _taken.pop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_be_forked)
