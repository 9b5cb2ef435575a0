"""The table of servers: what each is called, how it is started, and what it can be asked to do.

A peer is written as its documentation shows, with the settings that make it fast (a long backlog, uvloop) and with
TCP_NODELAY where that helps it: asyncio, uvloop and trio set it, and in none of these works does a small write follow
an unanswered one. Handlers of one work read and answer the same bytes.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

SERVERS = pathlib.Path(__file__).with_name("servers")
NO_SUCH_MODEL = 3

KEPT = ("ping",)
STREAMS = ("ping", "connect")
EVERYTHING = ("ping", "connect", "udp")
HTTP = ("http", "http-kept")
WITH_FILES = ("ping-stream", "connect-stream")
UNIX = "ping-unix"
WAITING = ("wait1", "wait5", "held")


class Contender(NamedTuple):
    """One server that takes part."""

    name: str
    group: str
    """What ``MODEL=`` selects beside the name: our models by theirs, the others by their library's name."""
    program: tuple[str, ...]
    """The program in ``servers/`` and its arguments; "{}" stands for the work."""
    protocols: tuple[str, ...]
    """What it can be asked to do."""
    one_at_a_time: bool = False
    """Whether a client that stays keeps all others waiting."""
    slowness: int = 1
    """Divides the number of requests where each has a worker of its own, so that a cell takes as long as another's."""
    needs: str | None = None
    """The package without which it is left out."""
    is_twin: bool = False
    """Whether a target compares it with its like of the other library to a twentieth, so that it has further turns."""

    @property
    def forks(self) -> bool:
        """Whether each connection has a process."""
        return self.slowness >= _FORK_COSTS

    def missing(self) -> str | None:
        """Why it cannot take part here, or None."""
        if self.needs is not None and importlib.util.find_spec(self.needs) is None:
            return f"needs the package {self.needs}"
        if self.program[0] == FREE_THREADED and free_threaded() is None:
            return "needs a free-threaded Python: python3.13t on PATH, or FREE_THREADED=its path"
        return None

    def command(self, protocol: str) -> list[str]:
        """What starts it."""
        first, *arguments = (each.format(protocol) for each in self.program)
        if first == "floor":
            return [floor(), *arguments]
        python = sys.executable
        if first == FREE_THREADED:
            python = free_threaded() or FREE_THREADED
            first = "blocking.py"
        return [python, str(SERVERS / first), *arguments]


FREE_THREADED = "free-threaded"


def _stdlib(model: str, *protocols: str, **more: object) -> Contender:
    program = ("blocking.py", "socketserver", model, "{}")
    return Contender(f"stdlib-{model}", "stdlib", program, protocols, **more)  # type: ignore[arg-type]


def _ours(name: str, model: str, *protocols: str, workers: int = 0, processes: int = 0, **more: object) -> Contender:
    program = ("blocking.py", "sockserve", model, "{}", str(workers), str(processes))
    group = "prefork" if processes else model
    return Contender(name, group, program, protocols, **more)  # type: ignore[arg-type]


_THREAD_COSTS = 4
_FORK_COSTS = 40

CONTENDERS: Sequence[Contender] = (
    Contender("floor", "floor", ("floor", "{}"), (*EVERYTHING, UNIX)),
    Contender("floor-blocking", "floor", ("floor", "{}", "blocking"), ("connect",), one_at_a_time=True),
    _stdlib("inline", *EVERYTHING, *WITH_FILES, one_at_a_time=True, is_twin=True),
    _stdlib("thread", *EVERYTHING, *WITH_FILES, *HTTP, "cpu", UNIX, slowness=_THREAD_COSTS, is_twin=True),
    _stdlib("fork", *EVERYTHING, *WITH_FILES, slowness=_FORK_COSTS),
    Contender("gevent", "gevent", ("gevent_server.py", "{}"), EVERYTHING, needs="gevent"),
    Contender("asyncio", "asyncio", ("asyncio_server.py", "{}"), EVERYTHING),
    Contender("uvloop", "uvloop", ("asyncio_server.py", "{}", "uvloop"), EVERYTHING, needs="uvloop"),
    Contender("trio", "trio", ("trio_server.py", "{}"), EVERYTHING, needs="trio"),
    _ours("inline", "inline", *EVERYTHING, *WITH_FILES, one_at_a_time=True, is_twin=True),
    _ours("thread", "thread", *EVERYTHING, *WITH_FILES, *HTTP, UNIX, slowness=_THREAD_COSTS, is_twin=True),
    _ours("fork", "fork", *EVERYTHING, *WITH_FILES, slowness=_FORK_COSTS),
    _ours("pool", "pool", *EVERYTHING, "connect-stream", *HTTP, UNIX, "hash", workers=4),
    _ours("pool-1", "pool", "cpu", "hash", workers=1),
    _ours("pool-2", "pool", "cpu", workers=2),
    _ours("pool-16", "pool", *EVERYTHING, *WAITING, workers=16),
    _ours("greenlet", "greenlet", *STREAMS, "connect-stream", *HTTP, UNIX, needs="greenlet"),
    _ours("prefork-inline", "inline", "connect", "udp", processes=2),
    _ours("prefork-pool", "pool", *STREAMS, "cpu", workers=2, processes=2),
    _ours("prefork-pool-1", "pool", "cpu", workers=1, processes=2),
    Contender("free-threaded-pool-1", "pool", (FREE_THREADED, "sockserve", "pool", "{}", "1", "0"), ("cpu",)),
    Contender("free-threaded-pool-2", "pool", (FREE_THREADED, "sockserve", "pool", "{}", "2", "0"), ("cpu",)),
)

BY_NAME = {contender.name: contender for contender in CONTENDERS}
OURS = tuple(each.name for each in CONTENDERS if "sockserve" in each.program)


@functools.cache
def floor() -> str:
    """The C program, built once; SystemExit without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        sys.exit("needs a C compiler, cc (Debian: gcc)")
    built = pathlib.Path(tempfile.gettempdir()) / f"sockserve-floor-{os.getuid()}-{os.getpid()}"
    subprocess.run([compiler, "-O2", "-Wall", "-o", str(built), str(SERVERS / "floor.c")], check=True)
    return str(built)


def remove_floor() -> None:
    """Take the built program away."""
    if floor.cache_info().currsize:
        pathlib.Path(floor()).unlink(missing_ok=True)
        floor.cache_clear()


@functools.cache
def free_threaded() -> str | None:
    """A Python without a GIL: this one, ``$FREE_THREADED``, or one on PATH."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return sys.executable
    names = (os.environ.get("FREE_THREADED"), "python3.14t", "python3.13t")
    return next((found for name in names if name and (found := shutil.which(name)) and _has_no_gil(found)), None)


def _has_no_gil(python: str) -> bool:
    code = "import sys, sysconfig; sys.exit(not sysconfig.get_config_var('Py_GIL_DISABLED'))"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


def python_path() -> str:
    """Where servers find sockserve, whichever Python runs them: it is pure Python and needs nothing else."""
    return str(SERVERS.parent.parent)
