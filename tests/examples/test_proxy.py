"""The proxy: between clients and a target, with many who are silent, some who break off, and none who fills memory."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest
from example import Example, flood
from support.under_test import LIMIT

import sockserve
from sockserve import testing
from sockserve.pytest_plugin import Running

pytest.importorskip("greenlet")

MUCH = 32 * 2**20
SILENT = 100


class Target(sockserve.StreamRequestHandler):
    """Echoes, or after the line "flood" sends without end."""

    has_ended = threading.Event()

    def handle(self) -> None:
        """Serve one client."""
        with contextlib.suppress(OSError):
            while data := self.rfile.read1(65536):
                self.wfile.write(data)
                while data == b"flood\n":
                    self.wfile.write(bytes(65536))
        self.has_ended.set()


@pytest.fixture
def target(running: Running) -> dict[str, str]:
    """The environment that names a target for the proxy."""
    Target.has_ended.clear()
    server = running(sockserve.ThreadingTCPServer(("127.0.0.1", 0), Target))
    return {"PROXY_TARGET": f"127.0.0.1:{server.server_address[1]}"}


def test_proxy(target: dict[str, str]) -> None:
    """What is said and its end go both ways, also among many who say nothing."""
    with Example("proxy.py", env=target) as example, contextlib.ExitStack() as silent:
        address = example.address()
        data = bytes(range(256)) * 10_000
        assert testing.ask(address, data) == data
        for _ in range(SILENT):
            silent.enter_context(testing.Stall(address))
        assert testing.ask(address, b"hello") == b"hello"
        silent.close()
        example.end()


def test_a_client_that_does_not_read(target: dict[str, str]) -> None:
    """Its target has to wait, the proxy holds no more than a piece, and others are served; when it goes, all goes."""
    with Example("proxy:Proxy", "--model", "greenlet", "tcp://127.0.0.1:0", env=target) as example:
        address = example.address()
        assert testing.ask(address, b"hello") == b"hello"
        Target.has_ended.clear()
        before = example.peak_memory()
        with testing.Reset(address, b"flood\n") as client:
            assert client.connection.recv(6, socket.MSG_WAITALL) == b"flood\n"
            for _ in range(3):
                assert testing.ask(address, b"hello") == b"hello"
            Target.has_ended.clear()
            answer, _ = flood(address, b"", b"x", MUCH)
            assert set(answer) == set(b"x")
            assert Target.has_ended.wait(LIMIT)
            Target.has_ended.clear()
        assert Target.has_ended.wait(LIMIT)
        assert example.peak_memory() - before < 8 * 2**20
        assert "Exception" not in example.end()


def test_a_target_that_is_not_there() -> None:
    """The client sees its connection end, and the log says why."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = {"PROXY_TARGET": f"127.0.0.1:{taken.getsockname()[1]}"}
        with Example("proxy.py", env=nobody) as example:
            assert testing.ask(example.address(), b"hello") == b""
            assert "refused" in example.says(r"is not served: (.*)$")
            example.end()
