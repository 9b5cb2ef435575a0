"""What can go wrong, and whose doing it is.

Three branches under one root. *Ours*: the program used sockserve in a way that cannot work. *The peer's*: the other end
of a socket left, stalled or lied; the server goes on. *The system's*: the kernel refused something.
Each class is also the built-in exception that ``socketserver`` raises at that place, so that an ``except OSError`` or
``except ValueError`` written for the standard library still catches it.
"""

from __future__ import annotations

import errno

__all__ = [
    "AddressError",
    "AlreadyServingError",
    "BindError",
    "CrashLoopError",
    "DatagramTruncatedError",
    "DescriptorsTruncatedError",
    "DropInError",
    "HandshakeError",
    "ListenerLostError",
    "PeerError",
    "PeerTimeoutError",
    "ProxyHeaderError",
    "RefusedError",
    "ServerClosedError",
    "SlowPeerError",
    "SockserveError",
    "TLSSettingsError",
]


class SockserveError(Exception):
    """The root of every exception that sockserve defines."""


# ours: how the program used us


class AddressError(SockserveError, ValueError):
    """A text is not an address; the message shows valid ones."""


class AlreadyServingError(SockserveError, RuntimeError):
    """A second ``serve_forever()`` while the first still runs."""


class ServerClosedError(SockserveError, ValueError):
    """The server's socket is closed: nothing can be accepted any more."""


class ListenerLostError(SockserveError, RuntimeError):
    """The listening socket failed, or was closed or replaced under the running loop."""


class CrashLoopError(SockserveError, RuntimeError):
    """Worker processes end as soon as they begin, again and again; the message names the cause of the last."""


class DropInError(SockserveError, RuntimeError):
    """``socketserver`` can no longer be replaced in this process; the message names the modules that already use it."""


class TLSSettingsError(SockserveError, OSError):
    """A certificate, a key or what belongs to them cannot be used; the message names the file and the reason."""


# the peer's


class PeerError(SockserveError):
    """The other end of a connection left, stalled or broke the protocol."""


class PeerTimeoutError(PeerError, TimeoutError):
    """The peer neither sent nor took a byte for as long as the handler's ``timeout`` allows."""


class SlowPeerError(PeerTimeoutError):
    """The server has cut the connection because its peer was too slow for ``deadlines``; the message says for which."""


class RefusedError(PeerError, OSError):
    """The connection ends before its handler: what has to come first is wrong or late. The message says why."""


class HandshakeError(RefusedError):
    """The TLS handshake failed or did not end within ``handshake_timeout``."""


class ProxyHeaderError(RefusedError):
    """The PROXY header is missing, malformed, or did not come within ``handshake_timeout``."""


class DatagramTruncatedError(PeerError, OSError):
    """A datagram was larger than ``max_packet_size`` and arrived cut (recv(2), MSG_TRUNC)."""

    def __init__(self, limit: int, sender: object) -> None:
        super().__init__(errno.EMSGSIZE, f"a datagram from {sender!r} is longer than max_packet_size, {limit} bytes")


class DescriptorsTruncatedError(PeerError, OSError):
    """A packet had more descriptors than were asked for, or than this process has room for (recvmsg(2), MSG_CTRUNC).

    All of them are closed, and the packet is lost: what is missing cannot be told from what was never sent.
    """

    def __init__(self, fds: int) -> None:
        super().__init__(errno.EMSGSIZE, f"a packet had more descriptors than could be received; asked for: {fds}")


# the system's


class BindError(SockserveError, OSError):
    """An address could not be bound; ``errno`` is the kernel's, the message names the address."""
