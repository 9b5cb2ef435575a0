"""Errors of a request are reported once, by ``handle_error()``, whose own errors propagate."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support.under_test import LIMIT

import sockserve
from sockserve.testing import connect

LOOPBACK = ("127.0.0.1", 0)


@pytest.mark.parametrize("hook", ["finish_request", "shutdown_request"])
@pytest.mark.parametrize("case", ["inline", "threads of its own", "submitted"])
def test_an_error_of_handle_error_propagates_and_is_not_reported_again(hook: str, case: str) -> None:
    """No hook is called a second time for it."""
    calls: list[str] = []

    class Server(sockserve.TCPServer if case == "inline" else sockserve.ThreadingTCPServer):  # type: ignore[misc]
        def process_request(self, request: Any, client_address: Any) -> None:
            if case == "submitted":
                self.process_request_thread(request, client_address)
            else:
                super().process_request(request, client_address)

        def make_thread(self, target: Any) -> threading.Thread:
            thread = super().make_thread(target)
            thread.start = target  # type: ignore[method-assign]
            return thread

        def handle_error(self, request: Any, client_address: Any) -> None:
            calls.append("handle_error")
            raise ZeroDivisionError

        def close_request(self, request: Any) -> None:
            calls.append("close_request")
            super().close_request(request)

    def fail(self: Any, *request: Any) -> None:
        calls.append(hook)
        if hook == "shutdown_request":
            self.close_request(*request)
        raise ValueError("Boom")

    setattr(Server, hook, fail)
    with Server(LOOPBACK, sockserve.BaseRequestHandler) as server, connect(server, timeout=LIMIT) as client:
        client.sendall(b"hello\n")
        with pytest.raises(ZeroDivisionError):
            server.handle_request()
        assert server.wait_idle(0)
    if hook == "finish_request":
        assert calls == ["finish_request", "handle_error", "close_request"]
    else:
        assert calls == ["shutdown_request", "close_request", "handle_error"]
