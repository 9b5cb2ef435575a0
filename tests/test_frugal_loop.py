"""A loop that can be made when the system refuses another one."""

from __future__ import annotations

import os
import socket
import threading

import pytest
from support.handlers import handlers
from support.under_test import LIMIT

import sockserve
from sockserve.core.frugal_loop import FrugalLoop, host_somehow
from sockserve.core.loop import Loop
from sockserve.testing import ask
from sockserve.testing.leaks import take_inventory

H = handlers(sockserve)


def test_it_opens_no_descriptor_and_hears_what_it_watches() -> None:
    """It calls back for what is readable, and closes without having opened anything."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        before = take_inventory().descriptors
        with FrugalLoop() as loop:
            assert take_inventory().descriptors == before
            server = sockserve.TCPServer(("127.0.0.1", 0), H.Echo)
            with server:
                server.attach(loop)
                answers: list[bytes] = []
                client = threading.Thread(target=lambda: (answers.append(ask(server, b"hello")), server.shutdown()))
                client.start()
                loop.run()
                client.join(LIMIT)
            assert answers == [b"hello"]


@pytest.mark.parametrize("refused", ["socketpair", "watch"])
def test_a_refused_loop_is_replaced(refused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the system refuses, a host gets a loop at last."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    loops: list[Loop] = []
    if refused == "socketpair":
        monkeypatch.setattr("socket.socketpair", refuse)
    else:
        monkeypatch.setattr(Loop, "watch", refuse)
    host_somehow(loops.append)
    assert [type(loop) for loop in loops] == [FrugalLoop]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no worker processes")
@pytest.mark.parametrize("refused", ["socketpair", "select"])
def test_workers_end_well_when_there_is_no_descriptor_left(refused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``server_close()`` tells the workers to end, and waits for them, without a descriptor of its own."""

    class Server(sockserve.PreForkMixIn, sockserve.ThreadingTCPServer):
        processes = 1

    def refuse(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    server = Server(("127.0.0.1", 0), H.Echo)
    loop = threading.Thread(target=server.serve_forever)
    loop.start()
    assert server.wait_until_serving(LIMIT)
    assert ask(server, b"hello") == b"hello"
    server.shutdown()
    loop.join(LIMIT)
    if refused == "socketpair":
        monkeypatch.setattr("socket.socketpair", refuse)
    else:
        monkeypatch.setattr("sockserve.core.loop.open_poller", refuse)
    server.server_close()
