"""Waiting for what nothing announces."""

from __future__ import annotations

import fcntl
import linecache
import os
import pathlib
import re
import select
import signal
import socket
import sys
import termios
import threading
import time
import types
from collections.abc import Callable
from typing import Any

from support.under_test import LIMIT

__all__ = [
    "is_asleep",
    "is_joining",
    "stop_process",
    "wait_until",
    "wait_until_arrived",
    "wait_until_blocked",
    "wait_until_broken",
]

SLEEPS = re.compile(r"\.(acquire|join|poll|select|wait)\(|with (self\.)?_\w+:")
"""A line that waits for a lock, a thread, a descriptor or an event."""

FIRST_PAUSE = 0.0002
"""Seconds between the first two looks: what a thread does next it has mostly done by then. Each pause is twice as long
as the one before."""

LOOK_AGAIN = 0.005
"""Seconds between two looks at most."""


def wait_until(condition: Callable[[], Any], limit: float = LIMIT, *, tell: Callable[[], object] | None = None) -> None:
    """Return as soon as ``condition()`` is true; TimeoutError: it was not within ``limit`` seconds, and ``tell()``."""
    deadline = time.monotonic() + limit
    event, pause = threading.Event(), FIRST_PAUSE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {limit} seconds: {condition if tell is None else tell()}")
        event.wait(pause)
        pause = min(2 * pause, LOOK_AGAIN)


def is_asleep(frame: types.FrameType | None) -> bool:
    """Say whether a frame is at a line that waits for another thread or for input."""
    return frame is not None and SLEEPS.search(linecache.getline(frame.f_code.co_filename, frame.f_lineno)) is not None


def is_joining(thread: threading.Thread) -> bool:
    """Say whether a thread waits for the end of another one."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code.co_name in ("join", "_wait_for_tstate_lock")


def wait_until_blocked(pid: int) -> None:
    """Return when the main thread of a process is inside the system call that it waits in.

    A signal that comes just before does not end that call, and its Python handler runs only after it: CPython looks for
    signals between two instructions, and after an interrupted call. A thread that waits for the interpreter's lock is
    asleep too, and is not meant; but every ``sys.getswitchinterval()`` it wakes, which the kernel counts.
    """
    pause = threading.Event()

    def is_blocked() -> bool:
        before = _sleep(pid)
        pause.wait(3 * sys.getswitchinterval())
        return before.startswith("S") and _sleep(pid) == before

    wait_until(is_blocked)


def stop_process(pid: int) -> None:
    """Send SIGSTOP, and return when no thread of the process runs any more.

    The signal waits for one of them to have its turn on a processor; until then another one that wakes goes on.
    """
    os.kill(pid, signal.SIGSTOP)

    def is_stopped() -> bool:
        stats = [task.read_text() for task in pathlib.Path(f"/proc/{pid}/task").glob("*/stat")]
        return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)

    wait_until(is_stopped)


def wait_until_arrived(connection: socket.socket) -> None:
    """Return when the peer's kernel has all that was sent, which it need not have when send(2) returns."""
    # As tcp(7) has it: what is sent and not yet acknowledged.
    wait_until(lambda: fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)) == bytes(4))


def wait_until_broken(connection: socket.socket) -> None:
    """Return when the peer's reset has arrived, which need not be when its close(2) returns."""
    poll = select.poll()
    # POLLERR and POLLHUP are always told.
    poll.register(connection, 0)
    if not poll.poll(LIMIT * 1000):
        raise TimeoutError(f"not broken within {LIMIT} seconds: {connection}")


def _sleep(pid: int) -> str:
    """The state of a process's main thread, and how often it has given up its processor: proc(5)."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    return " ".join(re.findall(r"^(?:State|\w+_ctxt_switches):\s*(\w+)", status, re.MULTILINE))
