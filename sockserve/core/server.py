"""The servers that ``socketserver`` has: over TCP, UDP, and Unix stream and datagram sockets."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sockserve.core.base_server import AddressT, BaseServer, HandlerFactory
from sockserve.core.deferral import Deferral
from sockserve.core.hook_marks import drains
from sockserve.core.intake import by_intake, finishing, is_unix
from sockserve.core.life_in_place import end_stream, own
from sockserve.core.servable import Address, Request
from sockserve.core.serving import finish_lingering, table_of
from sockserve.core.type_parameters import TypeVar
from sockserve.errors import DatagramTruncatedError
from sockserve.net.address import with_zone
from sockserve.net.closing import end_input, half_close
from sockserve.net.listen import apply_reuse, family_of, open_socket, unix_name
from sockserve.net.socket_options import SocketOption, keep_alive, send_at_once, set_options
from sockserve.net.tls import defer_handshake, handshake, is_tls
from sockserve.net.unix_path import Owners, bind_unix
from sockserve.net.watched_socket import forget_taken, remembering

if TYPE_CHECKING:
    from sockserve.net.asked_address import AskedReceiver

__all__ = ["TCPServer", "UDPServer"]

_HAS_UNIX = hasattr(socket, "AF_UNIX")

# By default as in typeshed, where a hook's request may be a datagram as well.
StreamT = TypeVar("StreamT", default=Any)


class TCPServer(BaseServer[StreamT, AddressT]):
    """Serves connections of a stream socket.

    An IPv6 literal as host makes it an IPv6 server. With ``tls``, or with ``server.socket`` wrapped by an
    ``ssl.SSLContext``, the TLS handshake runs in the worker and ends within ``handshake_timeout`` seconds.

    Beside BaseServer's, class attributes that may be overridden: ``address_family``, ``socket_type``,
    ``request_queue_size``, ``allow_reuse_address``, ``allow_reuse_port``, ``handshake_timeout``, ``socket_mode``,
    ``socket_owner``, ``socket_group``, ``directory_mode``, ``disable_nagle_algorithm``, ``keepalive``,
    ``socket_options``, ``tls``, ``tls_at_once``, ``proxy_from``, ``direct_from``.
    """

    __module__ = "sockserve"

    address_family: int = socket.AF_INET
    socket_type: int = socket.SOCK_STREAM

    request_queue_size: int = socket.SOMAXCONN
    """The backlog: connections that the kernel completes and holds until they are accepted (listen(2))."""

    allow_reuse_address: bool = True
    """Whether a restart may bind while connections of the last run are in TIME_WAIT. (POSIX; on Windows the socket is
    always bound exclusively if this is true, because SO_REUSEADDR would share the port there.)"""

    allow_reuse_port: bool = False
    """Whether several sockets may share the port, if all of them say so (SO_REUSEPORT; IPv4 and IPv6 only)."""

    handshake_timeout: float = 10.0
    """Seconds for the PROXY header and the TLS handshake together."""

    tls: Any = None
    """TLS for all connections: a ``sockserve.TLS``, an ``ssl.SSLContext``, or a function that makes one. Read when the
    server begins to serve, and for each connection."""

    tls_at_once: bool = True
    """Whether connections begin with TLS. False: they begin in the clear, until a handler calls ``start_tls()``."""

    proxy_from: Sequence[str] = ()
    """From which peers a PROXY header comes and is believed, versions 1 and 2: networks such as "10.0.0.0/8", and
    "unix" for every client of a Unix socket. One of these that sends none is refused."""

    direct_from: Sequence[str] | None = None
    """Which peers come without a PROXY header; all others that are not in ``proxy_from`` are refused. None: all. Of
    both lists the longer prefix counts, so that a health check may come from a proxy's network."""

    disable_nagle_algorithm: bool = True
    """Whether small writes are sent at once (TCP_NODELAY, tcp(7)), as in Go and asyncio: an answer in two writes waits
    for the client's delayed acknowledgement otherwise, 40 ms on Linux."""

    keepalive: tuple[int, int, int] | None = None
    """Seconds of silence until a peer is asked whether it is still there, seconds between two questions, and how many
    may go unanswered (SO_KEEPALIVE, tcp(7)); None: never asked."""

    socket_options: Sequence[SocketOption] = ()
    """``(level, option, value)`` of each option to set before the socket is bound; accepted connections inherit it."""

    socket_mode: int | None = None
    """Permissions of a Unix socket's path, for example 0o600; None: what the umask leaves."""

    socket_owner: int | str | None = None
    """The user that owns a Unix socket's path, by number or name; None: the one that the process has."""

    socket_group: int | str | None = None
    """Its group, likewise."""

    directory_mode: int | None = None
    """Permissions with which the directory of a Unix socket's path is made if it is missing; None: it must be there."""

    def __init__(
        self,
        server_address: Address,
        RequestHandlerClass: HandlerFactory,  # noqa: N803 - stdlib's name
        bind_and_activate: bool = True,
    ) -> None:
        # By name: classes with a second base initialise that one themselves.
        BaseServer.__init__(self, server_address, RequestHandlerClass)
        if self.address_family == socket.AF_INET and isinstance(server_address, tuple) and server_address:
            self.address_family = family_of(server_address[0], self.address_family)  # pyright: ignore[reportUnknownArgumentType]
        self.socket: socket.socket = open_socket(self.address_family, self.socket_type)
        if bind_and_activate:
            try:
                self.server_bind()
                self.server_activate()
            except BaseException:
                self.server_close()
                raise

    def server_bind(self) -> None:
        """Bind the socket to ``server_address``, and put what was bound (the port, for port 0) back there.

        A Unix path that no process listens on any more is replaced, a live server's never. Raises OSError.
        """
        apply_reuse(self.socket, bool(self.allow_reuse_address), bool(self.allow_reuse_port))
        if self.disable_nagle_algorithm:
            send_at_once(self.socket)
        if self.keepalive is not None:
            keep_alive(self.socket, *self.keepalive)
        set_options(self.socket, self.socket_options)
        if _HAS_UNIX and self.socket.family == socket.AF_UNIX:
            with Deferral():
                owners = Owners(self.socket_owner, self.socket_group)
                bound_path = bind_unix(self.socket, self.server_address, self.socket_mode, owners, self.directory_mode)
                self._serving_state.bound_path = bound_path
                self._serving_state.lifecycle.when_serving = None if bound_path is None else bound_path.serve
            self.server_address = unix_name(self.socket.getsockname())
        else:
            self.socket.bind(with_zone(self.server_address))
            self.server_address = self.socket.getsockname()

    def server_activate(self) -> None:
        """Listen, with a backlog of ``request_queue_size``."""
        self.socket.listen(self.request_queue_size)

    def server_close(self) -> None:
        """Close the socket, and remove a Unix path that is still the one this server bound.

        Of several processes that share the server since a fork, the last that serves removes the path; a child that was
        made for a request and a worker process never do.
        """
        self._serving_free_address()
        finish_lingering(self)

    def _serving_leave_address(self) -> None:
        self._serving_free_address()

    def _serving_free_address(self) -> None:
        lifecycle = self._serving_state.lifecycle
        # First: a loop that begins now may find the socket closed before it is told of the close.
        lifecycle.listener_is_closing = True
        try:
            super().server_close()
            listener = getattr(self, "socket", None)
            if listener is not None:
                bound_path = self._serving_state.bound_path
                if bound_path is None:
                    listener.close()
                else:
                    bound_path.end(listener.close)
                    self._serving_state.bound_path = None
                # Again: a loop may have begun since, and closing a socket wakes no loop.
                super().server_close()
        finally:
            lifecycle.listener_is_closing = False

    def fileno(self) -> int:
        """The socket's descriptor; -1 when closed."""
        return self.socket.fileno()

    @by_intake
    @drains
    def get_request(self) -> tuple[StreamT, AddressT]:
        """Accept one connection; raises BlockingIOError while a loop runs and none is there."""
        intake = self._serving_state.intake
        accept: Callable[[], tuple[Request, Address]] | None = None if intake is None else intake.accept
        if accept is None:
            defer_handshake(self.socket)
            accept = finishing(remembering(self.socket.accept), has_names=is_unix(self))
        return accept()

    @property
    def _serving_has_steps(self) -> bool:
        has_tls = self.tls is not None and self.tls_at_once
        return has_tls or bool(self.proxy_from) or self.direct_from is not None

    @property
    def _serving_prepares(self) -> bool:
        # In one piece: it is asked for each request.
        return (
            self._serving_verifies_client
            or (self.tls is not None and self.tls_at_once)
            or self.direct_from is not None
            or bool(self.proxy_from)
        )

    @own
    def prepare_request(self, request: StreamT, client_address: AddressT) -> tuple[StreamT, AddressT]:
        """Shake hands if ``get_request()`` or the listener wrapped the connection for TLS. Raises HandshakeError.

        With ``tls`` and ``proxy_from`` all that has been done before it is called.

        An override that replaces the request must close what it made before it raises; what such a one gave to this is
        closed here.
        """
        if type(request) is not socket.socket and is_tls(request):
            try:
                handshake(request, self.handshake_timeout)
            except BaseException:
                if table_of(self).find(request) is None:
                    half_close(request)
                    request.close()
                raise
        return request, client_address

    def drain_request(self, request: StreamT) -> None:
        """Let a handler that waits for input see end-of-file; it can still write its answer."""
        end_input(request)

    @own
    def shutdown_request(self, request: StreamT) -> None:
        """Half-close, so that the peer gets the whole answer, then ``close_request()``.

        Does not wait. A connection whose peer may not have the whole answer yet lingers, by a descriptor of its own, in
        the server's loop: 2 seconds at most, 64 KiB of what still comes, and 256 connections of one server. If the
        handler's ``connection`` or ``request`` is another socket, into which this one was wrapped, that is closed.
        """
        end_stream(self, request, self._serving_state.table.by_id.get(id(request)))

    @own
    def close_request(self, request: StreamT) -> None:
        """Close the connection."""
        request.close()  # type: ignore[attr-defined]


