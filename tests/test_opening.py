"""Opening servers for addresses: sockets that this process inherited, names, and what is refused."""

from __future__ import annotations

import errno
import os
import pathlib
import socket
from typing import Any

import pytest
from support.serving import Operator, serve_with

import sockserve
from sockserve import testing
from sockserve.run.echo import Echo

TCP = "tcp://127.0.0.1:0"


def inherit(inherited: socket.socket) -> str:
    """The address text of a descriptor that nobody else in this process owns any more."""
    return f"fd:{inherited.detach()}"


def is_open(fd: int) -> bool:
    """Whether a descriptor is open."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def bound(family: int, kind: int, name: Any) -> socket.socket:
    """A socket as a supervisor makes it."""
    sock = socket.socket(family, kind)
    sock.bind(name)
    return sock


@pytest.mark.parametrize("listens", [True, False])
@pytest.mark.parametrize("kind", ["tcp", "tcp6", "udp", "udp6", "unix", "unix-dgram"])
def test_an_inherited_socket_is_served(kind: str, listens: bool, tmp_path: pathlib.Path) -> None:
    """By its family and type the right server is chosen; a stream that does not listen yet is made to."""
    family = {"6": socket.AF_INET6, "x": socket.AF_UNIX, "m": socket.AF_UNIX}.get(kind[-1], socket.AF_INET)
    is_stream = kind in ("tcp", "tcp6", "unix")
    name = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0)}.get(family, f"{tmp_path}/s")
    inherited = bound(family, socket.SOCK_STREAM if is_stream else socket.SOCK_DGRAM, name)
    if is_stream and listens:
        inherited.listen()
    bound_to = inherited.getsockname()
    address = inherit(inherited)

    def script(operator: Operator) -> None:
        assert operator.server.server_address == bound_to
        assert testing.ask(operator.server, b"ping") == b"ping"
        operator.signal()

    serve_with(script, Echo, address)
    assert not is_open(int(address.removeprefix("fd:")))
    # Its path is its maker's to remove.
    assert family != socket.AF_UNIX or os.path.exists(bound_to)


def test_an_inherited_descriptor_that_cannot_be_served_stays_open() -> None:
    """A kind of socket that nothing serves is refused by name, and still its owner's."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as odd:
        with pytest.raises(sockserve.AddressError, match=f"fd:{odd.fileno()}: nothing serves.*NETLINK"):
            sockserve.serve(Echo, f"fd:{odd.fileno()}")
        assert is_open(odd.fileno())


def test_an_inherited_connection_is_no_listener() -> None:
    """A socket that is connected already cannot listen: the kernel's reason is told."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        peer, _ = listener.accept()
        address = inherit(peer)
        with pytest.raises(sockserve.BindError, match=f"cannot serve on {address}: Invalid argument"):
            sockserve.serve(Echo, address)
        assert client.recv(1) == b""


def test_one_descriptor_serves_once() -> None:
    """Giving a descriptor twice is refused, and so is one that is not a socket."""
    address = inherit(bound(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)))
    with pytest.raises(sockserve.AddressError, match=f"{address}: another of these servers"):
        sockserve.serve(Echo, address, address)
    assert not is_open(int(address.removeprefix("fd:")))
    with open(os.devnull) as file, pytest.raises(sockserve.AddressError, match="not an open socket"):
        sockserve.serve(Echo, f"fd:{file.fileno()}")


def test_an_inherited_socket_must_fit_the_handler() -> None:
    """A handler of connections is refused on an inherited datagram socket, which stays open."""
    with bound(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)) as inherited:
        with pytest.raises(sockserve.AddressError, match="takes datagrams, and"):
            sockserve.serve(sockserve.StreamRequestHandler, f"fd:{inherited.fileno()}")
        assert is_open(inherited.fileno())


# what cannot be served


def test_all_addresses_are_bound_or_none() -> None:
    """If the second address is taken, BindError names it and the reason, and the first is free again."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        taken_text, free_text = (f"tcp://127.0.0.1:{listener.getsockname()[1]}" for listener in (taken, free))
        free.close()
        with pytest.raises(sockserve.BindError, match=f"{taken_text}: Address already in use") as raised:
            sockserve.serve(Echo, free_text, taken_text)
        assert raised.value.errno == errno.EADDRINUSE
    with socket.create_server(("127.0.0.1", int(free_text.rpartition(":")[2]))):
        pass


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("unix:/nonexistent/s", "No such file or directory"),
        (f"tcp://{'x' * 64}:0", ""),
        ("tcp://a..b:0", ""),
    ],
)
def test_what_the_system_refuses_is_a_bind_error(address: str, reason: str) -> None:
    """A directory that is missing and a host name that cannot be resolved are BindErrors, which are OSErrors."""
    with pytest.raises(sockserve.BindError, match=f"cannot serve on {address}: .*{reason}"):
        sockserve.serve(Echo, address)


@pytest.mark.parametrize(
    ("root", "address"), [("StreamRequestHandler", "udp://127.0.0.1:0"), ("DatagramRequestHandler", TCP)]
)
@pytest.mark.parametrize("module", ["sockserve", "socketserver"])
def test_a_handler_must_fit_its_address(module: str, root: str, address: str) -> None:
    """A handler of connections is refused on datagrams and the reverse, also if it is the standard library's."""
    handler: Any = type("Mine", (getattr(pytest.importorskip(module), root),), {})
    with pytest.raises(sockserve.AddressError, match=f"{address} takes .*Mine.* is a {root}: for"):
        sockserve.serve(handler, address)
