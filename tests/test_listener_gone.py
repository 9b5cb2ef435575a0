"""A listener that is shut down or closed by anything but ``server_close()`` ends the loop, idle or not."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import select
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing import resource_sharer
from typing import Any

import pytest
from support.handlers import handlers
from support.models import MODELS
from support.strange_listeners import Bare, Wrapper
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.core.loop import Loop
from sockserve.ready_made import server_class
from sockserve.testing import ask, call_within

LOOPBACK = ("127.0.0.1", 0)
ECHO = handlers(sockserve).Echo
SCHEMES = ["tcp", "udp", "unix", "unix-dgram"]


class EchoDatagram(sockserve.DatagramRequestHandler):
    """Sends back what it got."""

    def handle(self) -> None:
        """Serve one datagram."""
        self.wfile.write(self.rfile.read())


class Stay:
    """``serve_forever()`` in a thread, and what it raised."""

    def __init__(self, server: Any, poll_interval: float = 3600.0) -> None:
        self.server = server
        self.raised: list[BaseException] = []
        self.thread = threading.Thread(target=self.run, args=(poll_interval,))
        self.thread.start()
        assert server.wait_until_serving(LIMIT)

    def run(self, poll_interval: float) -> None:
        """Serve until it ends."""
        try:
            self.server.serve_forever(poll_interval)
        except BaseException as error:
            self.raised.append(error)

    def ends(self) -> BaseException | None:
        """Wait for the end; what was raised."""
        self.thread.join(LIMIT)
        ended = not self.thread.is_alive()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
        assert ended
        return self.raised[0] if self.raised else None


def make(model: str, scheme: str, tmp_path: pathlib.Path) -> Any:
    """A server that is bound."""
    address: Any = str(tmp_path / "socket") if scheme.startswith("unix") else LOOPBACK
    handler = EchoDatagram if scheme in ("udp", "unix-dgram") else ECHO
    return server_class(model, scheme)(address, handler)


def shut_down(listener: socket.socket) -> None:
    """Linux does it although it says that an unconnected socket of datagrams cannot be shut down."""
    try:
        listener.shutdown(socket.SHUT_RDWR)
    except OSError:
        assert listener.type == socket.SOCK_DGRAM


def leave_with(listener: socket.socket) -> None:
    """As ``with server.socket:`` does."""
    with listener:
        pass


ENDS: dict[str, Callable[[socket.socket], object]] = {
    "close": lambda listener: listener.close(),
    "with": leave_with,
    "detach": lambda listener: os.close(listener.detach()),
    "shutdown": shut_down,
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("model", MODELS)
def test_the_end_of_an_idle_listener_is_noticed(model: str, scheme: str, end: str, tmp_path: pathlib.Path) -> None:
    """At once, whatever runs the handlers, and whether or not anything was served before."""
    server = make(model, scheme, tmp_path)
    stay = Stay(server)
    ENDS[end](server.socket)
    assert isinstance(stay.ends(), sockserve.ListenerLostError)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no other process")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("model", ["inline", "pool"])
def test_another_process_may_shut_it_down(model: str, scheme: str, tmp_path: pathlib.Path) -> None:
    """The socket is shared by whoever inherited it."""
    server = make(model, scheme, tmp_path)
    stay = Stay(server)
    process = multiprocessing.get_context("fork").Process(target=shut_down, args=(server.socket,))
    process.start()
    process.join()
    assert isinstance(stay.ends(), sockserve.ListenerLostError)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no other process")
@pytest.mark.parametrize("model", MODELS)
def test_what_a_child_closes_is_its_own_copy(model: str, tmp_path: pathlib.Path) -> None:
    """The parent's loop hears nothing of it, and goes on."""
    server = make(model, "tcp", tmp_path)
    stay = Stay(server)
    process = multiprocessing.get_context("fork").Process(target=server.socket.close)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert ask(server, b"still here") == b"still here"
    server.shutdown()
    assert stay.ends() is None