class UDPServer(TCPServer[tuple[bytes, socket.socket], AddressT]):
    """Serves datagrams: a request is ``(data, socket)``, and a handler answers on that shared socket.

    Class attributes that may be overridden, beside TCPServer's: ``max_packet_size``, ``answer_from_asked``,
    ``multicast``.
    """

    __module__ = "sockserve"

    socket_type: int = socket.SOCK_DGRAM

    # For datagrams it would let a second server share the port, and take half of the requests.
    allow_reuse_address: bool = False

    max_packet_size: int = 65535
    """The largest datagram in bytes; a larger one is reported and not served. (UDP carries at most 65507, RFC 768.)"""

    answer_from_asked: bool = False
    """Whether answers come from the address that the client wrote to, on a host with several (IP_PKTINFO, ip(7)). Then
    the socket of a request is a view of the server's, with ``asked_address``; ``get_request()`` raises OSError where
    the system does not tell that address."""

    multicast: Sequence[str] = ()
    """Groups that ``server_bind()`` joins, as ``group[@source][%interface]``: "239.1.2.3%eth0". With any of them the
    socket gets only what is sent to these or to the host itself. Of worker processes with ``allow_reuse_port`` one gets
    what is sent to groups; without, they share it."""

    _serving_asked: AskedReceiver | None = None

    @drains
    def get_request(self) -> tuple[tuple[bytes, socket.socket], AddressT]:
        """Receive one datagram; raises BlockingIOError while a loop runs and none is there.

        Raises DatagramTruncatedError, an OSError, for one that is longer than ``max_packet_size``.
        """
        sock = self.socket
        limit = self.max_packet_size
        if self.proxy_from:
            from sockserve.net.proxy_header import LONGEST_HEADER  # noqa: PLC0415 - a server without proxies need not pay

            # What it is without its header is seen when that is read.
            limit += LONGEST_HEADER
        # One byte more than allowed, and the length itself tells whether the datagram was longer.
        client_address: Address
        intake = self._serving_state.intake
        if self.answer_from_asked:
            # perf: 1.1 us a datagram more than the ways below, NOTEBOOK.md#a-udp-request-inline-p4
            (data, sock), client_address = self._serving_receive_asked(limit + 1)
        elif intake is not None and intake.receive is not None:
            data, client_address = intake.receive(limit + 1)
        else:
            data, client_address = remembering(sock.recvfrom, of=sock)(limit + 1)
        if len(data) > limit:
            # It is judged as what recvfrom() raises.
            forget_taken()
            raise DatagramTruncatedError(limit, client_address)
        if client_address.__class__ is not tuple and _HAS_UNIX and self.address_family == socket.AF_UNIX:
            client_address = unix_name(client_address)
        return (data, sock), client_address

    def _serving_receive_asked(self, size: int) -> tuple[tuple[bytes, socket.socket], Address]:
        receiver = self._serving_asked
        if receiver is None or receiver.sock is not self.socket:
            receiver = self._serving_asked = self._serving_make_receiver()
        received: tuple[tuple[bytes, socket.socket], Address] = remembering(receiver.receive)(size)
        return received

    def _serving_make_receiver(self) -> AskedReceiver:
        from sockserve.net.asked_address import AskedReceiver  # noqa: PLC0415 - few servers need it

        return AskedReceiver(self.socket)

    @property
    def dropped(self) -> int | None:
        """How many datagrams the kernel has dropped since the start because the socket's buffer was full.

        None where the system does not tell (Linux does), and after ``server_close()``. From any thread.
        """
        from sockserve.net.dropped import DropCounter  # noqa: PLC0415 - most servers are never asked

        return self._serving_state.part(DropCounter).read(self.socket)

    def server_bind(self) -> None:
        """As TCPServer's; then join the groups of ``multicast``. Raises OSError, and AddressError for a bad group."""
        from sockserve.net.multicast import join, parse_membership  # noqa: PLC0415 - a server over TCP needs no ipaddress

        memberships = [parse_membership(each) for each in self.multicast]
        if self.answer_from_asked:
            # Before the first datagram: the kernel notes the address when one comes.
            self._serving_asked = self._serving_make_receiver()
        super().server_bind()
        for each in memberships:
            join(self.socket, each)

    def server_activate(self) -> None:
        """Nothing to do: a datagram socket does not listen."""

    def _serving_leave_address(self) -> None:
        """Nothing: workers answer on the socket."""

    @own
    def prepare_request(
        self, request: tuple[bytes, socket.socket], client_address: AddressT
    ) -> tuple[tuple[bytes, socket.socket], AddressT]:
        """Nothing to prepare."""
        return request, client_address

    def drain_request(self, request: tuple[bytes, socket.socket]) -> None:
        """Nothing to do: the whole request has been read."""

    def shutdown_request(self, request: tuple[bytes, socket.socket]) -> None:
        """Nothing to shut down; then ``close_request()``."""
        self.close_request(request)

    def close_request(self, request: tuple[bytes, socket.socket]) -> None:
        """Nothing to close: the socket is the server's."""


if _HAS_UNIX:
    __all__ += ["UnixDatagramServer", "UnixStreamServer"]

    class UnixStreamServer(TCPServer[StreamT, AddressT]):
        """Serves connections of a Unix stream socket, at a path or an abstract name (NUL and more)."""

        __module__ = "sockserve"

        address_family = socket.AF_UNIX

    class UnixDatagramServer(UDPServer[AddressT]):
        """Serves Unix datagrams; a client without a name has an empty ``client_address`` and gets no answer."""

        __module__ = "sockserve"

        address_family = socket.AF_UNIX
