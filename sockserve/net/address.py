"""Texts that say where to listen or connect: ``tcp://[::1]:80``, ``unix:/run/app.sock``, ``fd:3``.

Rule 1. A text is an address, or AddressError says what would be one.
Rule 2. A text gives itself back: ``str(parse_address(text)) == text``.
Rule 3. Reading a text opens no socket, asks no resolver and touches no file.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sockserve.errors import AddressError

__all__ = ["ACCEPTED_FORMS", "Address", "format_address", "is_ipv6", "parse_address", "with_zone"]

# Bytes that sun_path holds beside the NUL that ends a path or begins an abstract name: unix(7), BSD's <sys/un.h>.
_UNIX_NAME_LIMIT = 107 if sys.platform.startswith("linux") else 103

_LAST_PORT = 65535
_LAST_FD = 2**31 - 1

# One spelling for each number: no sign, no leading zero, no digit outside ASCII.
_NUMBER = re.compile("0|[1-9][0-9]{0,9}")
# RFC 1123, 2.1, and the underscore that container networks put into names.
_HOST_NAME = re.compile("[A-Za-z0-9._-]+")
# FileDescriptorName= of systemd.socket(5): ASCII without ":" and control characters.
_UNIT_NAME = re.compile("[!-9;-~]{0,255}")
# RFC 6874: unreserved characters.
_ZONE = re.compile("[A-Za-z0-9._~-]+")
# Hosts that stand for every interface.
_EVERYWHERE = ("", "*")


class Address(NamedTuple):
    """The parts of an address text; ``str()`` gives the text back."""

    scheme: str
    """The word before the first colon."""

    family: socket.AddressFamily
    """AF_UNSPEC where the text does not say it: for a host name, every interface, an inherited descriptor."""

    type: socket.SocketKind | None
    """SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET; None for an inherited descriptor, whose type only the kernel knows."""

    sockaddr: tuple[str, int] | str | int
    """What bind() takes: host and port, or a path, or an abstract name that begins with NUL; or the descriptor, or the
    name of what systemd passes, "" for all of it."""

    @property
    def is_everywhere(self) -> bool:
        """Whether it is a port of every interface: ``tcp://*:80``, or ``tcp://:80``, which means the same."""
        return isinstance(self.sockaddr, tuple) and self.sockaddr[0] in _EVERYWHERE

    def __str__(self) -> str:
        if isinstance(self.sockaddr, tuple):
            host, port = self.sockaddr
            return f"{self.scheme}://[{host}]:{port}" if ":" in host else f"{self.scheme}://{host}:{port}"
        if isinstance(self.sockaddr, str) and self.sockaddr.startswith("\0"):
            return f"{self.scheme}:@{self.sockaddr[1:]}"
        return f"{self.scheme}:{self.sockaddr}"


def parse_address(text: str) -> Address:
    """Return what an address text says. AddressError: names the text, what is wrong with it, and the accepted forms."""
    name, _, rest = text.partition(":")
    scheme = _SCHEMES.get(name)
    if scheme is None:
        raise _refusal(text, "it begins with none of the words below")
    try:
        family, sockaddr = scheme.read(rest)
    except ValueError as error:
        raise _refusal(text, str(error)) from None
    return Address(name, family, scheme.type, sockaddr)


def _refusal(text: str, reason: str) -> AddressError:
    return AddressError(f"{text!r} is not an address: {reason}. Accepted are:\n{ACCEPTED_FORMS}")


def format_address(sock: socket.socket) -> str:
    """Return the text for what a socket is bound to. ``parse_address`` reads it, if the family has such texts.

    A zone is given by its number: a name may have several spellings. OSError: the socket is closed.
    """
    name = sock.getsockname()
    is_datagram = sock.type == socket.SOCK_DGRAM
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        host, port, *flow_and_zone = name
        if flow_and_zone and flow_and_zone[1]:
            host = f"{host}%{flow_and_zone[1]}"
        return str(Address("udp" if is_datagram else "tcp", sock.family, sock.type, (host, port)))
    if hasattr(socket, "AF_UNIX") and sock.family == socket.AF_UNIX:
        path = os.fsdecode(name)
        # "./": without it a relative path that begins with @ would be read as an abstract name.
        path = f"./{path}" if path.startswith("@") else path
        return str(Address(_UNIX_SCHEMES.get(sock.type, "unix"), sock.family, sock.type, path))
    return str(name)


def is_ipv6(host: str) -> bool:
    """Say whether a host is an IPv6 literal, with or without a zone (RFC 4007, section 11). Never raises."""
    return _is_literal(socket.AF_INET6, host.partition("%")[0])


def with_zone(sockaddr: Any) -> Any:
    """Return a socket address with the zone of its host as the fourth item, where bind() and connect() expect it.

    Python's bind() takes ("fe80::1%eth0", 80) and drops the zone (RFC 4007, 11; ipv6(7)). Any other address is returned
    as it is. OSError: there is no such interface.
    """
    if not isinstance(sockaddr, tuple) or len(sockaddr) != 2 or not isinstance(sockaddr[0], str):  # pyright: ignore[reportUnknownArgumentType]
        return sockaddr  # pyright: ignore[reportUnknownVariableType]
    host, percent, zone = sockaddr[0].partition("%")
    if not percent or not is_ipv6(host):
        return sockaddr  # pyright: ignore[reportUnknownVariableType]
    return host, sockaddr[1], 0, int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)


