"""Greenlets without a server: a loop's workers in the thread of a test."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

from support.under_test import LIMIT

from sockserve.concurrency.cooperative.hub import Hub
from sockserve.concurrency.cooperative.mix_in import cooperative


class Greenlets:
    """Runs functions as greenlets of one loop, in the thread of the test, to their ends."""

    def __init__(self) -> None:
        self.hub = Hub()
        self._stack = contextlib.ExitStack()

    def run(self, *functions: Callable[[], object]) -> list[Any]:
        """Run them at the same time; return what they return, or raise what the first of them raised."""
        results: list[Any] = [None] * len(functions)
        errors: list[BaseException] = []

        def call(index: int, function: Callable[[], object]) -> None:
            try:
                results[index] = function()
            except Exception as error:
                errors.append(error)

        def start() -> None:
            for index, function in enumerate(functions):
                self.hub.spawn(lambda index=index, function=function: call(index, function))  # type: ignore[misc]

        self.hub.run(start)
        assert self.hub.wait_until_idle(LIMIT)
        if errors:
            raise errors[0]
        return results

    def pair(self, kind: int = socket.SOCK_STREAM) -> tuple[socket.socket, socket.socket]:
        """Two connected sockets, cooperative both."""
        one, other = map(cooperative, socket.socketpair(socket.AF_UNIX, kind))
        self._stack.enter_context(one)
        self._stack.enter_context(other)
        return one, other

    def close(self) -> None:
        """Close all sockets."""
        self._stack.close()
