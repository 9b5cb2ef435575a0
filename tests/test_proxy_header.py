"""The PROXY header as bytes: what is accepted, what is refused and when, and that nothing past it is taken."""

from __future__ import annotations

import dataclasses
import socket
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import sockserve
from sockserve.net import proxy_tlvs
from sockserve.net.crc32c import crc32c
from sockserve.net.proxy_header import FIXED, LONGEST_HEADER, SIGNATURE, ProxyHeader, read_header
from sockserve.net.proxy_tlvs import ProxyTLS

LINE = b"PROXY TCP4 192.0.2.1 198.51.100.9 56324 443\r\n"
SOURCE, DESTINATION = ("192.0.2.1", 56324), ("198.51.100.9", 443)
SOURCE_6, DESTINATION_6 = ("2001:db8::7", 56324, 0, 0), ("2001:db8::9", 443, 0, 0)
FOUR = socket.inet_aton("192.0.2.1") + socket.inet_aton("198.51.100.9") + b"\xdc\x04\x01\xbb"
SSL_PARTS = ((0x21, b"TLSv1.3"), (0x22, "Zoë".encode()), (0x23, b"TLS_AES_128_GCM_SHA256"), (0x28, b"\x30\x03DER"))


def block(body: bytes, place: int = 0x11, command: int = 0x21) -> bytes:
    """A header of version 2 with any contents."""
    return SIGNATURE + bytes((command, place)) + len(body).to_bytes(2, "big") + body


def tlv(kind: int, value: bytes) -> bytes:
    """One field."""
    return proxy_tlvs.write_tlvs(((kind, value),))


