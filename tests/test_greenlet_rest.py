"""Greenlets that are done, rest, and serve again."""

from __future__ import annotations

import contextlib
import contextvars
import socket
import weakref
from typing import Any

import greenlet
import pytest
from support.under_test import LIMIT
from support.waiting import wait_until
from test_greenlets import LOOPBACK, handling

import sockserve
from sockserve import greenlets
from sockserve.concurrency.cooperative.hub import Hub
from sockserve.concurrency.cooperative.request_greenlet import RequestGreenlet
from sockserve.core.loop import Loop
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, connect


class Once:
    """Keeps a loop running for one turn."""

    max_wait: float | None = None

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def before_wait(self) -> None:
        """Wait."""

    def after_turn(self) -> None:
        """It was one."""
        self._loop.remove(self)

    def leave(self) -> None:
        """Let the loop end."""

    def abandon(self) -> None:
        """Nothing to close."""


def test_a_greenlet_that_is_done_serves_again(running: Running) -> None:
    """Nothing of the last request is left for the next one, nor kept alive, and with the loop it ends."""
    variable = contextvars.ContextVar[Any]("variable", default=None)
    workers = []
    handlers = []

    def handle(self: Any) -> None:
        workers.append(weakref.ref(greenlet.getcurrent()))
        handlers.append(weakref.ref(self))
        self.request.sendall(b"unset" if variable.get() is None else b"set")
        variable.set(self)
        self.request.settimeout(3600)
        while self.request.recv(100):
            greenlets.sleep(0)
        greenlets.run_in_thread(variable.set, "set elsewhere")

    server = running(sockserve.GreenletTCPServer(LOOPBACK, handling(handle)))
    for _ in range(3):
        assert ask(server, b"x") == b"unset"
        assert server.wait_idle(LIMIT)
        wait_until(lambda: handlers[-1]() is None)
    with connect(server, timeout=LIMIT) as first, connect(server, timeout=LIMIT) as second:
        assert [first.recv(100), second.recv(100)] == [b"unset"] * 2
    assert workers[0]() is workers[1]() is workers[2]()
    assert len({id(each()) for each in workers}) == 2
    server.shutdown()
    wait_until(lambda: not any(each() for each in workers))


def test_a_greenlet_that_ends_while_it_rests_is_given_nothing() -> None:
    """A signal handler's exception may hit it there."""
    hub = Hub()
    hub.lets_rest = True
    served: list[int] = []
    worker = hub.begin(served.append, 1)
    with pytest.raises(KeyboardInterrupt):
        worker.throw(KeyboardInterrupt)
    assert hub.begin(served.append, 2) is not worker
    assert served == [1, 2]
    hub.dismiss()


def test_a_greenlet_that_was_broken_off_waits_for_nothing() -> None:
    """Whoever reads next from the socket that it waited for is not told that somebody else does."""
    ours, theirs = socket.socketpair()
    with theirs, greenlets.cooperative(ours) as sock, Loop() as loop:
        hub = Hub()
        hub.give_turns_from_here()
        hub.move_to(loop)
        hub.lets_rest = True

        def read() -> None:
            with contextlib.suppress(KeyboardInterrupt):
                while sock.recv(10):
                    pass

        first = hub.begin(read)
        theirs.sendall(b"x")
        loop.add(Once(loop))
        loop.run()
        # As a greenlet does that has to wait for room to send.
        sock._serving_channel.stop_direct()  # type: ignore[attr-defined]
        first.throw(KeyboardInterrupt)
        assert hub.spawn(read) is first
        second = RequestGreenlet(hub, read)
        second.switch()
        assert not second.dead
        second.throw(KeyboardInterrupt)
        hub.dismiss()
