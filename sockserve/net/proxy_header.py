"""The PROXY protocol, versions 1 and 2: what a balancer says before its client's first byte (proxy-protocol.txt).

Bytes come in, and a header goes out, or how many are missing, or ProxyHeaderError. No socket is touched: an IPv6
address is read on a host without IPv6 as well.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from typing import Any, Literal

from sockserve.errors import ProxyHeaderError
from sockserve.net import proxy_tlvs
from sockserve.net.listen import unix_name
from sockserve.net.proxy_tlvs import ProxyTLS, Tlvs

__all__ = ["LONGEST_HEADER", "ProxyHeader", "read_header"]

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
"""What version 2 begins with (2.2)."""

LONGEST_LINE = 107
"""Bytes of a header of version 1, with its CRLF (2.1)."""

SHORTEST_LINE = len(b"PROXY UNKNOWN\r\n")

FIXED = 16
"""Bytes of a header of version 2 before its addresses."""

LONGEST_BLOCK = 4096
"""Bytes after these that are accepted, of the 65535 that the field allows: as nginx and go-proxyproto do."""

LONGEST_HEADER = FIXED + LONGEST_BLOCK

# Family and protocol of version 2, with the size of its addresses; no other values may be sent (2.2).
_PLACES = {0x00: 0, 0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}
_FAMILIES = {
    1: int(socket.AF_INET),
    2: int(socket.AF_INET6),
    3: int(getattr(socket, "AF_UNIX", -1)),
}
_UNIX = 3

_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
_IPV4 = re.compile(rb"(?:0|[1-9][0-9]{0,2})(?:\.(?:0|[1-9][0-9]{0,2})){3}")


@dataclasses.dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a proxy said of its client.

    ``source`` and ``destination`` look as ``accept()`` gives them: ``(host, port)``, four values for IPv6, and for Unix
    sockets a name. Both are None if the connection is the proxy's own ("LOCAL", a health check), and if the proxy does
    not know its client ("UNKNOWN" of version 1, family 0 of version 2): then the peer is the client.
    """

    __module__ = "sockserve"

    version: Literal[1, 2]
    command: Literal["PROXY", "LOCAL"]
    source: Any = None
    destination: Any = None
    tlvs: Tlvs = ()
    """All fields of version 2, as (type, value), in their order."""

    @property
    def alpn(self) -> str | None:
        """The application protocol, as "h2", that client and proxy agreed on."""
        return proxy_tlvs.read_text(proxy_tlvs.first(self.tlvs, proxy_tlvs.ALPN))

    @property
    def authority(self) -> str | None:
        """The host name that the client asked for."""
        return proxy_tlvs.read_text(proxy_tlvs.first(self.tlvs, proxy_tlvs.AUTHORITY))

    @property
    def unique_id(self) -> bytes | None:
        """The proxy's identifier of this connection, at most 128 bytes."""
        return proxy_tlvs.first(self.tlvs, proxy_tlvs.UNIQUE_ID)

    @property
    def netns(self) -> str | None:
        """The name of the network namespace."""
        return proxy_tlvs.read_text(proxy_tlvs.first(self.tlvs, proxy_tlvs.NETNS))

    @property
    def tls(self) -> ProxyTLS | None:
        """The TLS that the proxy ended; None if the client came without, or the proxy does not say."""
        return proxy_tlvs.read_tls(self.tlvs)

    @property
    def aws_vpce_id(self) -> str | None:
        """The identifier of an AWS VPC endpoint (type 0xEA, subtype 1)."""
        value = proxy_tlvs.first(self.tlvs, proxy_tlvs.AWS)
        return proxy_tlvs.read_text(value[1:]) if value and value[0] == 1 else None

    @property
    def azure_link_id(self) -> int | None:
        """The LINKID of an Azure private endpoint (type 0xEE, subtype 1)."""
        value = proxy_tlvs.first(self.tlvs, proxy_tlvs.AZURE)
        return int.from_bytes(value[1:], "little") if value and value[0] == 1 and len(value) == 5 else None

    @property
    def gcp_psc_id(self) -> int | None:
        """The connection id of Google's Private Service Connect (type 0xE0)."""
        value = proxy_tlvs.first(self.tlvs, proxy_tlvs.GCP)
        return int.from_bytes(value, "big") if value is not None and len(value) == 8 else None

    def to_bytes(self, *, datagram: bool = False, checksum: bool = False) -> bytes:
        """The header as a proxy sends it. With ``checksum`` version 2 gets a CRC32C.

        Raises ValueError for addresses that are no IP addresses, or for more than version 1 can say.
        """
        is_known = self.command == "PROXY" and self.source is not None
        if self.version == 1:
            return self._line() if is_known else b"PROXY UNKNOWN\r\n"
        family, addresses = self._packed() if is_known else (0, b"")
        place = (family << 4) | (2 if datagram else 1) if family else 0
        tlvs = (*self.tlvs, (proxy_tlvs.CRC32C, bytes(4))) if checksum else self.tlvs
        block = addresses + proxy_tlvs.write_tlvs(tlvs)
        if len(block) > 0xFFFF:
            raise ValueError("the header is too long")
        command = 0x20 if self.command == "LOCAL" else 0x21
        header = SIGNATURE + bytes((command, place)) + len(block).to_bytes(2, "big") + block
        return proxy_tlvs.with_crc(header) if checksum else header

    def _line(self) -> bytes:
        if self.tlvs:
            raise ValueError("a header of version 1 has no room for TLVs")
        (source, source_port), (destination, destination_port) = self.source[:2], self.destination[:2]
        family, _ = self._packed()
        if family == _UNIX:
            raise ValueError("a header of version 1 has no room for Unix addresses")
        name = "TCP4" if family == 1 else "TCP6"
        return f"PROXY {name} {source} {destination} {source_port} {destination_port}\r\n".encode("ascii")

    def _packed(self) -> tuple[int, bytes]:
        if isinstance(self.source, str):
            names = [os.fsencode(str(each)) for each in (self.source, self.destination)]
            if max(map(len, names)) > 108:
                raise ValueError("a Unix name in a PROXY header has at most 108 bytes")
            return _UNIX, b"".join(name.ljust(108, b"\0") for name in names)
        family = 2 if ":" in self.source[0] else 1
        try:
            hosts = [socket.inet_pton(_FAMILIES[family], each[0]) for each in (self.source, self.destination)]
            ports = [each[1].to_bytes(2, "big") for each in (self.source, self.destination)]
        except (OSError, OverflowError) as error:
            raise ValueError(f"{self.source!r} and {self.destination!r} are not two IP addresses of a kind") from error
        return family, b"".join(hosts + ports)


