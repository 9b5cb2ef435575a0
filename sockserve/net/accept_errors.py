"""What an error of accept(2) means, as a table.

Rule 1. An error that one peer caused is that peer's: go on.
Rule 2. An error that the machine's state caused will come again at once: pause, or the loop spins.
Rule 3. An error of the listener itself never ends: leave the loop and say so.
Rule 4. What nobody foresaw may come again at once too: rule 2.

Sources: accept(2), "Error handling" (Linux reports errors that were pending on the *new* connection); POSIX.1-2024
accept(); Go's internal/poll and ``net/http.Server.Serve`` for the delays.
"""

from __future__ import annotations

import enum
import errno
import sys
from typing import Any

__all__ = ["BACK_OFF_FIRST", "BACK_OFF_LAST", "Verdict", "is_out_of_descriptors", "is_shortage", "judge"]

BACK_OFF_FIRST = 0.005
"""Seconds of the first pause: as Go's ``Server.Serve``; long enough that 200 tries a second cost nothing."""

BACK_OFF_LAST = 1.0
"""Seconds that a pause never exceeds: as Go's; a client's connect time-out is far longer."""


class Verdict(enum.Enum):
    """What the loop does after an accept that failed."""

    NOTHING_THERE = "nothing there"
    IGNORE = "ignore"
    BACK_OFF = "back off"
    FATAL = "fatal"


_VERDICTS: dict[str, Verdict] = {
    # Another process or thread took the connection first, or the datagram's checksum was wrong.
    "EAGAIN": Verdict.NOTHING_THERE,
    "EWOULDBLOCK": Verdict.NOTHING_THERE,
    "EINTR": Verdict.NOTHING_THERE,
    # The peer left between its SYN and our accept, or the network beneath it did.
    "ECONNABORTED": Verdict.IGNORE,
    "ECONNREFUSED": Verdict.IGNORE,
    "ECONNRESET": Verdict.IGNORE,
    "EHOSTDOWN": Verdict.IGNORE,
    "EHOSTUNREACH": Verdict.IGNORE,
    "ENETDOWN": Verdict.IGNORE,
    "ENETUNREACH": Verdict.IGNORE,
    "ENONET": Verdict.IGNORE,
    "ENOPROTOOPT": Verdict.IGNORE,
    "EPIPE": Verdict.IGNORE,
    "EPROTO": Verdict.IGNORE,
    "ETIMEDOUT": Verdict.IGNORE,
    # A datagram that did not fit was taken from the queue: the next one may.
    "EMSGSIZE": Verdict.IGNORE,
    # No descriptor or no memory: every further try fails alike until something is released.
    "EMFILE": Verdict.BACK_OFF,
    "ENFILE": Verdict.BACK_OFF,
    "ENOBUFS": Verdict.BACK_OFF,
    "ENOMEM": Verdict.BACK_OFF,
    # A firewall may say so of one client (accept(2)), a sandbox (seccomp(2)) of every call, for ever.
    "EPERM": Verdict.BACK_OFF,
    # The listener is closed, is no socket, or does not listen.
    "EBADF": Verdict.FATAL,
    "EFAULT": Verdict.FATAL,
    "EINVAL": Verdict.FATAL,
    "ENOTSOCK": Verdict.FATAL,
    "EOPNOTSUPP": Verdict.FATAL,
}
# Not every platform has every name, and Windows has twins of its own (WSAECONNRESET …).
_BY_NUMBER: dict[int, Verdict] = {
    getattr(errno, spelling): verdict
    for name, verdict in _VERDICTS.items()
    for spelling in (name, f"WSA{name}")
    if hasattr(errno, spelling)
}


def judge(error: BaseException) -> Verdict:
    """Say what an error of accept() or recvfrom() asks of the loop. Never raises."""
    if not isinstance(error, OSError):
        return Verdict.BACK_OFF
    ssl = sys.modules.get("ssl")
    if ssl is not None and (isinstance(error, ssl.SSLError) or _was_raised_in(ssl, error)):
        # The number of an SSLError is OpenSSL's, not the kernel's: 1 would read EPERM. Any other error that SSLSocket's
        # own lines raise is of the new connection, which they close.
        return Verdict.IGNORE
    if error.errno is None:
        by_peer = isinstance(error, (ConnectionError, TimeoutError))
        return Verdict.IGNORE if by_peer else Verdict.BACK_OFF
    return _BY_NUMBER.get(error.errno, Verdict.BACK_OFF)


def _was_raised_in(module: Any, error: BaseException) -> bool:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_globals is vars(module)


def is_out_of_descriptors(error: BaseException) -> bool:
    """Say whether an error means that a descriptor has to be closed before another can be opened."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def is_shortage(error: OSError) -> bool:
    """Say whether the system had no room for what was asked, so that the same may work later.

    epoll_ctl(2) fails so with ENOSPC at the limit of watches that all programs of one user share, and with ENOMEM.
    """
    return error.errno in (errno.ENOSPC, errno.ENOMEM, errno.ENOBUFS, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
