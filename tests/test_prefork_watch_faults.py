"""A supervisor whose system has no room to watch: it goes on, and watches when there is room."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.handlers import handlers
from support.log_watch import ExpectLog
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.concurrency.prefork import crew, hang_detection
from sockserve.core.loop import Loop
from sockserve.pytest_plugin import Running
from sockserve.testing import ask

NUMBERS = [errno.ENOSPC, errno.ENOMEM]


class Server(sockserve.PreForkMixIn, sockserve.ThreadingTCPServer):
    """One worker, whose sleep is looked after soon."""

    processes = 1
    worker_timeout = 0.5


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """One that is not running yet; it tries again soon."""
    for module in (hang_detection, crew):
        monkeypatch.setattr(module, "WATCH_AGAIN", 0.02)
    with Server(("127.0.0.1", 0), handlers(sockserve).Echo) as server:
        yield server


@pytest.mark.parametrize("number", NUMBERS)
def test_listeners_that_cannot_be_watched_are_tried_again(
    running: Running, monkeypatch: pytest.MonkeyPatch, server: Any, number: int
) -> None:
    """The look for workers that hang in their sleep waits, the service does not."""
    watched, refused = threading.Event(), list[int]()
    arm = Loop.arm

    def refuse(loop: Loop, fd: int, *args: Any) -> None:
        if fd == server.fileno() and len(refused) < 3:
            refused.append(fd)
            raise OSError(number, os.strerror(number))
        arm(loop, fd, *args)
        watched.set()

    monkeypatch.setattr(Loop, "arm", refuse)
    running(server)
    assert watched.wait(LIMIT)
    assert len(refused) == 3
    assert ask(server, b"hello", timeout=LIMIT) == b"hello"


@pytest.mark.parametrize("which", ["control", "pidfd"])
def test_a_worker_that_cannot_be_watched_serves_and_is_replaced_at_its_end(
    running: Running, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog, server: Any, which: str
) -> None:
    """What it tells, and its end, are noticed without a watch, however long there is no room."""
    expect_log(logging.WARNING, "was killed by SIGKILL")
    watch, refused = Loop.watch, set[int]()

    def refuse(loop: Loop, fd: int, *args: Any, **options: Any) -> None:
        for worker in server._serving_supervisor.workers.values():
            if fd == (worker.control.fileno() if which == "control" else worker.child.pidfd):
                refused.add(worker.child.pid)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        watch(loop, fd, *args, **options)

    monkeypatch.setattr(Loop, "watch", refuse)
    running(server)
    assert ask(server, b"hello", timeout=LIMIT) == b"hello"
    (first,) = refused
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(refused) == 2)
    assert ask(server, b"hello", timeout=LIMIT) == b"hello"
    server.shutdown()


def test_a_supervisor_that_runs_again_watches_the_workers_of_before_when_there_is_room(
    running: Running, monkeypatch: pytest.MonkeyPatch, server: Any
) -> None:
    """A drain that has no room for its watches ends the workers in time, and none is cut."""
    running(server)
    assert ask(server, b"hello", timeout=LIMIT) == b"hello"
    watch, left = Loop.watch, [3]

    def refuse(loop: Loop, fd: int, callback: Any, **options: Any) -> None:
        if left[0] and any(fd == worker.control.fileno() for worker in server._serving_supervisor.workers.values()):
            left[0] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        watch(loop, fd, callback, **options)

    monkeypatch.setattr(Loop, "watch", refuse)
    server.shutdown()
    server.server_close()
    assert not server._serving_supervisor.workers