def read_header(data: bytes, *, is_datagram: bool = False, allows_unix: bool = False) -> tuple[ProxyHeader | None, int]:
    """Give the header that the data begins with, and its size in bytes; the rest is the client's.

    (None, size): so far it may be one; try again with at least ``size`` bytes. All that was given belongs to it. With
    ``is_datagram`` the data is a datagram's, and if it is no whole header that is an error. With ``allows_unix`` it
    came by a Unix socket, where a header may have Unix addresses. Raises ProxyHeaderError as early as it can be known,
    and never asks for more than ``LONGEST_HEADER`` bytes.
    """
    start = data[: len(SIGNATURE)]
    if not start:
        found: tuple[ProxyHeader | None, int] = (None, SHORTEST_LINE)
    elif SIGNATURE.startswith(start):
        found = _read_version_2(data, is_datagram, allows_unix)
    elif b"PROXY ".startswith(start[:6]):
        found = _read_version_1(data)
    else:
        raise ProxyHeaderError(f"PROXY header: there is none, but {start!r}")
    if is_datagram and found[0] is None:
        raise ProxyHeaderError("PROXY header: the datagram ends before it does")
    return found


def _read_version_1(data: bytes) -> tuple[ProxyHeader | None, int]:
    end = data.find(b"\n", 0, LONGEST_LINE)
    line = data[:LONGEST_LINE] if end < 0 else data[: end + 1]
    if end < 0:
        if line.find(b"\r", 0, -1) >= 0:
            raise ProxyHeaderError("PROXY header: a carriage return without a line feed")
        if len(line) == LONGEST_LINE:
            raise ProxyHeaderError(f"PROXY header: its line is longer than {LONGEST_LINE} bytes")
        return None, max(SHORTEST_LINE, len(data) + 1)
    if line.find(b"\r") != end - 1:
        raise ProxyHeaderError("PROXY header: its line does not end in CRLF")
    fields = line[:-2].split(b" ")
    if fields[1] == b"UNKNOWN":
        # What follows is to be ignored.
        return ProxyHeader(1, "PROXY"), end + 1
    if len(fields) != 6 or fields[1] not in (b"TCP4", b"TCP6"):
        raise ProxyHeaderError(f"PROXY header: {line[:-2]!r} is not TCP4 or TCP6, two addresses and two ports")
    read_host = _read_ipv4 if fields[1] == b"TCP4" else _read_ipv6
    source = _address(read_host(fields[2]), _read_port(fields[4]))
    destination = _address(read_host(fields[3]), _read_port(fields[5]))
    return ProxyHeader(1, "PROXY", source, destination), end + 1


