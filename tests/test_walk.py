"""The walk of a request through the package: in how many modules, and how often back to one that was left."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support.under_test import LIMIT

import sockserve
from sockserve.core.loop import Loop
from sockserve.testing import connect

HOUSE = os.path.dirname(sockserve.__file__) + os.sep

LOOPBACK = ("127.0.0.1", 0)


class Handler(sockserve.BaseRequestHandler[Any, socket.socket]):
    """Answers with what it read."""

    def handle(self) -> None:
        """All of it."""
        self.request.sendall(self.request.recv(100))


class Walk:
    """The modules of the package in whose functions a thread is, one after the other, from one call on."""

    def __init__(self, begin: str) -> None:
        self._begin = begin
        self._depth = 0
        self.stays: list[str] = []
        """The modules; one that is left and come back to is in it twice."""
        self.requests = 0

    def returns(self) -> int:
        """How often it came back to a module that it had left."""
        return len(self.stays) - len(set(self.stays))

    def record(self, function: Callable[[], object]) -> None:
        """Call a function and look on."""
        before = sys.getprofile()
        sys.setprofile(self._look)
        try:
            function()
        finally:
            sys.setprofile(before)

    def _look(self, frame: Any, event: str, _argument: object) -> None:
        path = frame.f_code.co_filename
        if event not in ("call", "return") or not path.startswith(HOUSE):
            return
        if frame.f_code.co_name == self._begin:
            if event == "call":
                # The last request counts: the first makes what the others use again.
                self.stays = []
                self.requests += 1
            self._depth += 1 if event == "call" else -1
            if event == "return":
                return
        if not self._depth:
            return
        if event == "return":
            # Back to the caller, past what is not of the package.
            frame = frame.f_back
            while frame is not None and not frame.f_code.co_filename.startswith(HOUSE):
                frame = frame.f_back
            if frame is None:
                return
        module = frame.f_code.co_filename.removeprefix(HOUSE)
        if self.stays[-1:] != [module]:
            self.stays.append(module)


def walk_of(server: Any) -> Walk:
    """The way of the second of two requests that a loop takes, each in a turn of its own."""
    walk = Walk("_handle_request_noblock")
    with server, Loop() as loop:
        server.attach(loop)

        def take_two() -> None:
            for _ in range(2):
                with connect(server, timeout=LIMIT) as client:
                    client.sendall(b"ping")
                    client.shutdown(socket.SHUT_WR)
                    before = walk.requests
                    while walk.requests == before:
                        loop._turn()
                    assert client.recv(5, socket.MSG_WAITALL) == b"ping"

        walk.record(take_two)
        server.shutdown()
        loop.run()
    return walk


def test_a_request_returns_five_times_at_most_to_a_module_that_it_left() -> None:
    """From the hook that takes it to its end: six modules, and every one is left for good but on the way back."""
    walk = walk_of(sockserve.TCPServer(LOOPBACK, Handler))
    assert walk.requests == 2
    assert walk.stays[0] == os.path.join("core", "base_server.py")
    assert os.path.join("core", "handlers.py") in walk.stays
    assert len(set(walk.stays)) <= 6, walk.stays
    assert walk.returns() <= 5, walk.stays


@pytest.mark.parametrize(
    "hook", ["get_request", "verify_request", "prepare_request", "finish_request", "shutdown_request", "close_request"]
)
@pytest.mark.parametrize("place", ["class", "object"])
def test_each_hook_that_is_overridden_is_called(hook: str, place: str) -> None:
    """The short way is for our own hooks only: an override of any of them is called once for each request."""
    calls = []
    own = getattr(sockserve.TCPServer, hook)

    def override(*arguments: Any) -> Any:
        calls.append(arguments)
        return own(*arguments)

    server: Any
    if place == "class":
        server = type("Server", (sockserve.TCPServer,), {hook: override})(LOOPBACK, Handler)
    else:
        server = sockserve.TCPServer(LOOPBACK, Handler)
        setattr(server, hook, lambda *arguments: override(server, *arguments))
    assert walk_of(server).requests == len(calls) == 2


@pytest.mark.parametrize("hook", ["shutdown_request", "close_request", "verify_request", "get_request"])
def test_a_hook_that_a_handler_overrides_is_called_from_then_on(hook: str) -> None:
    """A handler that puts a hook on the server object finds it called, for its own request if that is still to come."""
    calls = []
    own = getattr(sockserve.TCPServer, hook)

    class Overrides(Handler):
        def handle(self) -> None:
            super().handle()
            server = self.server

            def override(*arguments: Any) -> Any:
                calls.append(arguments)
                return own(server, *arguments)

            setattr(server, hook, override)

    walk_of(sockserve.TCPServer(LOOPBACK, Overrides))
    assert len(calls) == (2 if hook in ("shutdown_request", "close_request") else 1)
