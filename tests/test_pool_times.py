"""A pool's times: what is longer than the kernel can wait is as good as for ever, and what is no time is refused."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, connect

LOOPBACK = ("127.0.0.1", 0)

DAY = 86400.0


def pool(handler: Any, **attributes: Any) -> Any:
    """A server with these attributes."""
    return type("Server", (sockserve.ThreadPoolTCPServer,), attributes)(LOOPBACK, handler)


@pytest.mark.parametrize("shared", ["epoll", "selector"])
@pytest.mark.parametrize("idle_timeout", [25 * DAY, threading.TIMEOUT_MAX, 1e300, math.inf, None])
def test_a_worker_may_be_idle_for_any_time(
    running: Running, monkeypatch: pytest.MonkeyPatch, idle_timeout: float | None, shared: str
) -> None:
    """None dies of a limit that is more than epoll_wait(2) or a lock takes: those that came for a rush stay."""
    if shared == "selector":
        monkeypatch.delattr("select.epoll")
    everybody = threading.Barrier(4)

    class Together(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            everybody.wait(LIMIT)
            self.request.sendall(b"done")

    server = running(pool(Together, max_workers=3, idle_timeout=idle_timeout))
    for _ in range(2):
        clients = [connect(server, timeout=LIMIT) for _ in range(3)]
        everybody.wait(LIMIT)
        for client in clients:
            with client:
                assert client.recv(100) == b"done"
        wait_until(lambda: len(server._serving_pool.idle) == 3)
        assert len(server._serving_pool.workers) == 3


@pytest.mark.parametrize("idle_timeout", [-1, -0.001, -math.inf, math.nan])
def test_what_is_no_time_is_refused(idle_timeout: float) -> None:
    """By a ValueError of ``serve_forever()``, and the server can serve with another one."""

    class Hello(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            self.request.sendall(b"hello")

    with pool(Hello, idle_timeout=idle_timeout) as server:
        with pytest.raises(ValueError, match="idle_timeout"):
            server.serve_forever()
        server.idle_timeout = 1.0
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        assert ask(server.server_address, b"", timeout=LIMIT) == b"hello"
        server.shutdown()
        serving.join()