def _read_ipv4(text: bytes) -> str:
    # Of a part with a leading zero some programs make an octal number.
    if not _IPV4.fullmatch(text):
        raise ProxyHeaderError(f"PROXY header: {text!r} is not an IPv4 address")
    return _canonical(socket.AF_INET, text)


def _read_ipv6(text: bytes) -> str:
    if b":" not in text:
        raise ProxyHeaderError(f"PROXY header: {text!r} is not an IPv6 address")
    return _canonical(socket.AF_INET6, text)


def _canonical(family: int, text: bytes) -> str:
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, text.decode("ascii")))
    except (OSError, ValueError):
        raise ProxyHeaderError(f"PROXY header: {text!r} is not an address") from None


def _read_port(text: bytes) -> int:
    if not _PORT.fullmatch(text) or int(text) > 0xFFFF:
        raise ProxyHeaderError(f"PROXY header: {text!r} is not a port")
    return int(text)


def _read_version_2(data: bytes, is_datagram: bool, allows_unix: bool) -> tuple[ProxyHeader | None, int]:
    if len(data) < FIXED:
        return None, FIXED
    version_and_command, place = data[12], data[13]
    if version_and_command not in (0x20, 0x21):
        raise ProxyHeaderError(f"PROXY header: version and command are 0x{version_and_command:02x}")
    length = int.from_bytes(data[14:16], "big")
    if length > LONGEST_BLOCK:
        raise ProxyHeaderError(f"PROXY header: it has {length} bytes, {LONGEST_BLOCK} are allowed")
    is_local = version_and_command == 0x20
    if not is_local:
        _check_place(place, length, is_datagram, allows_unix)
    size = FIXED + length
    if len(data) < size:
        return None, size
    if is_local:
        # Its family and all else is to be ignored.
        return ProxyHeader(2, "LOCAL"), size
    header = bytes(data[:size])
    end_of_addresses = FIXED + _PLACES[place]
    tlvs = proxy_tlvs.read_tlvs(header, end_of_addresses)
    proxy_tlvs.check_crc(header, end_of_addresses)
    source, destination = _read_addresses(place >> 4, header)
    return ProxyHeader(2, "PROXY", source, destination, tlvs), size


def _check_place(place: int, length: int, is_datagram: bool, allows_unix: bool) -> None:
    if place not in _PLACES:
        raise ProxyHeaderError(f"PROXY header: family and protocol are 0x{place:02x}")
    if length < _PLACES[place]:
        raise ProxyHeaderError(f"PROXY header: {length} bytes are too few for its addresses")
    if place and (place & 0xF == 2) != is_datagram:
        raise ProxyHeaderError("PROXY header: its protocol is not that of the socket")
    if place >> 4 == _UNIX and not allows_unix:
        raise ProxyHeaderError("PROXY header: it has Unix addresses, and the socket is none")


def _read_addresses(family: int, header: bytes) -> tuple[Any, Any]:
    if not family:
        return None, None
    if family == _UNIX:
        return _read_name(header[16:124]), _read_name(header[124:232])
    size = 4 if family == 1 else 16
    hosts = [header[FIXED + n * size : FIXED + (n + 1) * size] for n in (0, 1)]
    ports = [int.from_bytes(header[at : at + 2], "big") for at in (FIXED + 2 * size, FIXED + 2 * size + 2)]
    source, destination = (
        _address(socket.inet_ntop(_FAMILIES[family], host), port) for host, port in zip(hosts, ports, strict=True)
    )
    return source, destination


def _read_name(field: bytes) -> Any:
    # An abstract name begins with NUL; both are filled up with it.
    start = field[:1]
    return unix_name(
        os.fsdecode(start + field[1:].rstrip(b"\0")) if start == b"\0" else os.fsdecode(field.split(b"\0", 1)[0])
    )


def _address(host: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    # As accept() gives it: an IPv6 address with flow information and zone.
    return (host, port, 0, 0) if ":" in host else (host, port)
