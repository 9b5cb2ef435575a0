"""A handler and address texts in; servers that listen out, one for each text, or none at all."""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast

from sockserve.core.base_server import HandlerFactory
from sockserve.core.deferral import Deferral
from sockserve.core.preparation_settings import tls_of
from sockserve.core.server import TCPServer
from sockserve.errors import AddressError, BindError
from sockserve.log import log
from sockserve.net.address import Address, format_address, parse_address
from sockserve.net.listen import adopt, listens, unix_name
from sockserve.net.systemd import inherited
from sockserve.ready_made import server_class

__all__ = ["AnyServer", "address_of", "check_tls", "open_servers", "reload_tls", "roots_of", "with_inherited"]

AnyServer: TypeAlias = TCPServer[Any, Any]

# Not every platform has it.
_SEQPACKET: Any = getattr(socket, "SOCK_SEQPACKET", None)

_SERVES = {
    "StreamRequestHandler": socket.SOCK_STREAM,
    "DatagramRequestHandler": socket.SOCK_DGRAM,
    "PacketRequestHandler": _SEQPACKET,
}

_WORDS: dict[int | None, str] = {
    _SEQPACKET: "connections with packets",
    socket.SOCK_STREAM: "connections",
    socket.SOCK_DGRAM: "datagrams",
}

# What an inherited descriptor may be; a platform without AF_UNIX has no socket of that family either.
_SCHEMES = {
    (getattr(socket, family, None), kind): scheme
    for family, kind, scheme in (
        ("AF_INET", socket.SOCK_STREAM, "tcp"),
        ("AF_INET6", socket.SOCK_STREAM, "tcp"),
        ("AF_UNIX", socket.SOCK_STREAM, "unix"),
        ("AF_INET", socket.SOCK_DGRAM, "udp"),
        ("AF_INET6", socket.SOCK_DGRAM, "udp"),
        ("AF_UNIX", socket.SOCK_DGRAM, "unix-dgram"),
        ("AF_UNIX", _SEQPACKET, "unix-seqpacket"),
    )
}


PORT_TRIES = 8
"""How often a free IPv4 port is tried whose IPv6 twin is taken: of the usual 28 000 free ones few are."""

_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
"""What socket() says where the kernel has no IPv6, and bind() where it was switched off at the start."""


def open_servers(
    handler: HandlerFactory, addresses: Sequence[str], model: str, settings: Mapping[str, object], signals: Deferral
) -> list[AnyServer]:
    """Open a server for each address, or none: when one fails, those before it are closed again.

    Of an address on every interface two, for IPv4 and IPv6, if the system has both.

    ``settings`` become attributes of each server before it is bound. Raises AddressError for a text that is no address,
    or is one that cannot be served, by this handler or at all; BindError for one that the system refuses; ValueError
    for a model that there is not. Signals are deferred by the caller; they are heard while a name is looked up.
    """
    parsed = [parse_address(text) for text in addresses]
    servers: list[AnyServer] = []
    with contextlib.ExitStack() as undo:
        for address in parsed:
            if any(server.fileno() == address.sockaddr for server in servers):
                raise AddressError(f"{address}: another of these servers has that descriptor")
            opened = _open(functools.partial(_make, handler, address, model), address, settings, signals)
            for server in opened:
                undo.callback(server.server_close)
            servers += opened
        undo.pop_all()
    return servers


_Make: TypeAlias = Callable[[Any, Deferral], AnyServer]


def check_tls(addresses: Sequence[str], tls: object) -> None:
    """Raise ValueError if there is TLS and no address for it, or the reverse. AddressError, TypeError."""
    is_for_tls = [parse_address(text).scheme == "tls" for text in addresses]
    if tls is None and any(is_for_tls):
        raise ValueError(f"{addresses[is_for_tls.index(True)]} needs tls, a certificate")
    if tls is not None and not any(is_for_tls):
        raise ValueError("tls is for tls:// addresses, and there are none")


def address_of(server: AnyServer) -> str:
    """The address text of a server that is bound."""
    text = format_address(server.socket)
    return text if server.tls is None else text.replace("tcp:", "tls:", 1)


def reload_tls(servers: Iterable[AnyServer]) -> None:
    """Load the TLS of the servers anew, once for all that share it. The log says that it was, or what fails."""
    for tls in {id(tls): tls for server in servers if (tls := tls_of(server)) is not None}.values():
        if tls.reload():
            log.info("the certificates were loaded anew")


def with_inherited(addresses: Sequence[str]) -> list[str]:
    """The same addresses, with those of the sockets that systemd passes in the place of ``systemd:`` and its name.

    Call it before this process becomes another one by fork(2). Raises AddressError.
    """
    found: list[str] = []
    for text in addresses:
        address = parse_address(text)
        if address.scheme == "systemd":
            found += [f"fd:{each.fd}" for each in inherited(str(address.sockaddr))]
        else:
            found.append(text)
    return found


