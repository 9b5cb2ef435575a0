"""Packets with open descriptors over a Unix socket (unix(7), SCM_RIGHTS): nothing is lost, nothing is left open."""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Any

from sockserve.errors import DatagramTruncatedError, DescriptorsTruncatedError

__all__ = ["MOST_DESCRIPTORS", "receive_packet", "send_packet"]

MOST_DESCRIPTORS = 253
"""How many descriptors one packet carries at most: SCM_MAX_FD of Linux's net/scm.h."""

_INT = array.array("i").itemsize


def receive_packet(connection: socket.socket, limit: int, fds: int) -> tuple[bytes, list[int]]:
    """Receive one packet of at most ``limit`` bytes with at most ``fds`` descriptors, which the caller closes.

    The descriptors are not inherited by programs that this process starts. ``b""`` is the end, or an empty packet.
    Raises DatagramTruncatedError for a longer packet, DescriptorsTruncatedError for more descriptors, or if this
    process has no room for them (EMFILE): then all that came are closed, and the packet is lost. OSError as recvmsg(2).
    """
    room = socket.CMSG_SPACE(fds * _INT) if fds else 0
    # CLOEXEC is set by CPython for descriptors that recvmsg() brings only where the flag exists: Linux has it.
    flags: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    data, ancillary, came, _ = connection.recvmsg(limit, room, flags)
    received = _descriptors(ancillary)
    # CMSG_SPACE() rounds up: there may be room for one more than was asked for.
    if came & socket.MSG_CTRUNC or len(received) > fds:
        _close(received)
        raise DescriptorsTruncatedError(fds)
    if came & socket.MSG_TRUNC:
        _close(received)
        raise DatagramTruncatedError(limit, None)
    if not flags:
        for fd in received:
            os.set_inheritable(fd, False)
    return data, received


def send_packet(connection: socket.socket, data: Any, fds: Sequence[int] = ()) -> None:
    """Send one packet whole, with copies of these descriptors. Raises OSError as sendmsg(2): EMSGSIZE, EPIPE.

    With descriptors the packet must have at least one byte: ValueError.
    """
    if not fds:
        connection.sendmsg([data])
        return
    if not memoryview(data).nbytes:
        raise ValueError("descriptors need a packet of at least one byte")
    connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % _INT])
    return found.tolist()


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