def test_each_server_over_one_socket_hears_of_its_end() -> None:
    """Also if another one has left the socket before."""
    listener = socket.create_server(LOOPBACK)
    stays = []
    for model in ("inline", "pool", "thread"):
        server = server_class(model, "tcp")(listener.getsockname(), ECHO, bind_and_activate=False)
        server.socket.close()
        server.socket = listener
        stays.append(Stay(server))
    stays[0].server.shutdown()
    stays[0].thread.join()
    listener.close()
    assert [type(stay.ends()) for stay in stays] == [type(None)] + [sockserve.ListenerLostError] * 2


@pytest.mark.parametrize("wrap", [Wrapper, Bare])
@pytest.mark.parametrize("model", MODELS)
def test_what_cannot_tell_of_its_end_is_looked_at(model: str, wrap: Any, tmp_path: pathlib.Path) -> None:
    """Every ``poll_interval``, as ``socketserver`` does."""
    server = make(model, "tcp", tmp_path)
    server.socket = wrap(server.socket)
    stay = Stay(server, 0.01)
    server.socket.close()
    assert isinstance(stay.ends(), sockserve.ListenerLostError)


def test_a_watched_socket_is_what_it_was(tmp_path: pathlib.Path) -> None:
    """To whoever looks: its name, a duplicate, whether it can be sent; afterwards it has its class again."""
    server = make("inline", "tcp", tmp_path)
    shown, kind = repr(server.socket), type(server.socket)
    stay = Stay(server)
    assert isinstance(server.socket, kind)
    assert repr(server.socket) == shown
    with server.socket.dup() as copy:
        assert type(copy) is kind
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        sender = threading.Thread(target=ours.send, args=(server.socket,))
        sender.start()
        with theirs.recv() as received:
            assert received.getsockname() == server.socket.getsockname()
        sender.join()
    resource_sharer.stop(LIMIT)
    server.shutdown()
    assert stay.ends() is None
    assert type(server.socket) is kind


@pytest.mark.skipif(not hasattr(select, "poll"), reason="there is no other way to ask")
@pytest.mark.parametrize("model", MODELS)
def test_a_lost_race_for_a_datagram_is_no_end(model: str, tmp_path: pathlib.Path) -> None:
    """Another process takes what the loop was told of: it waits on."""
    server = make(model, "udp", tmp_path)
    stay = Stay(server)
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(LIMIT)
        client.connect(server.server_address)
        for number in range(20):
            client.send(b"%d" % number)
            with server.socket.dup() as same:
                try:
                    same.recv(10, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    client.recv(10)
        client.send(b"last")
        answers = []
        while b"last" not in answers:
            answers.append(client.recv(10))
    server.shutdown()
    assert stay.ends() is None


def test_a_neighbour_goes_on_when_a_listener_ends() -> None:
    """In a loop of several servers: run again, it serves the other one, and nothing wakes it before it is needed."""
    with Loop() as loop:
        lost, good = (sockserve.TCPServer(LOOPBACK, ECHO) for _ in range(2))
        for server in (lost, good):
            server.attach(loop)
        ender = threading.Timer(0, lost.socket.close)
        ender.start()
        with pytest.raises(sockserve.ListenerLostError):
            call_within(LIMIT, loop.run)
        ender.join()
        thread = threading.Thread(target=loop.run)
        thread.start()
        assert ask(good, b"good") == b"good"
        good.shutdown()
        thread.join()
        for server in (lost, good):
            server.server_close()


def test_a_listener_that_ended_costs_no_processor(tmp_path: pathlib.Path) -> None:
    """A pool whose workers ask the length of the queue first does not ask for ever."""
    server = make("pool", "tcp", tmp_path)
    stay = Stay(server)
    used = time.process_time()
    server.socket.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: stay.raised)
    assert time.process_time() - used < LIMIT / 2
    assert isinstance(stay.ends(), sockserve.ListenerLostError)
