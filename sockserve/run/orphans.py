"""As process 1 of a container: a child does the work, and this process only reaps and passes signals on.

Process 1 becomes the parent of each process whose own parent has ended, and has to reap it: a zombie keeps its number
for good. A process that also has children of its own cannot tell them from such orphans, and waitpid(-1) would take
away the exit status that a ``Popen`` of a handler waits for. So the two are kept apart: orphans come to process 1,
which has one child that it knows, and the program with all its own children is that child.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from typing import NoReturn

from sockserve.concurrency.children import flush_standard_streams
from sockserve.log import log

__all__ = ["leave_orphans_to_a_parent"]

SI_KERNEL = 0x80
"""si_code of what the terminal sends, to all in its foreground: the child has got it too (sigaction(2))."""


def leave_orphans_to_a_parent() -> None:
    """If this is process 1, return in a child of it; process 1 ends with the child's exit status, or 128 + its signal.

    No effect in another process, or outside of the main thread. If there are other threads or children, which a fork
    would part from the program, one warning is logged instead. Only on Linux.
    """
    if os.getpid() != 1 or sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return
    if threading.active_count() > 1 or _has_children():
        log.warning("process 1 with threads or children of its own does not reap orphans: start it by an init program")
        return
    # What is buffered would be there twice.
    flush_standard_streams()
    before = signal.getsignal(signal.SIGCHLD)
    # Until the parent waits for them none may be lost, and SIGCHLD must not be ignored: the status would be lost.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        if before is not None:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        pid = os.fork()
        if pid:
            _reap_until_end_of(pid)
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _reap_until_end_of(child: int) -> NoReturn:
    status = 1
    try:
        # A listener that was inherited would keep its port busy.
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        waited_for = signal.valid_signals()
        while True:
            told = signal.sigwaitinfo(waited_for)
            if told.si_signo != signal.SIGCHLD:
                if told.si_code != SI_KERNEL:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, told.si_signo)
                continue
            ended = _reap(child)
            if ended is not None:
                status = ended if ended >= 0 else 128 - ended
                break
    finally:
        # Never back into the program: that is the child's.
        os._exit(status)


def _reap(child: int) -> int | None:
    """Reap all that have ended; one SIGCHLD may stand for several. Return how the child ended, None: it goes on."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 1
        if pid == 0:
            return None
        if pid == child:
            return os.waitstatus_to_exitcode(status)
