"""A datagram's answer comes from the address that its client wrote to."""

from __future__ import annotations

import errno
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.models import MODELS
from support.under_test import LIMIT

import sockserve
from sockserve.net.asked_address import AskedReceiver, AskedSocket
from sockserve.pytest_plugin import Running
from sockserve.ready_made import server_class
from sockserve.testing import connect


@pytest.fixture(params=[(socket.AF_INET, ""), (socket.AF_INET6, "::")], ids=["IPv4", "IPv6"])
def everywhere(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """A socket that is bound to all addresses."""
    family, host = request.param
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        yield sock


def wait_for_datagram(sock: socket.socket) -> None:
    """A receiver never waits."""
    assert select.select([sock], [], [], LIMIT)[0]


def asked_address(server: socket.socket, asked: str) -> str | None:
    """The address of which the server was told, after a connected client has got an answer with and without flags.

    The client drops what comes from another address than the one that it asked.
    """
    receiver = AskedReceiver(server)
    with socket.socket(socket.AF_INET6 if ":" in asked else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(LIMIT)
        client.connect((asked, server.getsockname()[1]))
        client.send(b"question")
        wait_for_datagram(server)
        (data, view), sender = receiver.receive(100)
        assert data == b"question"
        assert (sender[0].removeprefix("::ffff:"), sender[1]) == client.getsockname()[:2]
        assert view.sendto(b"answer", sender) == 6
        assert view.sendto(b"flags", 0, sender) == 5
        assert client.recv(100) == b"answer"
        assert client.recv(100) == b"flags"
    return view.asked_address


@pytest.mark.parametrize("asked", ["127.0.0.1", "127.8.9.10"])
def test_a_connected_client_gets_its_answer(asked: str) -> None:
    """127.0.0.1 is what the routes would say for all of them."""
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", 0))  # noqa: S104 - what the test is about
        assert asked_address(server, asked) == asked


def test_over_ipv6() -> None:
    """With an option of its own, RFC 3542."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.bind(("::", 0))
        assert asked_address(server, "::1") == "::1"


def test_ipv4_on_a_socket_for_both() -> None:
    """The kernel says the mapped address, and takes it back."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", 0))
        assert asked_address(server, "127.1.2.3") == "::ffff:127.1.2.3"


def test_the_view_is_the_servers_socket_in_all_else(everywhere: socket.socket) -> None:
    """A handler may ask it what it asks any socket; closing it closes nothing, and its end leaves no descriptor."""
    receiver = AskedReceiver(everywhere)
    host = "127.0.0.1" if everywhere.family == socket.AF_INET else "::1"
    with socket.socket(everywhere.family, socket.SOCK_DGRAM) as client:
        client.sendto(b"question", (host, everywhere.getsockname()[1]))
        wait_for_datagram(everywhere)
        (_, view), _ = receiver.receive(100)
    assert isinstance(view, socket.socket)
    assert type(view) is AskedSocket
    assert view.fileno() == everywhere.fileno()
    assert (view.family, view.type, view.proto) == (everywhere.family, everywhere.type, everywhere.proto)
    assert view.getsockname() == everywhere.getsockname()
    assert view.gettimeout() is view.timeout is None
    assert view.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_DGRAM
    assert host in repr(view)
    view.close()
    with view:
        pass
    del view
    assert everywhere.fileno() >= 0


def test_it_never_waits_and_cuts_at_the_size(everywhere: socket.socket) -> None:
    """As recvfrom() with MSG_DONTWAIT."""
    receiver = AskedReceiver(everywhere)
    with pytest.raises(BlockingIOError):
        receiver.receive(100)
    host = "127.0.0.1" if everywhere.family == socket.AF_INET else "::1"
    with socket.socket(everywhere.family, socket.SOCK_DGRAM) as client:
        client.sendto(b"a long question", (host, everywhere.getsockname()[1]))
    wait_for_datagram(everywhere)
    assert receiver.receive(6)[0][0] == b"a long"


