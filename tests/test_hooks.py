"""A subclass that overrides hooks sees them called as the standard library calls them: in its order, in its threads."""

from __future__ import annotations

import collections
import os
import socketserver
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.handlers import Boom
from support.under_test import LIMIT

import sockserve
from sockserve.testing import connect, running

LOOPBACK = ("127.0.0.1", 0)
MIX_INS = ["", "ThreadingMixIn", "ForkingMixIn"]

HOOKS = (
    *("server_bind", "server_activate", "server_close", "handle_timeout", "get_request", "verify_request"),
    *("process_request", "process_request_thread", "finish_request", "handle_error", "shutdown_request"),
    "close_request",
)

Calls = dict[str, list[str]]
"""In which order each thread of control called hooks: "caller", "loop", "worker" or "child"."""


class Diary:
    """Keeps which hooks were called where; children write into the same one."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self._process = os.getpid()
        self._caller = threading.current_thread()
        self._loop: threading.Thread | None = None
        self.was_accepted = threading.Event()

    def note(self, hook: str) -> None:
        """A hook is called here."""
        if hook == "get_request":
            self._loop = threading.current_thread()
            self.was_accepted.set()
        if os.getpid() != self._process:
            where = "child"
        elif threading.current_thread() == self._loop:
            where = "loop"
        else:
            # running() closes the server in a thread of its own, while a worker may still be at work.
            by_caller = hook == "server_close" or threading.current_thread() == self._caller
            where = "caller" if by_caller else "worker"
        os.write(self._writer, f"{where} {hook}\n".encode())

    def close(self) -> Calls:
        """Tell everything."""
        os.close(self._writer)
        calls: Calls = collections.defaultdict(list)
        with open(self._reader) as lines:
            for where, hook in map(str.split, lines):
                calls[where].append(hook)
        return calls


def noting_class(module: Any, mix_in: str, kind: str, diary: Diary) -> Any:
    """A server that overrides each hook that the standard library's class has, to note it and do what it overrides."""

    def plain_class(module: Any) -> Any:
        bases = (getattr(module, mix_in),) if mix_in else ()
        return type("Plain", (*bases, getattr(module, kind)), {})

    plain = plain_class(module)

    def overriding(hook: str) -> Callable[..., Any]:
        def override(self: Any, *args: Any) -> Any:
            # A report would go to stderr with the one module and to the log with the other.
            return None if hook == "handle_error" else getattr(plain, hook)(self, *args)

        def note_first(self: Any, *args: Any) -> Any:
            diary.note(hook)
            return override(self, *args)

        def note_last(self: Any, *args: Any) -> Any:
            result = override(self, *args)
            diary.note(hook)
            return result

        return note_last if hook == "get_request" else note_first

    hooks = [hook for hook in HOOKS if hasattr(plain_class(socketserver), hook)]
    return type("Noting", (plain,), {hook: overriding(hook) for hook in hooks})


def handler_class(module: Any, error: type[Exception] | None) -> Any:
    """A handler that takes what comes, and raises or not."""

    class Handler(module.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            if not isinstance(self.request, tuple):
                assert self.request.recv(10)
            if error is not None:
                raise error

    return Handler


def by_serve_forever(server: Any, diary: Diary) -> None:
    """Serve one client in a loop."""
    with running(server, poll_interval=0.01, check_leaks=False), connect(server) as client:
        client.sendall(b"one")
        assert diary.was_accepted.wait(LIMIT)


def by_handle_request(server: Any, _: Diary) -> None:
    """Serve one client without a loop, then none."""
    with connect(server) as client:
        client.sendall(b"one")
        server.handle_request()
        server.timeout = 0
        server.handle_request()
    server.server_close()


@pytest.mark.parametrize("drive", [by_serve_forever, by_handle_request])
@pytest.mark.parametrize("outcome", ["handled", "failed", "refused"])
@pytest.mark.parametrize("kind", ["TCPServer", "UDPServer"])
@pytest.mark.parametrize("mix_in", MIX_INS)
def test_hooks_are_called_as_ever(mix_in: str, kind: str, outcome: str, drive: Callable[[Any, Diary], None]) -> None:
    """The same hooks in the same order in the same threads, from the constructor to the end of server_close()."""

    def calls_of(module: Any) -> Calls:
        diary = Diary()
        server_class = noting_class(module, mix_in, kind, diary)
        if outcome == "refused":
            noting = server_class.verify_request
            server_class.verify_request = lambda *args: noting(*args) and False
        drive(server_class(LOOPBACK, handler_class(module, Boom if outcome == "failed" else None)), diary)
        return diary.close()

    expected = calls_of(socketserver)
    assert any("close_request" in hooks for hooks in expected.values())
    assert calls_of(sockserve) == expected
