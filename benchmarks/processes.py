"""A server's process tree: started, pinned, and what the kernel knows of it.

Rule 1. The tree is the session that the server's first process leads: all its descendants, orphans included.
Rule 2. What is measured is read from outside; a server does nothing for it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Self

START_LIMIT = 30.0
"""Seconds for a server to say where it listens: most of it is imports, on a busy machine."""

TICKS = os.sysconf("SC_CLK_TCK")

_PROCESS_CLOCK = 2
"""With the complement of a process's number above it: its processor time, see clock_getcpuclockid(3)."""


Place = int | str
"""Where a server listens: a port of 127.0.0.1, or a Unix socket's path."""


class ServerDiedError(Exception):
    """The server ended, or never said where it listens; the message has what it wrote to its standard error."""

    def __init__(self, message: str, said: str, status: int | None) -> None:
        super().__init__(message)
        self.said = said
        self.status = status


class ServerProcess:
    """A program that writes its port, or its Unix socket's path, once it listens, and the processes that it makes."""

    def __init__(self, command: Sequence[str], cores: Collection[int], group: ControlGroup | None) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        self._group = group
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            # The process that starts servers has one thread. From outside, the first children could be born elsewhere.
            preexec_fn=functools.partial(_enter, cores, group),  # noqa: PLW1509
        )
        self.place: Place = 0
        try:
            self.place = self._read_place(command)
        except BaseException:
            self.stop()
            raise

    def _read_place(self, command: Sequence[str]) -> Place:
        place = self.read_line(START_LIMIT).decode().strip()
        if place:
            return int(place) if place.isdigit() else place
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        said = self.errors()
        raise ServerDiedError(f"{' '.join(command)}: {said or 'said nothing'}", said, self._process.returncode)

    def read_line(self, limit: float) -> bytes:
        """The next line of its standard output; empty if it has ended, or after ``limit`` seconds."""
        pipe = self._process.stdout
        if pipe is None or not select.select([pipe], [], [], limit)[0]:
            return b""
        return pipe.readline()

    def errors(self) -> str:
        """What it wrote to its standard error so far, the last part of it."""
        self._errors.seek(0)
        return self._errors.read()[-2000:].decode("utf-8", "replace").strip()

    def cpu_seconds(self) -> float:
        """Processor time of the whole tree so far, of those that have ended included."""
        if self._group is not None:
            return self._group.cpu_seconds()
        total = 0.0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                ended_children = sum(map(int, _stat(pid)[13:15])) / TICKS
                total += time.clock_gettime((~pid << 3) | _PROCESS_CLOCK) + ended_children
        return total

    def memory(self) -> int:
        """Bytes of the whole tree; a page that several of its processes share counts once, in parts."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                pages = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
                total += int(re.findall(r"^Pss:\s+(\d+) kB", pages, re.MULTILINE)[0]) * 1024
        return total

    def threads(self) -> int:
        """How many threads the whole tree has."""
        return sum(1 for _ in self._threads())

    def sleeps(self) -> dict[int, int]:
        """Of each thread of the tree, how often it went to sleep so far."""
        counts = {}
        for status in self._threads():
            with contextlib.suppress(OSError):
                text = status.read_text("ascii")
                switches = re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", text, re.MULTILINE)
                counts[int(status.parent.name)] = int(switches[0])
        return counts

    def _threads(self) -> Iterator[pathlib.Path]:
        for pid in self.pids():
            yield from pathlib.Path(f"/proc/{pid}/task").glob("*/status")

    def pids(self) -> list[int]:
        """Its processes, those that have ended and were not waited for included."""
        found: list[int] = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    if int(_stat(int(entry))[3]) == self._process.pid:
                        found.append(int(entry))
        return found

    def is_alive(self) -> bool:
        """Whether its first process still runs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Kill the tree. Idempotent."""
        if self._errors.closed:
            return
        while True:
            # More than once: a supervisor may just have started another one.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            if not any(self._runs(pid) for pid in self.pids()):
                break
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()
        if isinstance(self.place, str):
            # A server that is killed leaves it behind.
            pathlib.Path(self.place).unlink(missing_ok=True)
        if self._group is not None:
            self._group.remove()

    @staticmethod
    def _runs(pid: int) -> bool:
        try:
            return _stat(pid)[0] not in ("Z", "X")
        except OSError:
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def _enter(cores: Collection[int], group: ControlGroup | None) -> None:
    os.sched_setaffinity(0, cores)
    if group is not None:
        group.enter()


def _stat(pid: int) -> list[str]:
    """The fields of proc(5)'s ``stat`` after the name, so one to the left of where it counts them from zero: state."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(") ")[2].split()


def wakeups(before: Mapping[int, int], after: Mapping[int, int]) -> int:
    """How often threads that slept were woken between two of ``sleeps()``; a thread that ended was woken for it."""
    ended = len(before.keys() - after.keys())
    return ended + sum(count - before.get(thread, 0) for thread, count in after.items())


class ControlGroup:
    """A cgroup (version 2) for one tree.

    It counts what a thread costs after its last instruction too, which a process's own clock does not have: of a server
    with a thread per request about a twentieth.
    """

    def __init__(self, parent: pathlib.Path, name: str) -> None:
        self._path = parent / name
        self._path.mkdir()

    def enter(self) -> None:
        """Move this process here; its children will be born here."""
        (self._path / "cgroup.procs").write_text("0\n")

    def cpu_seconds(self) -> float:
        """Processor time of all that was ever in here."""
        usage = (self._path / "cpu.stat").read_text("ascii")
        return int(re.findall(r"^usage_usec (\d+)", usage, re.MULTILINE)[0]) / 1e6

    def remove(self) -> None:
        """Take it away, once all in it have ended."""
        deadline = time.monotonic() + START_LIMIT
        while True:
            try:
                self._path.rmdir()
            except OSError:
                # Zombies that init has not collected yet.
                if time.monotonic() > deadline:
                    raise
                pause(0.01)
            else:
                return


def control_groups(mounts: Iterable[str] | None = None, own: Iterable[str] | None = None) -> pathlib.Path | None:
    """The directory in which this process may make control groups; None if there is none."""
    mounts = pathlib.Path("/proc/self/mounts").read_text("utf-8").splitlines() if mounts is None else mounts
    own = pathlib.Path("/proc/self/cgroup").read_text("utf-8").splitlines() if own is None else own
    roots = [fields[1] for fields in map(str.split, mounts) if fields[2] == "cgroup2"]
    inside = [line.removeprefix("0::/") for line in own if line.startswith("0::/")]
    if not roots or not inside:
        return None
    parent = pathlib.Path(roots[0]) / inside[0]
    try:
        probe = ControlGroup(parent, f"sockserve-bench-{os.getpid()}-probe")
        try:
            probe.cpu_seconds()
        finally:
            probe.remove()
    except (OSError, IndexError):
        return None
    return parent


def pause(seconds: float) -> None:
    """Let time go by: what is waited for here makes no event."""
    select.select([], [], [], seconds)
