"""Servers and handlers for packets over a connection: SOCK_SEQPACKET of Unix sockets (unix(7)).

A packet arrives whole or not at all, in order, and may carry open descriptors.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import ClassVar, Literal, cast, overload

from sockserve.core.base_server import AddressT, RequestT
from sockserve.core.handlers import BaseRequestHandler, ServerT
from sockserve.core.server import StreamT, UnixStreamServer
from sockserve.errors import PeerTimeoutError
from sockserve.net.passing import receive_packet, send_packet
from sockserve.seconds import socket_limit_of

__all__ = ["PacketRequestHandler", "UnixSeqpacketServer"]


class UnixSeqpacketServer(UnixStreamServer[StreamT, AddressT]):
    """Serves connections of a Unix socket that keeps packets apart (SOCK_SEQPACKET), at a path or an abstract name."""

    __module__ = "sockserve"

    socket_type = socket.SOCK_SEQPACKET


class PacketRequestHandler(BaseRequestHandler[ServerT, RequestT, AddressT]):
    """Handles a connection packet by packet: ``receive()`` and ``send()``. For ``UnixSeqpacketServer``."""

    __module__ = "sockserve"

    max_packet_size: ClassVar[int] = 65536
    """The largest packet in bytes that ``receive()`` takes."""

    timeout: ClassVar[float | None] = None
    """Seconds that one ``receive()`` or ``send()`` may take; None: without limit."""

    connection: RequestT

    def setup(self) -> None:
        """Set the connection's time-out."""
        self.connection = self.request
        if self.timeout is not None:
            cast("socket.socket", self.request).settimeout(socket_limit_of(self.timeout))

    @overload
    def receive(self, fds: Literal[0] = 0) -> bytes: ...  # type: ignore[overload-overlap]

    @overload
    def receive(self, fds: int) -> tuple[bytes, list[int]]: ...

    def receive(self, fds: int = 0) -> bytes | tuple[bytes, list[int]]:
        """Wait for the next packet and return it; with ``fds``, also the descriptors in it, at most so many.

        ``b""`` means that the client has closed its side. (An empty packet looks the same: recv(2).) The descriptors
        are the handler's to close; programs that are started do not inherit them.

        Raises PeerTimeoutError after ``timeout`` seconds; DatagramTruncatedError for a packet that is longer than
        ``max_packet_size``, and DescriptorsTruncatedError for one with more descriptors than ``fds``, or than this
        process has room for: the packet is lost then, and all its descriptors are closed.
        """
        try:
            data, received = receive_packet(cast("socket.socket", self.connection), self.max_packet_size, fds)
        except TimeoutError as error:
            raise PeerTimeoutError(*error.args) from error
        return (data, received) if fds else data

    def send(self, data: bytes | bytearray | memoryview, fds: Sequence[int] = ()) -> None:
        """Send one packet, whole, with copies of the descriptors ``fds``: at most 253, and then at least one byte.

        Raises PeerTimeoutError after ``timeout`` seconds, while the client does not read; OSError as sendmsg(2), for
        example EMSGSIZE for a packet that is larger than the socket's send buffer; ValueError.
        """
        try:
            send_packet(cast("socket.socket", self.connection), data, fds)
        except TimeoutError as error:
            raise PeerTimeoutError(*error.args) from error
