"""What systemd gives to a service: sockets that are bound already, and one for reports. Needs no library.

Rule 1. The variables are for one process. They are taken out of the environment, so that no program that this process
starts takes them for its own (sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3)).
Rule 2. A report never blocks: a service manager that does not read must not stop a server.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from typing import NamedTuple, Self

from sockserve.errors import AddressError

__all__ = ["Inherited", "Notifier", "inherited", "monotonic_usec"]

FIRST_FD = 3
"""The number of the first socket: SD_LISTEN_FDS_START of sd_listen_fds(3)."""

MOST_FDS = 2**16
"""More sockets than a service manager passes; a larger number is a mistake."""

LISTEN_NAMES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
NOTIFY_NAMES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Inherited(NamedTuple):
    """A socket that the service manager has passed."""

    fd: int
    name: str
    """``FileDescriptorName=`` of its unit, by default the name of that; "unknown" where none was passed."""


class _Found(NamedTuple):
    sockets: tuple[Inherited, ...]
    reason: str
    """Why there are none."""


_found = _Found((), "LISTEN_FDS is not set: this process was not started by a socket unit")


def inherited(name: str = "") -> tuple[Inherited, ...]:
    """Return the sockets that were passed to this process, those of that name, or all; at least one.

    The first call takes the variables out of the environment, and keeps programs that are started later from
    inheriting the sockets. Later calls return the same. AddressError: there are none, and the message says why.
    """
    global _found  # noqa: PLW0603 - as the environment, it belongs to the process
    if any(variable in os.environ for variable in LISTEN_NAMES):
        _found = _take(os.environ)
        for each in _found.sockets:
            if _is_open(each.fd):
                os.set_inheritable(each.fd, False)
    chosen = tuple(each for each in _found.sockets if not name or each.name == name)
    if chosen:
        return chosen
    if not _found.sockets:
        raise AddressError(f"systemd:{name}: no socket was passed on: {_found.reason}")
    there_are = ", ".join(sorted({each.name for each in _found.sockets}))
    raise AddressError(f"systemd:{name}: no socket of that name was passed on; there are: {there_are}")


def _take(environment: MutableMapping[str, str]) -> _Found:
    pid, fds, names, _ = (environment.pop(variable, "") for variable in LISTEN_NAMES)
    if pid != str(os.getpid()):
        # A program in between, such as a shell or an init program, that starts this one instead of becoming it.
        return _Found((), f"LISTEN_PID is {pid!r}, and this is process {os.getpid()}: they are another process's")
    count = int(fds) if fds.isdecimal() and len(fds) < 10 else 0
    if not 0 < count <= MOST_FDS:
        return _Found((), f"LISTEN_FDS is {fds!r}, which is no number of sockets")
    each_name = names.split(":") if names else []
    each_name += ["unknown"] * (count - len(each_name))
    return _Found(tuple(map(Inherited, range(FIRST_FD, FIRST_FD + count), each_name)), "")


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def monotonic_usec() -> int:
    """What a report of ``RELOADING=1`` has to have as MONOTONIC_USEC: the present time of CLOCK_MONOTONIC."""
    return time.monotonic_ns() // 1000


class Notifier:
    """Reports to the service manager, while its block runs; without one it reports nothing.

    In the block the variables are not in the environment; afterwards they are again, since the process may serve again.
    """

    def __init__(self) -> None:
        self.watchdog: float | None = None
        """Seconds within which the service manager wants ``WATCHDOG=1`` again; None: it does not."""
        self._socket: socket.socket | None = None
        self._address: str | None = None
        self._taken: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._taken = {name: os.environ.pop(name) for name in NOTIFY_NAMES if name in os.environ}
        address = self._taken.get("NOTIFY_SOCKET", "")
        # Another kind of address than of a Unix socket, as of a virtual machine's (vsock), is not known here.
        if address[:1] in ("/", "@") and hasattr(socket, "AF_UNIX"):
            self._address = "\0" + address[1:] if address.startswith("@") else address
            usec, pid = self._taken.get("WATCHDOG_USEC", ""), self._taken.get("WATCHDOG_PID")
            if pid in (None, str(os.getpid())) and usec.isdecimal() and int(usec):
                self.watchdog = int(usec) / 1e6
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = self._address = self.watchdog = None
        os.environ.update(self._taken)

    def tell(self, **fields: object) -> bool:
        """Report these in one message; say whether it was sent, or there is nothing to send it to. Never blocks.

        ``tell(READY=1, STATUS="serving")``. False: the queue is full (EAGAIN), or there is no descriptor or no memory
        just now: the same may be told again later. From any thread that has not left the block, and in a signal
        handler.
        """
        if self._address is None:
            return True
        lines = (f"{name}={' '.join(str(value).splitlines())}" for name, value in fields.items())
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
            self._socket.sendto("\n".join(lines).encode(errors="replace"), self._address)
        except OSError:
            return False
        return True
