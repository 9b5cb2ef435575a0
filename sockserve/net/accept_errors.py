"""What an error of accept(2) means, as a table.

Rule 1. An error that a peer caused concerns that peer alone: go on.
Rule 2. An error that the machine's state caused will come again at once: pause, or the loop spins.
Rule 3. An error of the listener itself never ends: leave the loop and say so.
Rule 4. An error that is not in the table may come again at once, too: rule 2.

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
    # Another process or thread has taken the connection, or the datagram's checksum was wrong.
    "EAGAIN": Verdict.NOTHING_THERE,
    "EWOULDBLOCK": Verdict.NOTHING_THERE,
    "EINTR": Verdict.NOTHING_THERE,
    # The peer left, or its network failed, between its SYN and this accept().
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
    # The datagram that did not fit is gone from the queue: the next may fit.
    "EMSGSIZE": Verdict.IGNORE,
    # No descriptor or no memory: every further try fails alike until some are released.
    "EMFILE": Verdict.BACK_OFF,
    "ENFILE": Verdict.BACK_OFF,
    "ENOBUFS": Verdict.BACK_OFF,
    "ENOMEM": Verdict.BACK_OFF,
    # A firewall refuses so one client (accept(2)), a sandbox (seccomp(2)) every call.
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
    """Return what the loop has to do after an error of accept() or recvfrom(). Never raises. From any thread."""
    if not isinstance(error, OSError):
        return Verdict.BACK_OFF
    ssl = sys.modules.get("ssl")
    if ssl is not None and (isinstance(error, ssl.SSLError) or _was_raised_in(ssl, error)):
        # The number of an SSLError is OpenSSL's, not the kernel's: 1 is not EPERM. Any other error raised by
        # the ssl module's own lines concerns the new connection, which these lines close.
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
