"""Waiting for an idle server: nothing of a wait that is over stays behind."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support.models import HERE, SERVERS
from support.under_test import LIMIT

import sockserve
from sockserve.core.active_requests import ActiveRequests
from sockserve.core.lifecycle import Lifecycle, wait_until_idle
from sockserve.core.serving import table_of
from sockserve.pytest_plugin import Running
from sockserve.testing import connect

LOOPBACK = ("127.0.0.1", 0)


@pytest.mark.parametrize("model", HERE)
def test_a_health_check_that_asks_often_leaves_nothing(running: Running, model: str) -> None:
    """Of an idle server and of a busy one, in every way to run a handler."""
    begun, opened = threading.Event(), threading.Event()

    class Gate(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            begun.set()
            if model == "greenlet":
                self.request.recv(1)
            else:
                assert opened.wait(LIMIT)

    server = running(SERVERS[model](LOOPBACK, Gate))
    table = table_of(server)
    before = len(table.watchers)
    for _ in range(50):
        assert server.wait_idle(0)
    with connect(server, timeout=LIMIT):
        assert begun.wait(LIMIT)
        for timeout in (0, 0.001) * 25:
            assert not server.wait_idle(timeout)
        assert len(table.watchers) == before
        opened.set()
    assert server.wait_idle(LIMIT)
    assert len(table.watchers) == before


def test_a_wait_that_raises_leaves_nothing() -> None:
    """As Ctrl-C in the middle of it does."""
    table = ActiveRequests()
    table.add(object(), "peer").thread = None

    def interrupted(*_: Any) -> bool:
        raise KeyboardInterrupt

    lifecycle = Lifecycle()
    with pytest.raises(KeyboardInterrupt):
        wait_until_idle([(lifecycle, table)], None, interrupted)
    assert table.watchers == []


def test_who_no_longer_waits_takes_nothing_from_others() -> None:
    """Of several that wait for the next change only the one that asked is forgotten, and once."""
    table = ActiveRequests()
    first, second = table.next_change(), table.next_change()
    for _ in range(2):
        table.forget_change(first)
    table.touch()
    assert (first.is_set(), second.is_set()) == (False, True)
    table.forget_change(second)
