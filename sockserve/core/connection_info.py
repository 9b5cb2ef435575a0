"""The other end of a connection, and the way by which it came: ``handler.connection_info``."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sockserve.core.active_requests import LiveRequest
from sockserve.core.servable import Address, AnyServer, Request
from sockserve.core.serving import table_of
from sockserve.net.tls import is_tls

if TYPE_CHECKING:
    import ssl

    from sockserve.net.peer_credentials import PeerCredentials
    from sockserve.net.proxy_header import ProxyHeader

__all__ = ["ConnectionInfo", "KnowsConnection", "TLSInfo", "info_of", "tls_info_of"]

# Of no socket where there are no Unix sockets.
_AF_UNIX: int = getattr(socket, "AF_UNIX", -1)


class TLSInfo(NamedTuple):
    """What the handshake with this server agreed on."""

    version: str
    """As "TLSv1.3"."""
    cipher: str
    alpn: str | None
    """The application protocol; None if none was agreed on."""
    server_name: str | None
    """The host that the client asked for, in its own spelling; None if it named none."""
    client_certificate: bytes | None
    """The client's certificate as DER. Only one that the server's ``client_ca`` vouches for is ever here."""
    client_certificate_fields: Mapping[str, Any]
    """The same, as ``ssl.SSLSocket.getpeercert()`` gives it; empty without one."""
    chain: tuple[bytes, ...]
    """The client's certificate and those that vouch for it, as DER; empty without one."""
    is_resumed: bool
    """Whether an earlier session went on."""


class ConnectionInfo(NamedTuple):
    """Both ends of a connection, as the transport has them and as they are believed to be."""

    peer_address: Address
    """The other end of the transport: of a proxy's connection, the proxy's."""
    client_address: Address
    """The client: the address in a PROXY header that was required, else the peer's."""
    local_address: Address
    """This end of the transport: with ``answer_from_asked``, the address that a datagram was sent to. None if the
    connection is closed already."""
    destination_address: Address
    """Where the client connected to: the address in the PROXY header, else ``local_address``."""
    proxy_header: ProxyHeader | None = None
    tls: TLSInfo | None = None
    peer_credentials: PeerCredentials | None = None
    """The process at the other end of a Unix stream or packet socket, as the kernel knows it: of a proxy's connection,
    the proxy's. None for all other sockets, and where the system does not tell (Linux does)."""

    @property
    def is_secure(self) -> bool:
        """Whether the client came by TLS: to this server, or to the proxy."""
        return self.tls is not None or (self.proxy_header is not None and self.proxy_header.tls is not None)

    @property
    def server_name(self) -> str | None:
        """The host that the client asked for in its TLS handshake, with this server or else with the proxy."""
        if self.tls is not None:
            return self.tls.server_name
        return None if self.proxy_header is None else self.proxy_header.authority


# Tracebacks and pickles name a thing by where it is public; a NamedTuple cannot say it in its body.
TLSInfo.__module__ = ConnectionInfo.__module__ = "sockserve"


def info_of(server: AnyServer, request: Request) -> ConnectionInfo:
    """The information of a request in progress, or of a socket or datagram that no server knows.

    Never raises OSError. A few microseconds.
    """
    live = table_of(server).find(request)
    return plain_info(request, None) if live is None else info_of_live(live)


def info_of_live(live: LiveRequest) -> ConnectionInfo:
    """The same, of a request's record."""
    found: ConnectionInfo | None = live.connection_info
    return plain_info(live.request, live.client_address) if found is None else found


def plain_info(request: Request, peer: Address) -> ConnectionInfo:
    """What a socket itself tells; ``peer`` is what ``accept()`` or ``recvfrom()`` told, None: to be asked for."""
    connection: Request = request
    if isinstance(request, tuple) and len(connection) == 2:
        # A datagram.
        connection = connection[1]
    local = _ask(connection, "getsockname")
    if peer is None:
        peer = _ask(connection, "getpeername")
    asked: str | None = getattr(connection, "asked_address", None)
    if asked is not None:
        local = (asked, *local[1:])
    tls = tls_info_of(connection, None) if is_tls(connection) and connection.version() is not None else None
    return ConnectionInfo(peer, peer, local, local, tls=tls, peer_credentials=_credentials_of(connection))


def _credentials_of(connection: Request) -> PeerCredentials | None:
    if getattr(connection, "family", None) != _AF_UNIX:
        return None
    from sockserve.net.peer_credentials import credentials_of  # noqa: PLC0415 - few servers are on Unix sockets

    return credentials_of(connection)


def _ask(connection: Request, name: str) -> Any:
    try:
        return getattr(connection, name)()
    except (OSError, AttributeError):
        # It is closed, or no socket.
        return None


def tls_info_of(sock: ssl.SSLSocket, server_name: str | None) -> TLSInfo:
    """What was agreed on, of a connection that has shaken hands."""
    certificate = sock.getpeercert(True)
    fields: Any = sock.getpeercert() if certificate is not None else None
    cipher = sock.cipher()
    return TLSInfo(
        version=sock.version() or "",
        cipher=cipher[0] if cipher else "",
        alpn=sock.selected_alpn_protocol(),
        server_name=server_name,
        client_certificate=certificate,
        client_certificate_fields=fields or {},
        chain=() if certificate is None else _chain_of(sock),
        is_resumed=bool(sock.session_reused),
    )


def _chain_of(sock: Any) -> tuple[bytes, ...]:
    if sys.version_info >= (3, 13):
        return tuple(sock.get_verified_chain())
    # What 3.13 made public.
    ssl = sys.modules["_ssl"]
    return tuple(each.public_bytes(ssl.ENCODING_DER) for each in sock._sslobj.get_verified_chain() or ())  # noqa: SLF001


class _OfThisRequest:
    """The attribute ``connection_info``. One of that name which a program's handler sets takes its place."""

    def __get__(self, handler: KnowsConnection | None, owner: type) -> object:
        return self if handler is None else info_of(handler.server, handler.request)


class KnowsConnection:
    """The base of handlers that can tell of their connection."""

    if TYPE_CHECKING:
        request: Request
        server: AnyServer

        @property
        def connection_info(self) -> ConnectionInfo:
            """Both ends of the connection, the PROXY header and the TLS handshake."""
            ...
    else:
        connection_info = _OfThisRequest()