def refused(data: bytes, reason: str, **options: Any) -> None:
    """The data is refused for this reason, and already by its first bytes that show it."""
    with pytest.raises(sockserve.ProxyHeaderError, match=reason) as caught:
        read_header(data, **options)
    assert isinstance(caught.value, sockserve.RefusedError)
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize(
    ("data", "header"),
    [
        (LINE, ProxyHeader(1, "PROXY", SOURCE, DESTINATION)),
        (b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n", ProxyHeader(1, "PROXY", ("0.0.0.0", 0), ("255.255.255.255", 65535))),  # noqa: E501, S104
        (b"PROXY TCP6 2001:DB8::7 2001:db8:0::9 56324 443\r\n", ProxyHeader(1, "PROXY", SOURCE_6, DESTINATION_6)),
        (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", ProxyHeader(1, "PROXY", ("::ffff:192.0.2.1", 1, 0, 0), ("::1", 2, 0, 0))),  # noqa: E501
        (b"PROXY UNKNOWN\r\n", ProxyHeader(1, "PROXY")),
        (b"PROXY UNKNOWN ff ff 1 2 and more\r\n", ProxyHeader(1, "PROXY")),
        (block(FOUR), ProxyHeader(2, "PROXY", SOURCE, DESTINATION)),
        (block(b"", place=0), ProxyHeader(2, "PROXY")),
        (block(tlv(0x04, b""), place=0), ProxyHeader(2, "PROXY", tlvs=((4, b""),))),
        (block(FOUR + tlv(0xF0, b"x") + tlv(0xF0, b"")), ProxyHeader(2, "PROXY", SOURCE, DESTINATION, ((0xF0, b"x"), (0xF0, b"")))),  # noqa: E501
        (block(b"anything", place=0xFF, command=0x20), ProxyHeader(2, "LOCAL")),
        (block(bytes(4096), place=0, command=0x20), ProxyHeader(2, "LOCAL")),
    ],
)  # fmt: skip
def test_a_header_is_read_and_what_follows_it_is_not(data: bytes, header: ProxyHeader) -> None:
    """X2, X3: its size is exact, whatever follows, and LOCAL and UNKNOWN are skipped as a whole."""
    assert read_header(data) == (header, len(data))
    assert read_header(data + b"\r\n\x16\x03\x01") == (header, len(data))


def test_x8_an_ipv6_address_needs_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """X8: addresses are text and bytes only; a host without IPv6 reads them as well (CVE-2024-23325)."""

    def no_socket(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(socket, "socket", no_socket)
    packed = b"".join(socket.inet_pton(socket.AF_INET6, each[0]) for each in (SOURCE_6, DESTINATION_6))
    header, _ = read_header(block(packed + b"\xdc\x04\x01\xbb", place=0x21))
    assert header == ProxyHeader(2, "PROXY", SOURCE_6, DESTINATION_6)


def test_unix_addresses_are_names() -> None:
    """On a Unix socket paths and abstract names are given as ``accept()`` does; on another they are refused."""
    body = b"/run/client".ljust(108, b"\0") + b"\0abstract\0x".ljust(108, b"\0")
    header, size = read_header(block(body, place=0x31), allows_unix=True)
    assert header == ProxyHeader(2, "PROXY", "/run/client", "\0abstract\0x")
    assert size == FIXED + 216
    assert header.source[0] == "/run/client"
    refused(block(body, place=0x31), "Unix addresses")


def test_x10_datagrams_carry_their_own_protocol() -> None:
    """A header for datagrams is for datagrams only, must be whole, and version 1 does not name the protocol."""
    header, size = read_header(block(FOUR, place=0x12) + b"payload", is_datagram=True)
    assert (header, size) == (ProxyHeader(2, "PROXY", SOURCE, DESTINATION), FIXED + 12)
    refused(block(FOUR, place=0x12), "protocol is not that of the socket")
    refused(block(FOUR, place=0x11), "protocol is not that of the socket", is_datagram=True)
    refused(block(FOUR, place=0x12)[:-1], "datagram ends", is_datagram=True)
    refused(b"", "datagram ends", is_datagram=True)
    assert read_header(LINE + b"x", is_datagram=True)[1] == len(LINE)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", "there is none"),
        (b"\x16\x03\x01", "there is none"),
        (b"proxy TCP4", "there is none"),
        (b"PROXY  TCP4 192.0.2.1 198.51.100.9 56324 443\r\n", "is not TCP4 or TCP6"),
        (b"PROXY TCP4 192.0.2.1  198.51.100.9 56324 443\r\n", "is not TCP4 or TCP6"),
        (b"PROXY TCP4 192.0.2.1 198.51.100.9 56324 443 \r\n", "is not TCP4 or TCP6"),
        (b"PROXY TCP5 192.0.2.1 198.51.100.9 56324 443\r\n", "is not TCP4 or TCP6"),
        (b"PROXY UNKNOWNS\r\n", "is not TCP4 or TCP6"),
        (b"PROXY \r\n", "is not TCP4 or TCP6"),
        (b"PROXY TCP4 192.0.2.1 198.51.100.9 56324 443\n", "CRLF"),
        (b"PROXY TCP4 192.0.2.1\r 198.51.100.9 56324 443\r\n", "CRLF"),
        (b"PROXY TCP4\r x", "without a line feed"),
        (b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", "longer than 107"),
        (b"PROXY UNKNOWN " + b"x" * 200, "longer than 107"),
        (b"PROXY TCP4 192.0.02.1 198.51.100.9 56324 443\r\n", "not an IPv4 address"),
        (b"PROXY TCP4 192.0.2.256 198.51.100.9 56324 443\r\n", "not an address"),
        (b"PROXY TCP4 192.0.2 198.51.100.9 56324 443\r\n", "not an IPv4 address"),
        (b"PROXY TCP4 2001:db8::7 2001:db8::9 56324 443\r\n", "not an IPv4 address"),
        (b"PROXY TCP6 192.0.2.1 198.51.100.9 56324 443\r\n", "not an IPv6 address"),
        (b"PROXY TCP6 fe80::1%lo ::1 56324 443\r\n", "not an address"),
        (b"PROXY TCP6 12345::1 ::1 56324 443\r\n", "not an address"),
        (b"PROXY TCP6 \xff::1 ::1 56324 443\r\n", "not an address"),
        (b"PROXY TCP4 192.0.2.1 198.51.100.9 056324 443\r\n", "not a port"),
        (b"PROXY TCP4 192.0.2.1 198.51.100.9 56324 65536\r\n", "not a port"),
        (b"PROXY TCP4 192.0.2.1 198.51.100.9 56324 +443\r\n", "not a port"),
        (block(FOUR, command=0x11), "version and command are 0x11"),
        (block(FOUR, command=0x22), "version and command are 0x22"),
        (block(FOUR, place=0x10), "family and protocol are 0x10"),
        (block(FOUR, place=0x13), "family and protocol are 0x13"),
        (block(FOUR, place=0x41), "family and protocol are 0x41"),
        (block(FOUR[:-1]), "too few"),
        (block(FOUR, place=0x21), "too few"),
        (block(b"")[:14] + b"\x10\x01", "4097 bytes, 4096 are allowed"),
        (block(b"", command=0x20)[:14] + b"\xff\xff", "65535 bytes, 4096 are allowed"),
        (block(FOUR + b"\x04\0"), "cut off"),
        (block(FOUR + b"\x04\0\x01"), "longer than the header"),
        (block(FOUR + tlv(0x05, bytes(129))), "TLV 0x05 has 129 bytes, 128 are allowed"),
        (block(FOUR + tlv(0x02, bytes(256))), "TLV 0x02 has 256 bytes, 255 are allowed"),
        (block(FOUR + tlv(0x20, bytes(4))), "too short"),
        (block(FOUR + tlv(0x20, bytes(5) + b"\x21\0\x09x")), "longer than the header"),
        (block(FOUR + tlv(0x03, bytes(3))), "checksum has 3 bytes"),
        (block(FOUR + tlv(0x03, bytes(4))), "checksum is wrong"),
        (block(FOUR + tlv(0x03, bytes(4)) + tlv(0x03, bytes(4))), "two checksums"),
        (block(b"x", place=0), "cut off"),
    ],
)
def test_what_is_not_as_the_specification_says_is_refused(data: bytes, reason: str) -> None:
    """Each kind of mistake has its reason, of one line that can be printed."""
    refused(data, reason)
    with pytest.raises(sockserve.ProxyHeaderError) as caught:
        read_header(data)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


def test_a_length_that_is_too_long_is_refused_before_more_is_read() -> None:
    """No byte of the block is waited for, if there are to be more than 4096."""
    assert read_header(block(bytes(4096))[:16]) == (None, LONGEST_HEADER)
    refused(block(bytes(4097))[:16], "4097 bytes")


def test_x5_the_checksum_is_a_number_over_the_whole_header() -> None:
    """X5: a right one is accepted wherever it stands, and one with a bit flipped anywhere in the header is not."""
    # RFC 3720, B.4.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes([255] * 32)) == 0x62A8AB43
    whole = ProxyHeader(2, "PROXY", SOURCE, DESTINATION, ((0x05, b"id"),)).to_bytes(checksum=True)
    header, size = read_header(whole)
    assert header is not None
    assert (header.unique_id, size) == (b"id", len(whole))
    # A flipped bit there makes another field of it, or a LOCAL header, which is skipped as a whole.
    unprotected = {*range((len(whole) - 7) * 8, (len(whole) - 6) * 8), 12 * 8}
    for bit in set(range(len(whole) * 8)) - unprotected:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found, _ = read_header(bytes(flipped))
        except sockserve.ProxyHeaderError:
            continue
        assert found is None, f"bit {bit}"


def test_what_the_proxy_tells_of_its_client_can_be_asked() -> None:
    """Every field has its property, and one that is missing, or of another subtype, is None."""
    ssl = bytes((0x07, 0, 0, 0, 0)) + proxy_tlvs.write_tlvs(SSL_PARTS)
    fields = (
        (0x01, b"h2"), (0x02, b"b.test"), (0x05, bytes(128)), (0x20, ssl), (0x30, b"blue"),
        (0xEA, b"\x01vpce-08d2bf15fac5001c9"), (0xEE, b"\x01\x05\x01\0\0"), (0xE0, b"\0\0\0\0\0\0\x01\x02"),
    )  # fmt: skip
    header, _ = read_header(ProxyHeader(2, "PROXY", SOURCE, DESTINATION, fields).to_bytes())
    assert header is not None
    assert (header.alpn, header.authority, header.unique_id, header.netns) == ("h2", "b.test", bytes(128), "blue")
    assert (header.aws_vpce_id, header.azure_link_id, header.gcp_psc_id) == ("vpce-08d2bf15fac5001c9", 261, 258)
    assert header.tls == ProxyTLS("TLSv1.3", "TLS_AES_128_GCM_SHA256", "Zoë", True, b"\x30\x03DER")
    other = dataclasses.replace(header, tlvs=((0xEA, b"\x02x"), (0xEE, b"\x01x"), (0xE0, b"x"), (0x20, bytes(5))))
    assert (other.aws_vpce_id, other.azure_link_id, other.gcp_psc_id, other.tls) == (None, None, None, None)
    bare = ProxyHeader(1, "PROXY")
    assert (bare.alpn, bare.authority, bare.unique_id, bare.netns, bare.aws_vpce_id) == (None,) * 5


@pytest.mark.parametrize(
    ("client", "verify", "verified"),
    [(0x07, 0, True), (0x05, 0, True), (0x03, 0, True), (0x01, 0, False), (0x07, 1, False)],
)
def test_a_client_without_a_certificate_is_not_verified(client: int, verify: int, verified: bool) -> None:
    """HAProxy says "no error" of a client that showed no certificate at all."""
    value = bytes((client,)) + verify.to_bytes(4, "big")
    header, _ = read_header(block(FOUR + tlv(0x20, value)))
    assert header is not None
    assert header.tls == ProxyTLS("", "", "", verified, None)


def test_texts_of_a_proxy_never_raise() -> None:
    """Bytes that are no text are escaped."""
    header = ProxyHeader(2, "PROXY", tlvs=((0x02, b"\xff"),))
    assert header.authority == "\\xff"


def test_what_cannot_be_said_in_a_header_is_an_error() -> None:
    """Writing refuses what version 1 has no room for, addresses of two kinds, and what is too long."""
    for header in (
        ProxyHeader(1, "PROXY", SOURCE, DESTINATION, ((4, b""),)),
        ProxyHeader(1, "PROXY", "/run/a", "/run/b"),
        ProxyHeader(2, "PROXY", SOURCE, DESTINATION_6),
        ProxyHeader(2, "PROXY", ("localhost", 1), ("localhost", 2)),
        ProxyHeader(2, "PROXY", ("127.0.0.1", 70000), ("127.0.0.1", 2)),
        ProxyHeader(2, "PROXY", "/" + "a" * 108, "/b"),
        ProxyHeader(2, "PROXY", tlvs=((4, bytes(65535)),)),
    ):
        with pytest.raises(ValueError, match=r"."):
            header.to_bytes()


hosts_4 = st.ip_addresses(v=4).map(str)
hosts_6 = st.ip_addresses(v=6).map(lambda ip: socket.inet_ntop(socket.AF_INET6, ip.packed))
ports = st.integers(0, 65535)
pairs_4 = st.tuples(st.tuples(hosts_4, ports), st.tuples(hosts_4, ports))
pairs_6 = st.tuples(*[st.tuples(hosts_6, ports, st.just(0), st.just(0))] * 2)
names = st.binary(max_size=20).map(lambda name: "/" + name.hex())
tlvs = st.lists(st.tuples(st.sampled_from([1, 2, 4, 5, 0x30, 0xEA, 0xF7]), st.binary(max_size=40)), max_size=5)
headers = st.one_of(
    st.builds(lambda pair: ProxyHeader(1, "PROXY", *pair), st.one_of(pairs_4, pairs_6)),
    st.builds(
        lambda pair, fields: ProxyHeader(2, "PROXY", *pair, tuple(fields)),
        st.one_of(pairs_4, pairs_6, st.tuples(names, names)),
        tlvs,
    ),
    st.just(ProxyHeader(1, "PROXY")),
    st.just(ProxyHeader(2, "LOCAL")),
)


@given(headers, st.booleans(), st.binary(max_size=30), st.lists(st.integers(1, 40), max_size=50))
def test_x1_any_header_in_any_pieces_is_read_and_never_a_byte_more(
    header: ProxyHeader, checksum: bool, rest: bytes, sizes: list[int]
) -> None:
    """X1: in each split it is incomplete until its last byte is there, and says truly how much is missing at least."""
    data = header.to_bytes(checksum=checksum and header.version == 2)
    given_bytes = b""
    for size in [*sizes, *[1] * len(data)]:
        found, needed = read_header(given_bytes, allows_unix=True)
        if len(given_bytes) >= len(data):
            assert needed == len(data)
            assert found is not None
            break
        assert found is None
        assert len(given_bytes) < needed <= len(data)
        given_bytes = (data + rest)[: len(given_bytes) + size]
    found, _ = read_header(data + rest, allows_unix=True)
    assert found is not None
    # With a checksum it has a field more, and of LOCAL all is skipped.
    assert dataclasses.replace(found, tlvs=header.tlvs) == header
    assert header.command == "LOCAL" or found.tlvs[: len(header.tlvs)] == header.tlvs


@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=120).map(lambda data: b"PROXY " + data),
        st.binary(max_size=300).map(lambda data: SIGNATURE + data),
        st.builds(block, st.binary(max_size=300), st.sampled_from([0, 0x11, 0x21, 0x31]), st.just(0x21)),
    ),
    st.booleans(),
    st.booleans(),
)
@example(b"\r\n\r\n\0\r\nQUIT\n!\x11\0\x0c", False, False)
def test_any_bytes_are_a_header_or_refused(data: bytes, is_datagram: bool, allows_unix: bool) -> None:
    """Nothing but ProxyHeaderError is raised, at whatever split, and what is accepted once is accepted whole."""
    try:
        found, size = read_header(data, is_datagram=is_datagram, allows_unix=allows_unix)
    except sockserve.ProxyHeaderError:
        return
    assert size <= LONGEST_HEADER
    if found is None:
        assert size > len(data)
        return
    assert size <= len(data)
    assert found.source is None or found.command == "PROXY"
    # Each property can be asked.
    assert [getattr(found, name) for name in ("alpn", "authority", "unique_id", "netns", "tls")]
    for end in range(size):
        if not is_datagram:
            assert read_header(data[:end], allows_unix=allows_unix)[0] is None