def _open(make: _Make, address: Address, settings: Mapping[str, object], signals: Deferral) -> list[AnyServer]:
    if isinstance(address.sockaddr, tuple) and not address.sockaddr[0]:
        return _open_everywhere(make, address, settings, signals)
    return [_open_one(make(None, signals), address, settings)]


def _open_everywhere(
    make: _Make, address: Address, settings: Mapping[str, object], signals: Deferral
) -> list[AnyServer]:
    """Two servers on one port, for IPv4 and for IPv6; one where the system has no IPv6.

    Two sockets and not one for both: on that one IPv4 clients would have addresses such as ::ffff:192.0.2.1, which no
    list of addresses expects (RFC 4291, 2.5.5.2; RFC 3493, 5.3).
    """
    port = cast("tuple[str, int]", address.sockaddr)[1]
    for tries_left in reversed(range(PORT_TRIES)):
        first = _open_one(make(("0.0.0.0", port), signals), address, settings)  # noqa: S104 - it was asked for
        try:
            return [first, _open_one(make(("::", first.server_address[1]), signals), address, settings)]
        except BindError as error:
            if error.errno in _NO_IPV6:
                log.info("%s: IPv4 only, because there is no IPv6 here: %s", address, error)
                return [first]
            first.server_close()
            if port or error.errno != errno.EADDRINUSE or not tries_left:
                raise
        except BaseException:
            first.server_close()
            raise
    raise AssertionError("unreachable: the last try returns or raises")


def _open_one(server: AnyServer, address: Address, settings: Mapping[str, object]) -> AnyServer:
    try:
        vars(server).update(settings)
        if address.scheme != "tls":
            # Beside one with TLS.
            server.tls = None
        if address.scheme != "fd":
            if server.socket.family == socket.AF_INET6:
                # [::] takes the IPv4 port too unless it is told not to (ipv6(7)); then nothing else may have that one.
                server.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, True)
            server.server_bind()
        if not listens(server.socket) or "request_queue_size" in settings:
            # listen(2) on a socket that listens changes its backlog, for all processes that have it.
            server.server_activate()
    except OSError as error:
        server.server_close()
        raise _refusal(address, error) from error
    except BaseException:
        server.server_close()
        raise
    return server


def roots_of(handler: object) -> list[str]:
    """The names of the library's handler classes that a class derives from: sockserve's, or the standard library's."""
    mro = cast("tuple[type, ...]", getattr(handler, "__mro__", ()))
    return [base.__name__ for base in mro if base.__module__ in ("sockserve", "socketserver")]


def _make(handler: HandlerFactory, address: Address, model: str, name: Any, signals: Deferral) -> AnyServer:
    """A server that is not bound yet, or one that has taken an inherited socket over.

    ``name``: what it is to bind; None: what the address says.
    """
    with contextlib.ExitStack() as undo:
        inherited = adopt(cast("int", address.sockaddr), keeps_mode=True) if address.scheme == "fd" else None
        if inherited is None:
            scheme, kind, name = address.scheme, address.type, name or _resolve(address, signals)
        else:
            # Unless all goes well it stays open, and the caller's.
            undo.callback(inherited.detach)
            scheme, kind, name = _identify(address, inherited)
        for root in roots_of(handler):
            if _SERVES.get(root, kind) != kind:
                raise AddressError(
                    f"{address} takes {_WORDS.get(kind)}, and {handler!r} is a {root}: for {_WORDS[_SERVES[root]]}"
                )
        try:
            server = server_class(model, "tcp" if scheme == "tls" else scheme)(name, handler, bind_and_activate=False)
        except OSError as error:
            # EAFNOSUPPORT: a system without IPv6.
            raise _refusal(address, error) from error
        if inherited is not None:
            server.socket.close()
            server.socket = inherited
        undo.pop_all()
    return server


def _identify(address: Address, inherited: socket.socket) -> tuple[str, socket.SocketKind | None, Any]:
    kind = inherited.type
    try:
        scheme = _SCHEMES[inherited.family, kind]
    except KeyError:
        raise AddressError(f"{address}: nothing serves sockets of {inherited.family!r}, {kind!r}") from None
    name = inherited.getsockname()
    return scheme, kind, unix_name(name) if scheme.startswith("unix") else name


def _resolve(address: Address, signals: Deferral) -> Any:
    """What bind() takes; for a host name its first IPv4 address, or if it has none its first of another family."""
    if not isinstance(address.sockaddr, tuple) or not address.sockaddr[0]:
        return address.sockaddr
    host, port = address.sockaddr
    try:
        # As bytes: for text Python applies rules of its own, and other errors, before it asks the system.
        name, kind = host.encode(), cast("int", address.type)
        found = signals.lifted(lambda: socket.getaddrinfo(name, port, address.family, kind))
    except OSError as error:
        raise _refusal(address, error) from error
    return min(found, key=lambda info: info[0] != socket.AF_INET)[4]


def _refusal(address: Address, error: OSError) -> BindError:
    return BindError(error.errno, f"cannot serve on {address}: {error.strerror or error}")
