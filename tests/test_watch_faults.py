"""A listener or a connection that the system refuses to watch: the pause or the request suffers, never the server."""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
from typing import Any

import pytest
from support.faulty_poller import FaultyPoller
from support.log_watch import ExpectLog
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.core.accepting import Acceptor
from sockserve.core.loop import INPUT, Loop
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, call_within

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="other pollers refuse nothing")

LOOPBACK = ("127.0.0.1", 0)

MODELS = [
    sockserve.TCPServer,
    sockserve.ThreadingTCPServer,
    sockserve.ForkingTCPServer,
    sockserve.ThreadPoolTCPServer,
    sockserve.GreenletTCPServer,
]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> FaultyPoller:
    """What refuses to watch."""
    return FaultyPoller(monkeypatch)


class Echo(sockserve.BaseRequestHandler[Any, Any, Any]):
    """Sends back what comes."""

    def handle(self) -> None:
        """Answer."""
        self.request.sendall(self.request.recv(100))


class Guest:
    """What a loop turns for."""

    max_wait = 0.0

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def before_wait(self) -> None:
        """Nothing to watch."""

    def after_turn(self) -> None:
        """Nothing to do."""

    def leave(self) -> None:
        """Let the loop end."""
        self.loop.remove(self)

    def abandon(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
@pytest.mark.parametrize("model", MODELS)
def test_a_listener_that_cannot_be_watched_again_is_tried_again(
    running: Running, faults: FaultyPoller, expect_log: ExpectLog, model: Any, number: int
) -> None:
    """After a pause: with a back-off, one line when it begins and one when it ends, and the clients meanwhile wait."""
    paused = expect_log(logging.WARNING, "accepting pauses, because the system cannot watch the listener")
    expect_log(logging.WARNING, "accepting again after 3 failed attempts")
    server = running(model(LOOPBACK, Echo))
    server.suspend()
    server.wait_idle(LIMIT)
    faults.refuse("register", fd=server.fileno(), times=3, number=number)
    server.resume()
    assert ask(server, b"hello", timeout=LIMIT) == b"hello"
    assert faults.refused == [("register", server.fileno())] * 3
    assert len(paused.wait()) == 1


@pytest.mark.parametrize("model", MODELS)
def test_a_server_begins_although_its_listener_cannot_be_watched_yet(
    running: Running, faults: FaultyPoller, expect_log: ExpectLog, model: Any
) -> None:
    """As in any later pause."""
    expect_log(logging.WARNING, "accepting pauses, because the system cannot watch the listener")
    expect_log(logging.WARNING, "accepting again")
    server = model(LOOPBACK, Echo)
    faults.refuse("register", fd=server.fileno(), times=2)
    running(server)
    assert ask(server, b"hello", timeout=LIMIT) == b"hello"


@pytest.mark.parametrize("model", MODELS)
def test_a_stop_ends_a_pause_of_watching(
    running: Running, faults: FaultyPoller, expect_log: ExpectLog, model: Any
) -> None:
    """Also if the system refuses for ever."""
    expect_log(logging.WARNING, "accepting pauses")
    server = model(LOOPBACK, Echo)
    faults.refuse("register", fd=server.fileno(), times=1_000_000)
    running(server)
    wait_until(lambda: len(faults.refused) > 2)
    call_within(LIMIT, server.shutdown)


@pytest.mark.parametrize("model", [sockserve.TCPServer, sockserve.ThreadPoolTCPServer])
def test_a_listener_that_is_none_is_not_tried_again(faults: FaultyPoller, model: Any) -> None:
    """An error that time does not mend ends the loop."""
    with model(LOOPBACK, Echo) as server:
        faults.refuse("register", fd=server.fileno(), number=errno.EPERM)
        with pytest.raises(PermissionError):
            server.serve_forever()


def test_what_could_not_be_watched_is_unknown_to_the_loop(faults: FaultyPoller) -> None:
    """It calls nobody back for that number, which may be another's soon; what was armed before stays armed."""
    reader, writer = socket.socketpair()
    heard: list[object] = []
    with reader, writer, Loop() as loop:
        loop.add(Guest(loop))
        faults.refuse("register", fd=reader.fileno(), times=2)
        with pytest.raises(OSError, match="No space"):
            loop.watch(reader.fileno(), lambda: heard.append("watched"))
        with pytest.raises(OSError, match="No space"):
            loop.arm(reader.fileno(), lambda _: heard.append("armed"), INPUT)
        loop.rearrange(reader.fileno(), lambda _: heard.append("rearranged"))
        writer.send(b"!")
        loop._turn()
        assert heard == []
        loop.arm(reader.fileno(), heard.append, INPUT)
        faults.refuse("modify")
        with pytest.raises(OSError, match="No space"):
            loop.arm(reader.fileno(), lambda _: heard.append("again"), INPUT)
        loop._turn()
        assert heard == [INPUT]


@pytest.mark.parametrize("model", [sockserve.TCPServer, sockserve.ThreadPoolTCPServer])
def test_a_start_that_fails_leaves_the_server_as_it_was(
    running: Running, monkeypatch: pytest.MonkeyPatch, model: Any
) -> None:
    """At each descriptor that it needs and does not get: nothing is left open, and the next start serves."""
    real_epoll, real_pair = select.epoll, socket.socketpair
    server = model(LOOPBACK, Echo)
    left = 0

    def limited(real: Any, *args: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(*args)

    needed = 4 if model is sockserve.ThreadPoolTCPServer else 2
    with monkeypatch.context() as patched:
        patched.setattr(select, "epoll", lambda *args: limited(real_epoll, *args))
        patched.setattr(socket, "socketpair", lambda *args: limited(real_pair, *args))
        patched.setattr(Acceptor, "before_wait", lambda self: self.leave())
        for number in range(needed):
            left = number
            with pytest.raises(OSError, match="Too many open files"):
                server.serve_forever()
        left = needed
        server.serve_forever()
        assert left == 0
    running(server)
    assert ask(server, b"hello", timeout=LIMIT) == b"hello"
