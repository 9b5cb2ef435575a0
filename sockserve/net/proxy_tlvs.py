"""The fields that follow the addresses in a PROXY header of version 2 (TLVs): type, length, value.

Source: HAProxy's proxy-protocol.txt, 2.2.1 to 2.2.7. What is malformed is found by ``read_tlvs()``; what it has read
raises nothing any more.
"""

from __future__ import annotations

import dataclasses

from sockserve.errors import ProxyHeaderError
from sockserve.net.crc32c import crc32c

__all__ = ["ProxyTLS", "Tlvs", "check_crc", "first", "read_text", "read_tls", "read_tlvs", "with_crc", "write_tlvs"]

ALPN = 0x01
AUTHORITY = 0x02
CRC32C = 0x03
UNIQUE_ID = 0x05
SSL = 0x20
SSL_VERSION = 0x21
SSL_CN = 0x22
SSL_CIPHER = 0x23
SSL_CLIENT_CERTIFICATE = 0x28
NETNS = 0x30
GCP = 0xE0
AWS = 0xEA
AZURE = 0xEE

LONGEST = {AUTHORITY: 255, UNIQUE_ID: 128}
"""Bytes that a value may have: 255 is that of a host name (RFC 1035, 2.3.4), 128 the specification's."""

CLIENT_SSL, CLIENT_CERT_CONN, CLIENT_CERT_SESS = 0x01, 0x02, 0x04

Tlvs = tuple[tuple[int, bytes], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ProxyTLS:
    """The TLS that the proxy ended. Texts are as the proxy sent them, with bytes that are no UTF-8 escaped."""

    __module__ = "sockserve"

    version: str
    """As "TLSv1.3"; empty if the proxy did not say."""
    cipher: str
    """Empty if the proxy did not say."""
    cn: str
    """The common name of the client's certificate; empty without one. It is the proxy's word: see ``verified``."""
    verified: bool
    """Whether the client showed a certificate and the proxy accepts it."""
    client_certificate: bytes | None
    """The client's certificate as DER, if the proxy sent it."""


def read_tlvs(block: bytes, start: int) -> Tlvs:
    """Give the fields from ``start`` to the end of the block. Raises ProxyHeaderError."""
    tlvs: list[tuple[int, bytes]] = []
    end = len(block)
    while start < end:
        if end - start < 3:
            raise ProxyHeaderError("PROXY header: a TLV is cut off")
        kind, size = block[start], int.from_bytes(block[start + 1 : start + 3], "big")
        start += 3
        if size > end - start:
            raise ProxyHeaderError(f"PROXY header: TLV 0x{kind:02x} is longer than the header")
        if size > LONGEST.get(kind, size):
            raise ProxyHeaderError(f"PROXY header: TLV 0x{kind:02x} has {size} bytes, {LONGEST[kind]} are allowed")
        value = block[start : start + size]
        if kind == SSL:
            _read_ssl(value)
        tlvs.append((kind, value))
        start += size
    return tuple(tlvs)


def check_crc(header: bytes, start: int) -> None:
    """Verify the checksum of a whole header whose TLVs begin at ``start``; no effect without one.

    Raises ProxyHeaderError.
    """
    found: int | None = None
    end = len(header)
    while start < end:
        size = int.from_bytes(header[start + 1 : start + 3], "big")
        if header[start] == CRC32C:
            if size != 4:
                raise ProxyHeaderError(f"PROXY header: the checksum has {size} bytes, not 4")
            if found is not None:
                raise ProxyHeaderError("PROXY header: there are two checksums")
            found = start + 3
        start += 3 + size
    # It is computed with zeros in its own place.
    if found is not None and crc32c(header[:found] + bytes(4) + header[found + 4 :]) != int.from_bytes(
        header[found : found + 4], "big"
    ):
        raise ProxyHeaderError("PROXY header: the checksum is wrong")


def with_crc(header: bytes) -> bytes:
    """Fill in the checksum of a header whose last field it is."""
    return header[:-4] + crc32c(header[:-4] + bytes(4)).to_bytes(4, "big")


def write_tlvs(tlvs: Tlvs) -> bytes:
    """The reverse of ``read_tlvs()``. Raises OverflowError for a value of 64 KiB and more."""
    return b"".join(bytes((kind,)) + len(value).to_bytes(2, "big") + value for kind, value in tlvs)


def first(tlvs: Tlvs, kind: int) -> bytes | None:
    """The value of the first field of this type."""
    return next((value for each, value in tlvs if each == kind), None)


def read_text(value: bytes | None) -> str | None:
    """A value as text."""
    return None if value is None else value.decode("utf-8", "backslashreplace")


def read_tls(tlvs: Tlvs) -> ProxyTLS | None:
    """What the proxy says of the TLS that it ended; None if the client came without."""
    value = first(tlvs, SSL)
    if value is None:
        return None
    client, is_rejected, within = _read_ssl(value)
    if not client & CLIENT_SSL:
        return None
    return ProxyTLS(
        version=read_text(first(within, SSL_VERSION)) or "",
        cipher=read_text(first(within, SSL_CIPHER)) or "",
        cn=read_text(first(within, SSL_CN)) or "",
        # Without a certificate HAProxy says 0, "verified", too.
        verified=not is_rejected and bool(client & (CLIENT_CERT_CONN | CLIENT_CERT_SESS)),
        client_certificate=first(within, SSL_CLIENT_CERTIFICATE),
    )


def _read_ssl(value: bytes) -> tuple[int, bool, Tlvs]:
    if len(value) < 5:
        raise ProxyHeaderError("PROXY header: TLV 0x20 is too short")
    return value[0], value[1:5] != bytes(4), read_tlvs(value, 5)