def test_many_local_addresses_are_not_all_remembered() -> None:
    """A client may ask any of the 16 million addresses of the loopback network: what is kept for each is bounded."""
    with socket.socket(type=socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        server.bind(("0.0.0.0", 0))  # noqa: S104 - what the test is about
        receiver = AskedReceiver(server)
        port = server.getsockname()[1]
        for number in range(1000):
            asked = f"127.1.{number // 250}.{number % 250}"
            client.sendto(b"?", (asked, port))
            wait_for_datagram(server)
            assert receiver.receive(10)[0][1].asked_address == asked
            assert len(receiver._known) <= 256


def test_a_family_without_such_an_address_is_refused() -> None:
    """Nothing is answered from the wrong address in silence."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, pytest.raises(OSError, match="AF_UNIX"):
        AskedReceiver(sock)


def test_an_address_that_is_gone_is_an_error_of_the_answer() -> None:
    """The kernel refuses a source that is not the host's: the answer does not leave from another one."""
    with socket.socket(type=socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        server.bind(("0.0.0.0", 0))  # noqa: S104 - what the test is about
        receiver = AskedReceiver(server)
        client.bind(("127.0.0.1", 0))
        client.sendto(b"?", ("127.0.0.1", server.getsockname()[1]))
        wait_for_datagram(server)
        (_, view), sender = receiver.receive(10)
        level, kind, _ = view.control[0]
        view.control = ((level, kind, bytes(4) + socket.inet_aton("192.0.2.1") + bytes(4)),)
        with pytest.raises(OSError, match=r"Invalid argument|unreachable") as caught:
            view.sendto(b"answer", sender)
        assert caught.value.errno in (errno.EINVAL, errno.ENETUNREACH)


def test_threads_may_receive_at_once() -> None:
    """Each datagram is received once, with its own address."""
    seen: list[tuple[bytes, str | None]] = []
    with socket.socket(type=socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        server.bind(("0.0.0.0", 0))  # noqa: S104 - what the test is about
        receiver = AskedReceiver(server)
        port = server.getsockname()[1]
        for number in range(100):
            client.sendto(b"%d" % number, (f"127.0.0.{number + 1}", port))

        def receive() -> None:
            while True:
                try:
                    (data, view), _ = receiver.receive(10)
                except BlockingIOError:
                    return
                seen.append((data, view.asked_address))

        threads = [threading.Thread(target=receive) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(seen) == sorted((b"%d" % number, f"127.0.0.{number + 1}") for number in range(100))


@pytest.mark.parametrize("model", MODELS)
def test_each_model_answers_from_the_asked_address(model: str, running: Running) -> None:
    """With an unmodified handler; the client is connected, and so drops what comes from elsewhere."""
    base = server_class(model, "udp")
    asked = type(base.__name__, (base,), {"answer_from_asked": True})
    server = running(asked(("", 0), Shout))
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(LIMIT)
        client.connect(("127.5.6.7", server.server_address[1]))
        client.send(b"hello")
        assert client.recv(100) == b"HELLO"


class Shout(sockserve.DatagramRequestHandler):
    """Answers in capitals."""

    def handle(self) -> None:
        """Serve one datagram."""
        self.wfile.write(self.packet.upper())


def test_without_a_loop_and_with_a_time_out() -> None:
    """handle_request() waits as before, whatever the time-out of the socket."""

    class Server(sockserve.UDPServer):
        answer_from_asked = True

    with Server(("", 0), Shout) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        server.socket.settimeout(LIMIT)
        client.settimeout(LIMIT)
        client.connect(("127.5.6.7", server.server_address[1]))
        assert server._handle_request_noblock() is False
        client.send(b"hello")
        server.handle_request()
        assert client.recv(100) == b"HELLO"
        # Another socket in its place is asked for the address as well.
        replacement = socket.socket(type=socket.SOCK_DGRAM)
        replacement.bind(("", 0))
        server.socket.close()
        server.socket = replacement
        client.connect(("127.5.6.8", replacement.getsockname()[1]))
        client.send(b"again")
        server.handle_request()
        assert client.recv(100) == b"AGAIN"


def test_what_fails_after_it_was_received_is_that_datagrams(running: Running) -> None:
    """An override of get_request() that raises is reported with its request."""
    reported = []

    class Server(sockserve.UDPServer):
        answer_from_asked = True

        def get_request(self) -> Any:
            (data, sock), address = super().get_request()
            if data == b"bad":
                raise ValueError
            return (data, sock), address

        def handle_error(self, request: Any, client_address: Any) -> None:
            reported.append((request[0], client_address))

    server = running(Server(("127.0.0.1", 0), Shout))
    with connect(server) as client:
        client.send(b"bad")
        client.send(b"good")
        assert client.recv(100) == b"GOOD"
        assert reported == [(b"bad", client.getsockname())]