def _is_literal(family: socket.AddressFamily, host: str) -> bool:
    try:
        socket.inet_pton(family, host)
    except (OSError, ValueError):
        # ValueError: a NUL, or characters that cannot be encoded.
        return False
    return True


def _read_host_and_port(rest: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    host, colon, port = rest.removeprefix("//").rpartition(":")
    if not rest.startswith("//") or not colon:
        raise ValueError("it lacks '//' before the host, or ':' and a port after it")
    number = _read_number(port, "port", _LAST_PORT)
    return _family_of_host(host), (host.strip("[]"), number)


def _family_of_host(host: str) -> socket.AddressFamily:
    if host.startswith("[") and host.endswith("]"):
        literal, percent, zone = host[1:-1].partition("%")
        if not _is_literal(socket.AF_INET6, literal):
            raise ValueError(f"{literal!r} is not an IPv6 address")
        if percent and not _ZONE.fullmatch(zone):
            raise ValueError(f"{zone!r} is not a zone")
        return socket.AF_INET6
    if is_ipv6(host):
        raise ValueError("an IPv6 address needs brackets")
    if host not in _EVERYWHERE and not _HOST_NAME.fullmatch(host):
        raise ValueError(f"{host!r} is not a host name")
    return socket.AF_INET if _is_literal(socket.AF_INET, host) else socket.AF_UNSPEC


def _read_path(rest: str) -> tuple[socket.AddressFamily, str]:
    if not hasattr(socket, "AF_UNIX"):
        raise ValueError("this platform has no Unix sockets")
    is_abstract = rest.startswith("@")
    name = rest[1:] if is_abstract else rest
    if is_abstract and not sys.platform.startswith("linux"):
        raise ValueError("abstract names exist on Linux only")
    if not name:
        raise ValueError("it lacks a path or name")
    if "\0" in name:
        raise ValueError("it contains a NUL")
    if len(os.fsencode(name)) > _UNIX_NAME_LIMIT:
        raise ValueError(f"a Unix socket's path or name has at most {_UNIX_NAME_LIMIT} bytes")
    return socket.AF_UNIX, f"\0{name}" if is_abstract else name


def _read_fd(rest: str) -> tuple[socket.AddressFamily, int]:
    return socket.AF_UNSPEC, _read_number(rest, "descriptor", _LAST_FD)


def _read_unit_name(rest: str) -> tuple[socket.AddressFamily, str]:
    if not _UNIT_NAME.fullmatch(rest):
        raise ValueError(f"{rest!r} is not a name that systemd gives to a socket")
    return socket.AF_UNSPEC, rest


def _read_number(digits: str, what: str, last: int) -> int:
    if not _NUMBER.fullmatch(digits) or int(digits) > last:
        raise ValueError(f"{digits!r} is not a {what}: a number from 0 to {last} without leading zeros")
    return int(digits)


class _Scheme(NamedTuple):
    type: socket.SocketKind | None
    read: Callable[[str], tuple[socket.AddressFamily, tuple[str, int] | str | int]]
    examples: Mapping[str, str]


_SCHEMES = {
    "tcp": _Scheme(
        socket.SOCK_STREAM,
        _read_host_and_port,
        {
            "tcp://127.0.0.1:8000": "TCP on one address, or on all of a host name; port 0 takes any free one",
            "tcp://[::1]:8000": "TCP on an IPv6 address, in brackets; [fe80::1%eth0] has a zone",
            "tcp://*:8000": "TCP on every interface, IPv4 and IPv6; tcp://:8000 is the same",
        },
    ),
    "tls": _Scheme(
        socket.SOCK_STREAM, _read_host_and_port, {"tls://127.0.0.1:8443": "TCP with TLS, in the same forms"}
    ),
    "udp": _Scheme(socket.SOCK_DGRAM, _read_host_and_port, {"udp://127.0.0.1:5353": "UDP, in the same forms as TCP"}),
    "unix": _Scheme(
        socket.SOCK_STREAM,
        _read_path,
        {
            "unix:/run/app.sock": "a Unix stream socket",
            "unix:@app": "a Unix stream socket with an abstract name (Linux)",
        },
    ),
    "unix-dgram": _Scheme(
        socket.SOCK_DGRAM, _read_path, {"unix-dgram:/run/app.sock": "a Unix datagram socket, in the same forms"}
    ),
    "unix-seqpacket": _Scheme(
        getattr(socket, "SOCK_SEQPACKET", None),
        _read_path,
        {"unix-seqpacket:/run/app.sock": "a Unix socket that keeps packets apart, in the same forms"},
    ),
    "fd": _Scheme(None, _read_fd, {"fd:3": "a socket that this process inherited, by its descriptor"}),
    "systemd": _Scheme(
        None,
        _read_unit_name,
        {
            "systemd:": "all sockets that systemd passes to this process",
            "systemd:web": "those of this name (FileDescriptorName=)",
        },
    ),
}

_UNIX_SCHEMES = {scheme.type: name for name, scheme in _SCHEMES.items() if name.startswith("unix")}

ACCEPTED_FORMS = "\n".join(
    f"  {example:31}{meaning}" for scheme in _SCHEMES.values() for example, meaning in scheme.examples.items()
)
"""What ``parse_address`` accepts, one example a line, for help texts."""
