"""Datagrams whose answers come from the address that was asked, on a socket that is bound to all addresses.

A host with several addresses has to answer from the one that the client wrote to (RFC 1122, section 4.1.3.5): a
connected client drops anything else. The kernel tells that address with each datagram (IP_PKTINFO, ip(7);
IPV6_RECVPKTINFO, RFC 3542), and takes it back with the answer.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, Final

__all__ = ["AskedReceiver", "AskedSocket"]

_PKTINFO_OF_IPV4: Final = {"linux": 8, "darwin": 26}.get(sys.platform)
"""IP_PKTINFO: <linux/in.h>, <netinet/in.h>. CPython knows the name from 3.12 on only."""

_PKTINFO_OF_IPV6: int | None = getattr(socket, "IPV6_PKTINFO", None)
_WANT_PKTINFO_OF_IPV6: int | None = getattr(socket, "IPV6_RECVPKTINFO", None)

_IPV4 = struct.Struct("=I4s4s")
"""struct in_pktinfo: interface, local address, address of the header (a group or a broadcast address, perhaps)."""

_IPV6 = struct.Struct("=16sI")
"""struct in6_pktinfo: address of the header, interface."""

_IPV4_GROUPS, _IPV6_GROUPS = 224, 0xFF
"""First byte of addresses that are no source: of groups, and in IPv4 above that (RFC 1112, RFC 4291 section 2.7)."""

_MOST_KNOWN = 256
"""Local addresses for which the words to the kernel are kept: a host has few; with more of them all are made again."""

_DONT_WAIT: int = getattr(socket, "MSG_DONTWAIT", 0)


class AskedSocket(socket.socket):
    """A server's socket as one datagram's handler sees it: ``sendto()`` sends from the address that was asked.

    It has no descriptor of its own: everything else is done by the server's socket, but ``close()``, which does
    nothing. May be used in any thread, as long as the server's socket is open.
    """

    __slots__ = ("asked_address", "control", "server_socket")

    server_socket: socket.socket
    control: tuple[tuple[int, int, bytes], ...]
    asked_address: str | None
    """The local address that the client wrote to, without a port; None: a multicast group, or the kernel did not say.
    Answers come then from the address that the route to the client has."""

    def sendto(self, data: Any, *args: Any) -> int:
        """As ``socket.sendto(data[, flags], address)``, from the asked address. Raises OSError."""
        *flags, address = args
        return self.server_socket.sendmsg((data,), self.control, flags[0] if flags else 0, address)

    def close(self) -> None:
        """Do nothing: the socket is the server's."""

    def __exit__(self, *exc_info: object) -> None:
        pass

    def __repr__(self) -> str:
        return f"<{type(self).__name__} asked_address={self.asked_address!r} of {self.server_socket!r}>"


def _delegated(name: str) -> Callable[..., Any]:
    def method(self: AskedSocket, /, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.server_socket, name)(*args, **kwargs)

    method.__name__ = name
    method.__qualname__ = f"AskedSocket.{name}"
    method.__doc__ = f"``{name}()`` of the server's socket."
    return method


def _seen_through(name: str) -> property:
    def value(self: AskedSocket) -> Any:
        return getattr(self.server_socket, name)

    return property(value, doc=f"``{name}`` of the server's socket.")


for _name in {name for name in dir(socket.socket) if not name.startswith("_")} - set(vars(AskedSocket)):
    _make = _delegated if callable(getattr(socket.socket, _name)) else _seen_through
    setattr(AskedSocket, _name, _make(_name))


class AskedReceiver:
    """Receives datagrams together with the address that was asked. ``receive()`` may be called from any thread.

    Raises OSError if the system has no such option for this socket's family (errno ENOPROTOOPT or EINVAL).
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._is_ipv6 = sock.family == socket.AF_INET6
        if self._is_ipv6 and _WANT_PKTINFO_OF_IPV6 is not None and _PKTINFO_OF_IPV6 is not None:
            sock.setsockopt(socket.IPPROTO_IPV6, _WANT_PKTINFO_OF_IPV6, 1)
            self._wanted, size = (int(socket.IPPROTO_IPV6), _PKTINFO_OF_IPV6), _IPV6.size
        elif sock.family == socket.AF_INET and _PKTINFO_OF_IPV4 is not None:
            sock.setsockopt(socket.IPPROTO_IP, _PKTINFO_OF_IPV4, 1)
            self._wanted, size = (int(socket.IPPROTO_IP), _PKTINFO_OF_IPV4), _IPV4.size
        else:
            raise OSError(f"this system does not tell which address a datagram on {sock.family.name} was sent to")
        self._space = socket.CMSG_SPACE(size)
        self._known: dict[bytes, tuple[tuple[tuple[int, int, bytes], ...], str | None]] = {}

    def receive(self, size: int) -> tuple[tuple[bytes, AskedSocket], Any]:
        """Return the datagram, cut at ``size`` bytes, with the socket to answer on, and the sender.

        Raises BlockingIOError if there is none; never waits.
        """
        if self.sock.gettimeout() and not select.select([self.sock], [], [], 0)[0]:
            # One with a time-out waits so long, whatever the flags say: sock_call_ex() of CPython's socketmodule.c.
            raise BlockingIOError(errno.EAGAIN, "no datagram")
        data, ancillary, _flags, sender = self.sock.recvmsg(size, self._space, _DONT_WAIT)
        view: AskedSocket = _new(AskedSocket)
        view.server_socket = self.sock
        view.control, view.asked_address = (), None
        for level, kind, info in ancillary:
            if (level, kind) == self._wanted:
                view.control, view.asked_address = self._known.get(info) or self._learn(info)
        return (data, view), sender

    def _learn(self, info: bytes) -> tuple[tuple[tuple[int, int, bytes], ...], str | None]:
        # The interface is left out: the answer takes the route that the host's tables say, as any other packet.
        if self._is_ipv6:
            local, _interface = _IPV6.unpack(info)
            words, family, is_group = _IPV6.pack(local, 0), socket.AF_INET6, local[0] == _IPV6_GROUPS
        else:
            # Not the header's address, which may be a group or a broadcast address, unless the local one is 0.0.0.0, as
            # for what came before the option was set.
            _interface, local, header = _IPV4.unpack(info)
            local = local if any(local) else header
            words, family, is_group = _IPV4.pack(0, local, bytes(4)), socket.AF_INET, local[0] >= _IPV4_GROUPS
        known: tuple[tuple[tuple[int, int, bytes], ...], str | None] = ((), None)
        if not is_group:
            known = ((*self._wanted, words),), socket.inet_ntop(family, local)
        if len(self._known) >= _MOST_KNOWN:
            self._known = {}
        self._known[info] = known
        return known


_new: Any = socket.socket.__new__
