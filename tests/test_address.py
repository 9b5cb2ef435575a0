"""Texts and addresses: what is accepted, what is refused and how, and that a text gives itself back."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockserve.errors import AddressError
from sockserve.net.address import ACCEPTED_FORMS, Address, format_address, is_ipv6, parse_address

STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
ANY, V4, V6, UNIX = socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6, socket.AF_UNIX
LONGEST = 107 if sys.platform.startswith("linux") else 103

MEANINGS = {
    "tcp://127.0.0.1:8000": Address("tcp", V4, STREAM, ("127.0.0.1", 8000)),
    "tcp://localhost:0": Address("tcp", ANY, STREAM, ("localhost", 0)),
    "tcp://a_b-c.example.org.:65535": Address("tcp", ANY, STREAM, ("a_b-c.example.org.", 65535)),
    "tcp://:80": Address("tcp", ANY, STREAM, ("", 80)),
    "tcp://*:80": Address("tcp", ANY, STREAM, ("*", 80)),
    "udp://*:53": Address("udp", ANY, DGRAM, ("*", 53)),
    "tcp://[::1]:0": Address("tcp", V6, STREAM, ("::1", 0)),
    "tcp://[::]:443": Address("tcp", V6, STREAM, ("::", 443)),
    "tcp://[::ffff:10.0.0.1]:443": Address("tcp", V6, STREAM, ("::ffff:10.0.0.1", 443)),
    "tcp://[fe80::1%eth0.100]:443": Address("tcp", V6, STREAM, ("fe80::1%eth0.100", 443)),
    "udp://127.0.0.1:53": Address("udp", V4, DGRAM, ("127.0.0.1", 53)),
    "udp://[::1]:53": Address("udp", V6, DGRAM, ("::1", 53)),
    "unix:/run/a b.sock": Address("unix", UNIX, STREAM, "/run/a b.sock"),
    "unix:here/app.sock": Address("unix", UNIX, STREAM, "here/app.sock"),
    "unix:@app": Address("unix", UNIX, STREAM, "\0app"),
    "unix-dgram:/dev/log": Address("unix-dgram", UNIX, DGRAM, "/dev/log"),
    "unix-dgram:@log": Address("unix-dgram", UNIX, DGRAM, "\0log"),
    "unix-seqpacket:/run/app": Address("unix-seqpacket", UNIX, socket.SOCK_SEQPACKET, "/run/app"),
    "unix:/" + "x" * (LONGEST - 1): Address("unix", UNIX, STREAM, "/" + "x" * (LONGEST - 1)),
    "unix:@" + "x" * LONGEST: Address("unix", UNIX, STREAM, "\0" + "x" * LONGEST),
    "fd:0": Address("fd", ANY, None, 0),
    "fd:2147483647": Address("fd", ANY, None, 2147483647),
}

REFUSED = {
    "": "begins with none",
    "localhost:8000": "begins with none",
    "TCP://localhost:80": "begins with none",
    " tcp://localhost:80": "begins with none",
    "http://localhost:80": "begins with none",
    "tcp": "lacks",
    "tcp:localhost:80": "lacks '//'",
    "tcp://localhost": "a port after it",
    "tcp://localhost:": "'' is not a port",
    "tcp://localhost:65536": "'65536' is not a port",
    "tcp://localhost:99999999999999": "is not a port",
    "tcp://localhost:-1": "'-1' is not a port",
    "tcp://localhost:+1": "'+1' is not a port",
    "tcp://localhost:080": "without leading zeros",
    "tcp://localhost:8_0": "is not a port",
    "tcp://localhost:٣": "is not a port",
    "tcp://localhost:80\n": "is not a port",
    "tcp://local host:80": "'local host' is not a host name",
    "tcp://höst:80": "is not a host name",
    "tcp://user@localhost:80": "is not a host name",
    "tcp://localhost/x:80": "is not a host name",
    "tcp://local\0host:80": "is not a host name",
    "tcp://*.example.org:80": "is not a host name",
    "tcp://[*]:80": "is not an IPv6 address",
    "tcp://::1:80": "needs brackets",
    "tcp://fe80::1%eth0:80": "needs brackets",
    "tcp://[::1]": "is not a port",
    "tcp://[127.0.0.1]:80": "is not an IPv6 address",
    "tcp://[[::1]]:80": "is not an IPv6 address",
    "tcp://[::1\0]:80": "is not an IPv6 address",
    "tcp://[::\ud800]:80": "is not an IPv6 address",
    "tcp://[]:80": "is not an IPv6 address",
    "tcp://[::1%]:80": "'' is not a zone",
    "tcp://[fe80::1%a/b]:80": "is not a zone",
    "unix:": "lacks a path",
    "unix:@": "lacks a path",
    "unix:/run/a\0b": "contains a NUL",
    "unix:@a\0b": "contains a NUL",
    "unix:/\ud800": "surrogates not allowed",
    "unix:/" + "x" * LONGEST: f"at most {LONGEST} bytes",
    "unix-dgram:/" + "ü" * (LONGEST // 2 + 1): f"at most {LONGEST} bytes",
    "fd:": "is not a descriptor",
    "fd:-1": "is not a descriptor",
    "fd:2147483648": "is not a descriptor",
    "fd:stdin": "is not a descriptor",
}


@pytest.mark.parametrize("text", MEANINGS)
def test_each_form_means_what_bind_takes(text: str) -> None:
    """A text that is accepted gives family, type and socket address, and the address gives the text back."""
    address = parse_address(text)
    assert address == MEANINGS[text]
    assert str(address) == text


@pytest.mark.parametrize("text", REFUSED)
def test_a_refusal_shows_the_text_the_reason_and_what_is_accepted(text: str) -> None:
    """What is no address raises AddressError, a ValueError, from which one can tell what to write instead."""
    with pytest.raises(AddressError) as refusal:
        parse_address(text)
    message = str(refusal.value)
    assert repr(text) in message
    assert REFUSED[text] in message
    assert message.endswith(ACCEPTED_FORMS)
    assert isinstance(refusal.value, ValueError)


def test_every_example_of_the_help_text_is_accepted() -> None:
    """The forms that a refusal lists are addresses themselves, at least one of each scheme."""
    examples = [line.split()[0] for line in ACCEPTED_FORMS.splitlines()]
    schemes = {"tcp", "tls", "udp", "unix", "unix-dgram", "unix-seqpacket", "fd", "systemd"}
    assert {parse_address(example).scheme for example in examples} == schemes
    assert [str(parse_address(example)) for example in examples] == examples


SCHEMES = st.sampled_from(["tcp://", "udp://", "tcp:", "unix:", "unix:@", "unix-dgram:", "fd:", "unix-dgram:@", ""])
HOSTS = st.one_of(
    st.just(""),
    st.from_regex("[A-Za-z0-9._-]+", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda ip: f"[{ip}]"),
    st.builds("[{}%{}]".format, st.ip_addresses(v=6), st.from_regex("[A-Za-z0-9._~-]+", fullmatch=True)),
)
PATHS = (
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
    .filter(lambda path: len(os.fsencode(path)) <= LONGEST)
    .filter(lambda path: path != "@")
)


@settings(deadline=None)
@given(st.one_of(st.text(), st.builds("{}{}".format, SCHEMES, st.text(st.sampled_from("[]:/@%.-_01af\0٣\udc80")))))
def test_any_text_is_an_address_or_the_documented_error(text: str) -> None:
    """Nothing but AddressError comes out, and what is accepted gives its text back."""
    try:
        address = parse_address(text)
    except AddressError:
        return
    assert str(address) == text


@settings(deadline=None)
@given(st.sampled_from(["tcp", "udp"]), HOSTS, st.integers(0, 65535))
def test_every_host_and_port_is_accepted_and_comes_back(scheme: str, host: str, port: int) -> None:
    """Names, IPv4 and IPv6 literals with and without zone, and all ports: text to address and back."""
    address = parse_address(f"{scheme}://{host}:{port}")
    assert str(address) == f"{scheme}://{host}:{port}"
    assert address.sockaddr == (host.removeprefix("[").removesuffix("]"), port)
    assert address.family == (V6 if host.startswith("[") else address.family)


@settings(deadline=None)
@given(st.sampled_from(["unix", "unix-dgram"]), PATHS)
def test_every_path_is_accepted_and_comes_back(scheme: str, path: str) -> None:
    """Any path or abstract name that fits into a socket address: text to address and back."""
    address = parse_address(f"{scheme}:{path}")
    assert str(address) == f"{scheme}:{path}"
    assert address.sockaddr == (f"\0{path[1:]}" if path.startswith("@") else path)


@pytest.mark.parametrize("text", ["unix:/run/app.sock", "unix:@app", "unix-dgram:/dev/log"])
def test_a_platform_without_unix_sockets_says_so(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ``socket`` has no AF_UNIX, as on Windows, a Unix address is refused with that reason."""
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(AddressError, match="no Unix sockets"):
        parse_address(text)


