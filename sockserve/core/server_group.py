"""Several servers in one loop, started and stopped as one.

Theory of operation. A group has a ``Lifecycle`` of its own, so ``shutdown()`` of a group means what it means for a
server: before the first stay, during one, after the last, from a handler. Its stay is a source of the loop beside the
servers' own, and the last of them: it passes a stop on, and leaves once no server of the group is there.

Rule 1. All serve, or none: what ends one by an error ends them all.
Rule 2. A time is one time for all servers, not one for each.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any, Self

from sockserve.core.active_requests import ActiveRequest
from sockserve.core.base_server import BaseServer
from sockserve.core.deferral import Deferral
from sockserve.core.draining import drain_together, wait_until_all_idle
from sockserve.core.lifecycle import Drained, Lifecycle, Stay
from sockserve.core.loop import Loop, Source
from sockserve.core.one_shot import OneShot
from sockserve.core.serving import serving_of
from sockserve.errors import AlreadyServingError
from sockserve.seconds import limit_of

__all__ = ["ServerGroup"]


class _GroupStay(Source, Stay):
    """A group's stay in a loop."""

    def __init__(self, servers: tuple[BaseServer, ...], loop: Loop) -> None:
        self.loop = loop
        self.max_wait = None
        self.stop_requested = False
        self.ended = OneShot()
        self._servers = servers

    def has_paused(self) -> bool:
        """It takes no request itself."""
        return True

    def before_wait(self) -> None:
        """Pass a stop on; leave after the last server."""
        stays = [
            stay
            for server in self._servers
            if (stay := serving_of(server).lifecycle.acceptor) is not None and stay.loop is self.loop
        ]
        if not stays:
            self.leave()
        elif self.stop_requested and not all(stay.stop_requested for stay in stays):
            for stay in stays:
                stay.stop_requested = True
            # They look at it before the next wait.
            self.loop.wake()

    def leave(self) -> None:
        """Leave the loop. Idempotent."""
        self.loop.remove(self)


class ServerGroup:
    """Serves with several servers in one thread's loop; each runs its handlers in its own way.

    The verbs are those of a server, for all of them: ``serve_forever()``, ``shutdown()``, ``suspend()``, ``resume()``,
    ``wait_idle()``, ``drain()``, ``server_close()``, ``active_requests``. Each server keeps its own verbs: one that is
    shut down leaves, and the others go on. As a context manager it closes the servers at the end.

    Raises TypeError for what no loop can host (a server with worker processes, a standard library's), and without a
    server; ValueError for one that is given twice.
    """

    __module__ = "sockserve"

    def __init__(self, *servers: BaseServer[Any, Any]) -> None:
        if not servers:
            raise TypeError("a group needs a server")
        for server in servers:
            # The first is for programs without a type checker; worker processes have an attach() that only refuses.
            if not isinstance(server, BaseServer):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"{server!r} is no server of sockserve: no loop can host it")
            if not server._serving_can_share_loop:  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
                raise TypeError(f"{type(server).__name__} runs loops of its own, in worker processes")
        if len({id(server) for server in servers}) < len(servers):
            raise ValueError("a server is in the group twice")
        self.servers: tuple[BaseServer[Any, Any], ...] = servers
        """The servers, in the order in which they were given."""
        self._lifecycle = Lifecycle()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(map(repr, self.servers))}>"

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve with all of them until ``shutdown()``, or until each was shut down by itself.

        ``poll_interval`` as for a server. If one cannot begin, or its socket fails later, all of them stop, and what it
        raised is raised: ServerClosedError, AlreadyServingError, ListenerLostError, and the rest that a server's
        ``serve_forever()`` raises. Their sockets stay open until ``server_close()``, so that the group can serve again.
        """
        failed = True
        with Deferral() as signals, Loop() as loop:
            loop.thread = threading.get_ident()
            stay = _GroupStay(self.servers, loop)
            if not self._lifecycle.begin(stay):
                raise AlreadyServingError(f"{self} is already being served by another serve_forever()")
            try:
                for server in self.servers:
                    server.attach(loop, poll_interval)
                loop.add(stay)
                self._lifecycle.serving.set()
                signals.lifted(loop.run)
                failed = False
            finally:
                try:
                    loop.close()
                finally:
                    self._lifecycle.end()
                    stay.ended.set()
                    self._end_in_this_thread(signals, failed=failed)

    def _end_in_this_thread(self, signals: Deferral, *, failed: bool) -> None:
        """Let what runs in the loop's thread, greenlets for one, come to its end."""
        with contextlib.ExitStack() as all_of_them:
            for server in self.servers:
                ended = server._serving_loop_ended  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
                all_of_them.callback(signals.lifted, lambda ended=ended: ended(failed=failed))

    def wait_until_serving(self, timeout: float | None = None) -> bool:
        """Wait until the group serves, at most ``timeout`` seconds; say whether it does."""
        return self._lifecycle.serving.wait(timeout)

    def shutdown(self, timeout: float | None = None) -> None:
        """Stop ``serve_forever()``; no server accepts any more when this returns. From any thread.

        From the loop's own thread (an inline or greenlet handler, a signal handler): asks and returns. Before the first
        ``serve_forever()``: that one will return at once. On a group that ran and stopped: no effect. Requests in
        progress go on. Raises TimeoutError if the loop has not ended after ``timeout`` seconds.
        """
        self._lifecycle.stop(timeout)

    def suspend(self) -> None:
        """Accept no more on any of them until ``resume()``. Idempotent. From any thread."""
        for server in self.servers:
            server.suspend()

    def resume(self) -> None:
        """Accept again on all of them. Idempotent. From any thread."""
        for server in self.servers:
            server.resume()

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Wait until no server has a request in progress (but the caller's own), at most ``timeout`` seconds.

        Says whether that is so. After ``suspend()`` this includes what was just being accepted. From any thread.
        """
        return wait_until_all_idle(self.servers, timeout)

    def drain(self, timeout: float | None = None) -> Drained:
        """Accept no more on any of them, let all requests end, cut those that have not after ``timeout`` seconds.

        The time is one for all, and so is the second that cut handlers have to notice. Otherwise as a server's
        ``drain()``. Returns the sums. From any thread.
        """
        return drain_together(self.servers, timeout)

    @property
    def active_requests(self) -> tuple[ActiveRequest, ...]:
        """The requests in progress of all of them, oldest first."""
        found = [each for server in self.servers for each in server.active_requests]
        return tuple(sorted(found, key=lambda each: each.since))

    def server_close(self) -> None:
        """Close all of them. Their workers are waited for; of the ``drain_timeout`` of each what others took is gone.

        No listener waits for another server's workers: all are closed first. If one raises, the others are closed all
        the same, and the first error is raised. Idempotent. From any thread.
        """
        began = time.monotonic()
        with contextlib.ExitStack() as last_first:
            for server in reversed(self.servers):
                last_first.callback(_close_within, server, began)
            for server in self.servers:
                last_first.callback(server._serving_leave_address)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.server_close()


def _close_within(server: BaseServer, began: float) -> None:
    limit = limit_of(server.drain_timeout, "drain_timeout")
    if limit is None:
        server.server_close()
        return
    attributes = vars(server)
    before = {"drain_timeout": attributes["drain_timeout"]} if "drain_timeout" in attributes else {}
    attributes["drain_timeout"] = max(0.0, limit - (time.monotonic() - began))
    try:
        server.server_close()
    finally:
        attributes.pop("drain_timeout", None)
        attributes.update(before)
