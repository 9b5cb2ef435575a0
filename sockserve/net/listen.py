"""Opens, adopts, copies and reopens the sockets of servers."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from typing import Any, SupportsIndex

from sockserve.errors import AddressError, PeerTimeoutError
from sockserve.net.address import is_ipv6
from sockserve.net.tls import wrapped_like

__all__ = [
    "UnixDatagramSocket",
    "UnixName",
    "adopt",
    "apply_reuse",
    "family_of",
    "listen_anew",
    "listen_no_more",
    "listens",
    "open_socket",
    "shares_port",
    "twin_of",
    "unix_name",
]

# Not every platform has it.
_SEQPACKET = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_STREAM)


def apply_reuse(sock: socket.socket, reuse_address: bool, reuse_port: bool) -> None:
    """Set whether a server may share its address; before bind(), on IPv4 and IPv6, elsewhere no effect. Raises OSError.

    ``reuse_address``: bind although connections of an earlier run linger in TIME_WAIT (socket(7), SO_REUSEADDR).
    Windows allows that anyway, and there SO_REUSEADDR would let any program take the port: a stream socket is bound
    exclusively instead. ``reuse_port``: all sockets that ask for it share the port, on systems that have SO_REUSEPORT.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        # Newer Linux kernels refuse SO_REUSEPORT on AF_UNIX with EOPNOTSUPP; SO_REUSEADDR does nothing there.
        return
    if reuse_address:
        exclusive: int | None = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
        if exclusive is not None and sock.type == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, exclusive, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port and hasattr(socket, "SO_REUSEPORT"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def listens(sock: object) -> bool:
    """Whether a socket, or an object that stands for one, listens (SOCK_STREAM, SOCK_SEQPACKET)."""
    if isinstance(sock, socket.socket) and sock.type not in (socket.SOCK_STREAM, _SEQPACKET):
        return False
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))  # type: ignore[attr-defined]
    except (OSError, AttributeError):
        # macOS knows the option for AF_INET only.
        return isinstance(sock, socket.socket)


def shares_port(sock: object) -> bool:
    """Whether other sockets may be bound to the same port beside it (SO_REUSEPORT)."""
    option: int | None = getattr(socket, "SO_REUSEPORT", None)
    if option is None or not isinstance(sock, socket.socket):
        return False
    return sock.family in (socket.AF_INET, socket.AF_INET6) and bool(sock.getsockopt(socket.SOL_SOCKET, option))


_OPTION_NUMBERS: tuple[int, ...] = (
    tuple(range(1, 128))
    if sys.platform.startswith("linux")
    else tuple({value for name, value in vars(socket).items() if name.startswith(("SO_", "TCP_", "IP_", "IPV6_"))})
)
"""Possible numbers of options: below 128 in all headers of Linux (asm/socket.h, linux/in.h, in6.h, tcp.h)."""

_OWN_OPTIONS = {getattr(socket, "SO_INCOMING_CPU", 49)}
"""Options of SOL_SOCKET that tell a socket's history: the CPU of its last packet (socket(7)). Not copied."""

_DOUBLED = {socket.SO_RCVBUF, socket.SO_SNDBUF}
"""Linux gives back twice the size that was set (socket(7))."""

_LONGEST_OPTION = 64


def twin_of(sock: socket.socket) -> socket.socket:
    """Return another socket at the address of a socket that shares its port; it does not listen yet.

    It has the same TLS, mode and options: every option that can be read and set is copied where it differs from a new
    socket's. What cannot be read is not copied: filters, multicast memberships. Raises OSError.
    """
    twin = socket.socket(sock.family, sock.type, sock.proto)
    try:
        _copy_options(sock, twin)
        twin.bind(sock.getsockname())
        twin = wrapped_like(sock, twin)
        twin.settimeout(sock.gettimeout())
    except BaseException:
        twin.close()
        raise
    return twin


