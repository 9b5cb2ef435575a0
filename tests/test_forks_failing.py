"""Forks: what the kernel refuses the parent, and a Ctrl-C in it, cost neither the child nor the server."""

from __future__ import annotations

import errno
import logging
import math
import os
import signal
from typing import Any

import pytest
from support.forking import Counted, SaysGoodbye, interrupted
from support.handlers import handlers
from support.log_watch import ExpectLog
from support.under_test import LIMIT

import sockserve
from sockserve.concurrency.children import Child
from sockserve.core.loop import Loop
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, connect


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
def test_a_child_that_cannot_be_watched_is_reaped(
    running: Running, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A pidfd that epoll does not take: the client is served, and the child holds no place for ever."""
    pidfds, watch, init = set[int | None](), Loop.watch, Child.__init__

    def note(child: Child, *args: Any) -> None:
        init(child, *args)
        pidfds.add(child.pidfd)

    def refuse(loop: Loop, fd: int, *args: Any, **options: Any) -> None:
        if fd in pidfds:
            raise OSError(number, os.strerror(number))
        watch(loop, fd, *args, **options)

    server = running(Counted(handlers(sockserve).Echo, max_children=1))
    monkeypatch.setattr(Child, "__init__", note)
    monkeypatch.setattr(Loop, "watch", refuse)
    assert [ask(server, b"hello") for _ in range(3)] == [b"hello"] * 3
    assert server.outcome() == (3, 0)
    assert server.active_children == set()


def test_a_child_from_before_the_loop_that_cannot_be_watched_is_reaped(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for a child that ``handle_request()`` made, when a loop begins."""
    server = Counted(SaysGoodbye)
    with connect(server) as client, client.makefile("rb") as answer:
        server.handle_request()
        assert answer.readline()
        pidfds, watch = {child.pidfd for child in server._serving_dispatcher.children.values()}, Loop.watch

        def refuse(loop: Loop, fd: int, *args: Any, **options: Any) -> None:
            if fd in pidfds:
                raise OSError(errno.ENOSPC, "no space")
            watch(loop, fd, *args, **options)

        monkeypatch.setattr(Loop, "watch", refuse)
        running(server)
        client.sendall(b"\n")
        assert answer.read()
    assert server.outcome() == (1, 0)


def test_an_interrupt_while_the_child_is_made_leaves_no_orphan(
    monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    """Ctrl-C during fork(2) is raised when the child is known: ``server_close()`` waits for it, then cuts it."""
    fork = os.fork

    def fork_and_interrupt() -> int:
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(os, "fork", fork)
        return fork()

    expect_log(logging.WARNING, "in progress for")
    expect_log(logging.WARNING, "was killed by signal 9")
    server, child = interrupted(monkeypatch, fork_and_interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert server.outcome() == (0, 1)


@pytest.mark.parametrize("kind", [sockserve.ForkingMixIn, sockserve.ThreadingMixIn])
@pytest.mark.parametrize("limit", [86400.0 * 25, 1e10, math.inf])
def test_a_close_waits_as_long_as_it_is_told(running: Running, kind: type, limit: float) -> None:
    """A ``drain_timeout`` beyond what poll(2) or a lock takes is no error, and the request ends by itself."""
    server = type("Server", (kind, sockserve.TCPServer), {"drain_timeout": limit})(("127.0.0.1", 0), SaysGoodbye)
    running(server)
    with connect(server) as client, client.makefile("rb") as answer:
        assert answer.readline()
        client.sendall(b"\n")
        server.shutdown(LIMIT)
        server.server_close()
        assert answer.read()
