"""Finds threads, descriptors and child processes that were not there before."""

from __future__ import annotations

import contextlib
import gc
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterable
from typing import NamedTuple

from sockserve.errors import SockserveError

__all__ = ["Inventory", "LeakError", "check_leaks", "child_processes", "leak_guard", "stack_of", "take_inventory"]

FIRST_PAUSE = 0.001
"""Seconds between the first two looks: a thread that has answered its client needs about as long to end."""

LAST_PAUSE = 0.05
"""Seconds between two looks at most: short for a reader of the result, and no load on a busy machine."""

DESCRIPTOR_DIRECTORIES = (pathlib.Path("/proc/self/fd"), pathlib.Path("/dev/fd"))
"""Where Linux, and where macOS and others list a process's descriptors."""

DESCRIPTOR_RANGE = 4096
"""Descriptors that are tried one by one where the system does not list them: more than a test opens, 2 ms of work."""

TASK_DIRECTORY = pathlib.Path("/proc/self/task")
"""Where Linux lists a process's threads, and the children of each."""

PS = ("/bin/ps", "-A", "-o", "ppid=", "-o", "pid=")
"""Parent and id of every process, without a heading (POSIX); in /bin on macOS, the BSDs and Linux."""


class LeakError(SockserveError, AssertionError):
    """A thread, a descriptor or a child process was left behind; the message names each."""


class Inventory(NamedTuple):
    """What this process holds."""

    threads: frozenset[threading.Thread]
    descriptors: dict[int, str]
    """What each descriptor points at: a number that was closed and used again is thus seen as new."""
    children: frozenset[int]
    """Process ids, zombies included."""


@contextlib.contextmanager
def leak_guard(*, timeout: float = 10.0, closes: Iterable[int] = ()) -> Generator[None]:
    """Guarantee that the body leaves no thread, descriptor or child process behind; raises LeakError, which names them.

    A thread or child that is just ending has ``timeout`` seconds; objects that only wait for the garbage collector
    count as gone. ``closes``: descriptors that are open already and must be closed at the end. An exception of the body
    propagates and nothing is checked, because its traceback keeps sockets alive. Threads, descriptors and children
    belong to the process: what another thread opens meanwhile counts, too.

    Descriptors are looked up in /proc/self/fd (proc(5)) or /dev/fd, or else tried one by one with fstat(2); child
    processes in ``/proc/self/task/*/children`` or with ps(1). Windows has neither sockets among its descriptors nor
    fork.
    """
    before = take_inventory()
    for fd in closes:
        before.descriptors.pop(fd, None)
    yield
    check_leaks(before, timeout=timeout)


def take_inventory() -> Inventory:
    """Return what this process holds now. From any thread."""
    return Inventory(frozenset(threading.enumerate()), _descriptors(), child_processes())


def check_leaks(before: Inventory, *, timeout: float = 10.0) -> None:
    """Raise LeakError unless all that was not there ``before`` is gone within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    pause = FIRST_PAUSE
    while any(_left_behind(before)):
        is_last_look = time.monotonic() > deadline
        gc.collect()
        if is_last_look and any(left := _left_behind(before)):
            raise LeakError(f"left behind: {_tell(left)}")
        time.sleep(pause)  # noqa: TID251 - nothing tells when a descriptor is closed or a thread has ended
        pause = min(2 * pause, LAST_PAUSE)


def child_processes() -> frozenset[int]:
    """Return the ids of this process's children, zombies included; empty where there is no fork(2)."""
    if not hasattr(os, "fork"):
        return frozenset()
    # Each thread has a list: a child belongs to the thread that forked it, and moves to another thread, usually the
    # main thread, when that one ends. So the main thread's list is read last.
    lists = sorted(TASK_DIRECTORY.glob("*/children"), key=lambda path: path.parent.name == str(os.getpid()))
    if not lists:
        return _child_processes_of_ps()
    found: set[int] = set()
    for path in lists:
        with contextlib.suppress(OSError):
            found.update(map(int, path.read_text("ascii").split()))
    return frozenset(found)


def _child_processes_of_ps() -> frozenset[int]:
    with subprocess.Popen(PS, stdout=subprocess.PIPE, text=True) as ps:
        output = ps.communicate()[0]
    pairs = (map(int, line.split()) for line in output.splitlines())
    return frozenset(pid for parent, pid in pairs if parent == os.getpid() and pid != ps.pid)


def _descriptors() -> dict[int, str]:
    described: dict[int, str] = {}
    for fd in _candidates():
        # The descriptor that listed the directory is closed by now.
        with contextlib.suppress(OSError):
            described[fd] = _target(fd)
    return described


def _candidates() -> Iterable[int]:
    for directory in DESCRIPTOR_DIRECTORIES:
        with contextlib.suppress(OSError):
            return [int(entry.name) for entry in directory.iterdir()]
    return range(DESCRIPTOR_RANGE)


def _target(fd: int) -> str:
    status = os.fstat(fd)
    with contextlib.suppress(OSError):
        return str((DESCRIPTOR_DIRECTORIES[0] / str(fd)).readlink())
    return f"inode {status.st_ino} on device {status.st_dev}"


def _left_behind(before: Inventory) -> Inventory:
    now = take_inventory()
    descriptors = {fd: at for fd, at in now.descriptors.items() if before.descriptors.get(fd) != at}
    return Inventory(now.threads - before.threads, descriptors, now.children - before.children)


def _tell(left: Inventory) -> str:
    return "; ".join(
        [
            *(_tell_thread(thread) for thread in left.threads),
            *(_tell_descriptor(fd, target) for fd, target in left.descriptors.items()),
            *(f"child process {pid}" for pid in left.children),
        ]
    )


def _tell_thread(thread: threading.Thread) -> str:
    innermost = "".join(stack_of(thread)[-1:]).strip()
    return f"thread {thread.name!r} {innermost.partition(chr(10))[0]}"


def stack_of(thread: threading.Thread) -> list[str]:
    """Return where a thread is, as lines of a traceback, innermost last; empty when it has ended. From any thread."""
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return traceback.format_stack(frame) if frame is not None else []


def _tell_descriptor(fd: int, target: str) -> str:
    text = f"descriptor {fd}, {target}"
    with contextlib.suppress(OSError):
        blocks = os.get_blocking(fd)
        borrowed = socket.socket(fileno=fd)
        try:
            # socket.setdefaulttimeout() makes the constructor change the mode of the shared file description.
            os.set_blocking(fd, blocks)
            text += f", bound to {borrowed.getsockname()!r}"
            text += f", connected to {borrowed.getpeername()!r}"
        except OSError:
            pass  # No socket, or one without a peer.
        finally:
            borrowed.detach()
    return text
