"""Ctrl-C at a place where a child's or a worker's news is being taken in: none of it is lost."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from injection.interrupts import Interrupt
from support.handlers import handlers
from support.under_test import LIMIT

import sockserve
from sockserve.concurrency.forks import ForkDispatcher
from sockserve.concurrency.prefork.crew import Crew
from sockserve.concurrency.prefork.protocol import LEAVE
from sockserve.concurrency.prefork.supervisor import Supervisor
from sockserve.concurrency.prefork.worker_handle import WorkerHandle
from sockserve.core.loop import Loop
from sockserve.testing import ask

H = handlers(sockserve)


class One(sockserve.PreForkMixIn, sockserve.TCPServer):
    """A single worker, which is idle and may be so for long."""

    processes = 1


def end_a_child(dispatcher: ForkDispatcher, statuses: list[int]) -> None:
    """Fork one that ends at once, and return when it has."""
    child = dispatcher.fork(lambda _: "failed", lambda: None, lambda _: None, statuses.append)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


class Asleep:
    """A source that wants nothing."""

    max_wait: float | None = None

    def before_wait(self) -> None:
        """Nothing."""

    def after_turn(self) -> None:
        """Nothing."""

    def leave(self) -> None:
        """Nothing."""

    def abandon(self) -> None:
        """Nothing."""


@pytest.mark.parametrize("verb", ["wait_for_one", "turn"])
def test_an_exit_status_is_told_wherever_ctrl_c_comes(verb: str) -> None:
    """It is told once, the child is forgotten with it, and the end waits for nothing."""
    for number in range(1, 1000):
        interrupt, statuses = Interrupt(number), list[int]()
        dispatcher = ForkDispatcher(lambda: 10)
        with Loop() as loop:
            end_a_child(dispatcher, statuses)
            dispatcher.attach(loop)
            loop.add(Asleep())
            try:
                with interrupt.active():
                    if verb == "turn":
                        loop._turn()
                    else:
                        dispatcher.wait_for_one(LIMIT)
            except KeyboardInterrupt:
                pass
            dispatcher.detach()
            assert dispatcher.close(LIMIT), interrupt.place
        assert statuses == [1], interrupt.place
        if not interrupt.place:
            assert number > 20
            return
    pytest.fail("no end of places")


@pytest.fixture
def server() -> Iterator[One]:
    """One that the main thread is to serve."""
    with One(("127.0.0.1", 0), H.Echo) as server:
        yield server


PLACES = [
    (WorkerHandle, "hear"),
    (Supervisor, "_hear"),
    (Supervisor, "_is_ready"),
    (Supervisor, "_has_begun"),
    (Supervisor, "_fill"),
    (Crew, "watch"),
    (Loop, "call_later"),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name"), PLACES, ids=[name for _, name in PLACES])
def test_a_supervisor_serves_again_wherever_ctrl_c_came(
    server: One, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, after: bool
) -> None:
    """KeyboardInterrupt comes out of ``serve_forever()``; the next one serves, with a worker that is ready already."""
    verb, left = getattr(owner, name), [1]

    def interrupted(*args: Any, **options: Any) -> Any:
        is_ours = threading.current_thread() is threading.main_thread() and left
        if is_ours and not after:
            left.pop()
            signal.raise_signal(signal.SIGINT)
        try:
            return verb(*args, **options)
        finally:
            if is_ours and after and left:
                left.pop()
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        server.serve_forever()
    answers: list[bytes] = []

    def operate() -> None:
        if server.wait_until_serving(LIMIT):
            answers.append(ask(server, b"hello"))
        server.shutdown(LIMIT)

    operator = threading.Thread(target=operate)
    operator.start()
    server.serve_forever()
    operator.join()
    assert answers == [b"hello"]


def test_an_order_for_which_there_is_no_memory_is_sent_again(server: One, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose loop sleeps hears that it is to leave, although the kernel had no memory for it at first."""
    left, send = [OSError(12, "Cannot allocate memory")], socket.socket.send

    def send_perhaps(sock: socket.socket, data: bytes, *flags: int) -> int:
        if data == LEAVE and left:
            raise left.pop()
        return send(sock, data, *flags)

    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    assert server.wait_until_serving(LIMIT)
    assert ask(server, b"hello") == b"hello"
    monkeypatch.setattr(socket.socket, "send", send_perhaps)
    server.shutdown(LIMIT)
    serving.join(LIMIT)
    assert not left
