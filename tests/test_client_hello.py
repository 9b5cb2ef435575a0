"""The name in a ClientHello: found in any split, and whatever comes instead of one names no host."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockserve.net.client_hello import LONGEST_HELLO, look_at_hello


def hello(name: str | None) -> bytes:
    """What OpenSSL says first to a host of this name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


HELLO = hello("b.test")


def in_records(message: bytes, size: int) -> bytes:
    """The same handshake message in records of this size."""
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)


@pytest.mark.parametrize(
    ("data", "name"),
    [(HELLO, "b.test"), (hello("A.Test"), "A.Test"), (hello(None), None), (hello("127.0.0.1"), None)],
)
def test_the_name_is_found(data: bytes, name: str | None) -> None:
    """It is the client's own word; without one, or for an address, there is none."""
    assert look_at_hello(data) == (name, 0)
    assert look_at_hello(data + b"\x14\x03\x03") == (name, 0)


@pytest.mark.parametrize("size", [1, 3, 4, 40, 1000])
def test_x14_a_hello_may_come_in_many_records_and_pieces(size: int) -> None:
    """X14: until the last byte is there it says how many are needed at least, and does not guess."""
    data = in_records(HELLO[5:], size)
    for end in range(0, len(data), 1 if size > 3 else 7):
        name, needed = look_at_hello(data[:end])
        assert name is None
        assert end < needed <= len(data)
    assert look_at_hello(data) == ("b.test", 0)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x80\x2e\x01\x03\x01",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x41\x01",
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        HELLO.replace(b"b.test", b"b\xfftest"),
        HELLO.replace(b"b.test", b"b\ntest"),
        HELLO.replace(b"\x00\x00\x06b.test", b"\x01\x00\x06b.test"),
        HELLO.replace(b"\x00\x06b.test", b"\x00\x05b.test"),
    ],
)
def test_what_is_no_hello_names_no_host(data: bytes) -> None:
    """It is known as soon as it can be; the handshake says what is wrong."""
    assert look_at_hello(data) == (None, 0)


def test_a_hello_is_looked_at_up_to_a_limit() -> None:
    """A hello that announces more than 16 KiB is waited for up to that, and names no host."""
    huge = in_records(b"\x01\x01\x00\x00" + bytes(65536), 16384)
    assert look_at_hello(huge[:LONGEST_HELLO]) == (None, 0)
    assert look_at_hello(huge[: LONGEST_HELLO - 1]) == (None, LONGEST_HELLO)


@given(st.binary(max_size=400), st.integers(0, len(HELLO)), st.integers(0, len(HELLO)))
def test_any_bytes_are_understood_or_not(noise: bytes, start: int, end: int) -> None:
    """Nothing is raised, no more is waited for than the limit, and a name is one of few characters."""
    for data in (noise, b"\x16\x03\x01" + noise, HELLO[:start] + noise + HELLO[end:]):
        name, needed = look_at_hello(data)
        assert not needed or len(data) < needed <= LONGEST_HELLO
        assert name is None or (name.isascii() and name.isprintable())
