"""What a server says of PREPARE: its TLS, and which of its peers are proxies."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from sockserve.core.servable import Address, AnyServer
from sockserve.core.serving import serving_of
from sockserve.errors import RefusedError
from sockserve.net.networks import networks_of
from sockserve.net.tls import is_tls

if TYPE_CHECKING:
    from sockserve.net.tls_settings import TLS

__all__ = ["check_files", "check_settings", "is_proxied", "prepares", "tls_of"]


class _Settings:
    """The TLS that was made of a program's context."""

    source: object = None
    tls: TLS | None = None


def tls_of(server: AnyServer, given: Any = None) -> TLS | None:
    """The TLS that was given, or the server's, made of its ``tls`` if that is a context. Raises TypeError."""
    source = getattr(server, "tls", None) if given is None else given
    if source is None:
        return None
    settings = serving_of(server).part(_Settings)
    if settings.source is not source:
        from sockserve.net.tls_settings import as_tls  # noqa: PLC0415 - it needs ssl, which others need not pay for

        settings.tls = as_tls(source)
        settings.source = source
    return settings.tls


def prepares(server: AnyServer) -> bool:
    """Whether PREPARE of a server, a standard library's too, is more than to call ``prepare_request()``."""
    return bool(getattr(server, "_serving_prepares", False))


def check_settings(server: AnyServer) -> None:
    """Raise TypeError or AddressError if what a server says of PREPARE cannot work. Called when it begins to serve."""
    # A standard library's server has none of them.
    if not hasattr(server, "tls_at_once"):
        return
    if server.tls is not None:
        if is_tls(getattr(server, "socket", None)):
            raise TypeError(f"{server}: its socket is wrapped by an SSLContext already, so tls must be None")
        if server.socket_type != socket.SOCK_STREAM:
            raise TypeError(f"{server}: tls is for stream sockets only")
        tls_of(server)
    if server.proxy_from and server.socket_type not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        raise TypeError(f"{server}: proxy_from is for streams and datagrams only")
    networks_of(server.proxy_from)
    networks_of(server.direct_from or ())


def check_files(server: object) -> None:
    """Load a server's certificates anew if they have changed: before a fork, or each child would do it for itself."""
    if hasattr(server, "tls_at_once") and (tls := tls_of(server)) is not None:
        tls.check()


def is_proxied(server: AnyServer, peer: Address) -> bool:
    """Whether a PROXY header is required of this peer. Raises RefusedError if it may not come at all, AddressError."""
    proxy_from = server.proxy_from
    direct_from = server.direct_from
    by_proxy = networks_of(proxy_from).prefix_of(peer) if proxy_from else -1
    if direct_from is None:
        return by_proxy >= 0
    directly = networks_of(direct_from).prefix_of(peer)
    if by_proxy < 0 and directly < 0:
        raise RefusedError("the peer is named neither in proxy_from nor in direct_from")
    return by_proxy >= directly
