"""A process that was forked beside a running loop closes its copy of the server: the parent goes on serving."""

from __future__ import annotations

import os
import socket

import pytest
from support.handlers import handlers
from support.models import MODELS, mix_ins
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, connect


@pytest.mark.parametrize("model", MODELS)
def test_a_child_that_closes_its_copy_leaves_the_parent_serving(running: Running, model: str) -> None:
    """``server_close()`` in a forked child takes the listener out of no set that the parent waits on."""
    bases = (*mix_ins(model), sockserve.TCPServer)
    server = running(type("Server", bases, {"max_workers": 2})(("127.0.0.1", 0), handlers(sockserve).Echo))
    assert ask(server, b"before") == b"before"
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            server.server_close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert [ask(server, b"after") for _ in range(3)] == [b"after"] * 3
    server.shutdown(LIMIT)


@pytest.mark.parametrize("model", ["thread", "pool"])
def test_a_child_that_drains_its_copy_ends_no_client_of_the_parent(running: Running, model: str) -> None:
    """``drain()`` in a forked child finds nothing in progress, and cuts nothing."""
    bases = (*mix_ins(model), sockserve.TCPServer)
    server = running(type("Server", bases, {"max_workers": 2})(("127.0.0.1", 0), handlers(sockserve).Echo))
    with connect(server) as client:
        wait_until(lambda: server.active_requests)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = int(server.drain(0) != (0, 0))
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        client.sendall(b"still here")
        client.shutdown(socket.SHUT_WR)
        assert client.makefile("rb").read() == b"still here"