def test_abstract_names_are_refused_where_they_do_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere than on Linux, bind() would take an abstract name for an empty path."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(AddressError, match="Linux only"):
        parse_address("unix:@app")
    assert parse_address("unix:/run/app").sockaddr == "/run/app"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("::1", True), ("fe80::1%eth0", True), ("127.0.0.1", False), ("", False), ("x\0", False), ("\ud800", False)],
)
def test_is_ipv6(host: str, expected: bool) -> None:
    """IPv6 literals are told from everything else that may stand for a host."""
    assert is_ipv6(host) is expected


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A short path of a new directory that is also the current one."""
    with tempfile.TemporaryDirectory() as path:
        monkeypatch.chdir(path)
        yield path
        monkeypatch.undo()


@pytest.mark.usefixtures("directory")
@pytest.mark.parametrize(
    "text",
    [
        "tcp://127.0.0.1:0",
        "tcp://[::1]:0",
        "udp://127.0.0.1:0",
        "udp://[::1]:0",
        "unix:./app.sock",
        "unix-dgram:app.sock",
        "unix:@sockserve test of \udcff names",
        "unix-dgram:@sockserve test of names",
    ],
)
def test_a_bound_socket_tells_its_address(text: str) -> None:
    """Bound to what a text says, a socket gives that text again, with the port it got."""
    address = parse_address(text)
    with socket.socket(address.family, address.type or 0) as sock:
        assert not isinstance(address.sockaddr, int)
        sock.bind(address.sockaddr)
        port = sock.getsockname()[1] if isinstance(address.sockaddr, tuple) else None
        expected = text if port is None else f"{text.removesuffix('0')}{port}"
        assert format_address(sock) == expected
        assert parse_address(expected).family == sock.family
        assert parse_address(expected).type == sock.type


@pytest.mark.usefixtures("directory")
def test_a_relative_path_that_begins_with_an_at_sign_is_no_abstract_name() -> None:
    """A file called ``@app`` is written so that it reads as a path."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("@app")
        assert format_address(sock) == "unix:./@app"


def test_a_zone_is_part_of_the_text() -> None:
    """A link-local address is bound to an interface, and the text says which, by number."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        zone = socket.if_nametoindex("lo") if sys.platform.startswith("linux") else socket.if_nametoindex("lo0")
        sock.bind(("ff01::1", 0, 0, zone))
        text = format_address(sock)
        assert text == f"udp://[ff01::1%{zone}]:{sock.getsockname()[1]}"
        assert str(parse_address(text)) == text


def test_a_family_without_texts_is_still_named() -> None:
    """A socket of a family that no text stands for is told as the system names it."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as sock:
        sock.bind((0, 0))
        assert format_address(sock) == str(sock.getsockname())