def _copy_options(sock: socket.socket, twin: socket.socket) -> None:
    levels = {socket.SOL_SOCKET, socket.IPPROTO_IP if sock.family == socket.AF_INET else socket.IPPROTO_IPV6}
    if sock.type == socket.SOCK_STREAM:
        levels.add(socket.IPPROTO_TCP)
    for level in levels:
        for number in _OPTION_NUMBERS:
            if level == socket.SOL_SOCKET and number in _OWN_OPTIONS:
                continue
            try:
                value = sock.getsockopt(level, number, _LONGEST_OPTION)
                if value == twin.getsockopt(level, number, _LONGEST_OPTION):
                    continue
                if level == socket.SOL_SOCKET and number in _DOUBLED and sys.platform.startswith("linux"):
                    value = (int.from_bytes(value, sys.byteorder) // 2).to_bytes(len(value), sys.byteorder)
                twin.setsockopt(level, number, value)
            except OSError:
                # There is no such option, it is read only, or it needs a privilege.
                continue


def listen_anew(sock: socket.socket, backlog: int) -> None:
    """Make a stream socket listen if it does not: a twin, or a socket after ``listen_no_more()``. Raises OSError."""
    if sock.type == socket.SOCK_STREAM and not listens(sock):
        sock.listen(backlog)


def listen_no_more(sock: socket.socket) -> None:
    """Let the kernel give new connections to the other sockets of the port; those that wait here are reset.

    The socket stays bound and may listen again: Linux allows listen(2) after shutdown(2). Elsewhere no effect.
    """
    if sys.platform.startswith("linux") and sock.type == socket.SOCK_STREAM:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RD)


def family_of(host: object, default: int) -> int:
    """Return AF_INET6 for an IPv6 literal, with or without a zone, and ``default`` for anything else. Never raises."""
    return socket.AF_INET6 if isinstance(host, str) and is_ipv6(host) else default


class UnixDatagramSocket(socket.socket):
    """A server's Unix datagram socket, which never waits for a client that does not read.

    sendto(2) to a Unix datagram socket blocks while the receiver's queue is full, ten datagrams by default
    (net.unix.max_dgram_qlen): a handler that answers on ``request[1]`` would hold its thread, or the loop.
    """

    def sendto(self, data: Any, *args: Any) -> int:
        """As ``socket.sendto()``; raises PeerTimeoutError, a TimeoutError, instead of waiting for the receiver."""
        *flags, address = args
        try:
            return super().sendto(data, (flags[0] if flags else 0) | socket.MSG_DONTWAIT, address)
        except BlockingIOError as error:
            if self.gettimeout() == 0.0:
                raise
            raise PeerTimeoutError(f"{unix_name(address)!r} does not read its answers") from error


def open_socket(family: int, kind: int) -> socket.socket:
    """Open the socket of a server; for Unix datagrams a ``UnixDatagramSocket``. Raises OSError."""
    # gevent and eventlet put their own class there, with its own way to wait.
    is_plain = socket.socket.__module__ == "socket"
    if is_plain and family == getattr(socket, "AF_UNIX", None) and kind == socket.SOCK_DGRAM:
        return UnixDatagramSocket(family, kind)
    return socket.socket(family, kind)


def adopt(fd: int, *, keeps_mode: bool = False) -> socket.socket:
    """Make a blocking socket object of an inherited descriptor and own it: closing the object closes ``fd``.

    No duplicate is made: if ``fd`` stayed open, the port would be taken after the server has closed. Child processes do
    not inherit it. ``keeps_mode``: the open file description stays blocking or not as it is, since another program may
    use it; the object has no time-out all the same. AddressError: it is no open socket, and is left alone.
    """
    try:
        is_blocking = os.get_blocking(fd) if keeps_mode and sys.platform != "win32" else True
        sock = socket.socket(fileno=fd)
    except (OSError, OverflowError, ValueError) as error:
        raise AddressError(f"descriptor {fd} is not an open socket: {error}") from error
    if (
        type(sock) is socket.socket
        and sock.family == getattr(socket, "AF_UNIX", None)
        and sock.type == socket.SOCK_DGRAM
    ):
        sock = UnixDatagramSocket(fileno=sock.detach())
    if not keeps_mode or sock.gettimeout() is not None:
        sock.setblocking(True)
        if not is_blocking:
            os.set_blocking(fd, False)
    sock.set_inheritable(False)
    return sock


class UnixName(str):
    """The name of a Unix socket: a ``str`` whose item 0 is all of it.

    For programs that use ``client_address[0]`` for peers of every family, as ``http.server`` does when it logs.
    Any other index works as on ``str``. An abstract name begins with NUL; the name of a peer that bound none is empty.
    """

    __slots__ = ()

    def __getitem__(self, index: SupportsIndex | slice) -> str:
        return str(self) if index == 0 else super().__getitem__(index)


def unix_name(name: str | bytes | None) -> UnixName:
    """Return a name from getsockname(), accept() or recvfrom() as text that sendto() and connect() accept."""
    return UnixName(os.fsdecode(name or ""))
