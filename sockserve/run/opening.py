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
from sockserve.net.address import Address, format_address, is_ipv6, parse_address
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
"""How often a free port is tried that another address of the same text has taken: of the usual 28 000 few are."""


def open_servers(
    handler: HandlerFactory, addresses: Sequence[str], model: str, settings: Mapping[str, object], signals: Deferral
) -> list[AnyServer]:
    """Open a server for each address, or none: when one fails, those before it are closed again.

    Of an address on every interface two, for IPv4 and IPv6, of a host name one for each of its addresses; without those
    of IPv6 if the system has none.

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


_Make: TypeAlias = Callable[[Any], AnyServer]


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
    """A server for each thing to bind, all on one port: another is tried if a free one is not free for all of them."""
    names = _names_of(address, signals)
    any_port = isinstance(address.sockaddr, tuple) and address.sockaddr[1] == 0
    for tries_left in reversed(range(PORT_TRIES)):
        try:
            return _open_on_one_port(make, address, names, settings)
        except BindError as error:
            if not any_port or len(names) == 1 or error.errno != errno.EADDRINUSE or not tries_left:
                raise
    raise AssertionError("unreachable: the last try returns or raises")


def _open_on_one_port(
    make: _Make, address: Address, names: Sequence[Any], settings: Mapping[str, object]
) -> list[AnyServer]:
    servers: list[AnyServer] = []
    with contextlib.ExitStack() as undo:
        for name in names:
            # Not the port of the text: the first server may have chosen one.
            on_port = (name[0], servers[0].server_address[1], *name[2:]) if servers else name
            try:
                server = _open_one(make(on_port), address, settings)
            except BindError as error:
                if not servers or not _lacks_ipv6(name, error):
                    raise
                log.info("%s: IPv4 only, because there is no IPv6 here: %s", address, error)
                break
            undo.callback(server.server_close)
            servers.append(server)
        undo.pop_all()
    return servers


def _lacks_ipv6(name: Any, error: BindError) -> bool:
    """Whether an IPv6 address was refused because the system has no IPv6, or has it switched off."""
    if not is_ipv6(name[0]):
        return False
    if error.errno != errno.EADDRNOTAVAIL:
        return error.errno == errno.EAFNOSUPPORT
    # This address alone may be missing. An interface with disable_ipv6 has none at all, not even lo its own.
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return True
    return False


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


def _make(handler: HandlerFactory, address: Address, model: str, name: Any) -> AnyServer:
    """A server that is to bind ``name`` and has not yet, or one that has taken an inherited socket over."""
    with contextlib.ExitStack() as undo:
        inherited = adopt(cast("int", address.sockaddr), keeps_mode=True) if address.scheme == "fd" else None
        if inherited is None:
            scheme, kind = address.scheme, address.type
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


def _names_of(address: Address, signals: Deferral) -> list[Any]:
    """What bind() is to take, IPv4 before IPv6: of every interface two, of a host name all its addresses.

    Two sockets and not one for both IP versions: on that one IPv4 clients would have addresses such as
    ::ffff:192.0.2.1, which no list of addresses expects (RFC 4291, 2.5.5.2; RFC 3493, 5.3).
    """
    if not isinstance(address.sockaddr, tuple):
        return [address.sockaddr]
    host, port = address.sockaddr
    if address.is_everywhere:
        return [("0.0.0.0", port), ("::", port)]  # noqa: S104 - it was asked for
    try:
        # As bytes: for text Python applies rules of its own, and other errors, before it asks the system.
        name, kind = host.encode(), cast("int", address.type)
        found = signals.lifted(lambda: socket.getaddrinfo(name, port, address.family, kind))
    except OSError as error:
        raise _refusal(address, error) from error
    found.sort(key=lambda info: info[0] != socket.AF_INET)
    # The same address stands in several lines of some /etc/hosts.
    return list(dict.fromkeys(info[4] for info in found))


def _refusal(address: Address, error: OSError) -> BindError:
    return BindError(error.errno, f"cannot serve on {address}: {error.strerror or error}")
