"""Short questions and their answers, in a loop that must never wait for whatever asks: health checks, metrics, control.

Rule 1. A client has one second for its question, one for taking the answer, and 8 KiB for the question. A silent one
costs a descriptor and a timer for that time, and nothing else.
Rule 2. There are at most ``MOST_CLIENTS``. One more takes the place of the one that is there longest: any number of
silent clients keeps no other one out.
Rule 3. What cannot be accepted now is tried again later; the loop goes on meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Callable, Sequence
from typing import TypeAlias

from sockserve.core.loop import INPUT, OUTPUT, Loop, Source, Timer
from sockserve.log import log
from sockserve.net.accept_errors import is_shortage

__all__ = ["Answerer", "Ask", "Reply"]

LONGEST_QUESTION = 8192
TIME = 1.0
"""Seconds for the question, and again for taking the answer."""

MOST_CLIENTS = 256
ACCEPT_AGAIN = 0.25
"""Seconds until the next accept() after one that found no descriptor or no memory."""

ACCEPTS = 64
"""Clients that are accepted in one turn of the loop."""

READS = 16
"""How often one client is read from in one turn: it may send without end."""

Reply: TypeAlias = Callable[[bytes], None]
"""Gives the answer, once, in the loop's thread; at once or later."""

Ask: TypeAlias = Callable[[socket.socket, bytes, Reply], bool]
"""Called with the client and all that it has sent so far, first with nothing; true: that was a whole question, which
gets its reply."""


class Answerer(Source):
    """Answers those that connect to some listeners, in one loop. All of it in the loop's thread."""

    max_wait: float | None = None

    def __init__(self, loop: Loop, listeners: Sequence[socket.socket], ask: Ask) -> None:
        self.ask = ask
        self.loop = loop
        self._listeners = listeners
        self.clients: dict[int, _Client] = {}
        """By descriptor, the longest there first."""
        self._again: Timer | None = None
        for listener in listeners:
            listener.setblocking(False)
            loop.watch(listener.fileno(), functools.partial(self._accept, listener))
        loop.add(self)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS):
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if not is_shortage(error):
                    # The client's doing: the next one may be in order.
                    continue
                self._pause()
                return
            if len(self.clients) >= MOST_CLIENTS:
                next(iter(self.clients.values())).close()
            client = _Client(self, connection)
            self.clients[connection.fileno()] = client
            client.begin()

    def _pause(self) -> None:
        log.debug("questions wait: there is no descriptor or no memory to accept with")
        for listener in self._listeners:
            self.loop.unwatch(listener.fileno())
        self._again = self.loop.call_later(ACCEPT_AGAIN, self._go_on)

    def _go_on(self) -> None:
        try:
            for listener in self._listeners:
                self.loop.watch(listener.fileno(), functools.partial(self._accept, listener))
        except OSError:
            # ENOSPC or ENOMEM of epoll_ctl(2).
            self._pause()

    def leave(self) -> None:
        """Close all clients, and let the loop end. The listeners are the caller's."""
        if self._again is not None:
            self._again.cancel()
        for listener in self._listeners:
            self.loop.unwatch(listener.fileno())
        for client in list(self.clients.values()):
            client.close()
        self.loop.remove(self)

    def abandon(self) -> None:
        """In a forked process: close its copies of the descriptors."""
        for sock in (*self._listeners, *(client.connection for client in self.clients.values())):
            sock.close()


class _Client:
    """One that asks."""

    def __init__(self, answerer: Answerer, connection: socket.socket) -> None:
        self.connection = connection
        connection.setblocking(False)
        self._answerer = answerer
        self._loop = answerer.loop
        self._question = bytearray()
        self._is_asked = self._has_ended = False
        self._answer: memoryview | None = None
        self._timer = self._loop.call_later(TIME, self.close)

    def begin(self) -> None:
        self._ask()
        self._arm()

    def _arm(self) -> None:
        try:
            self._loop.arm(self.connection.fileno(), self._on_event, OUTPUT if self._answer else INPUT)
        except (OSError, ValueError):
            # No room to watch it, or it is closed.
            self.close()

    def _on_event(self, _events: int) -> None:
        for _ in range(READS):
            if self._answer or self._has_ended:
                break
            try:
                data = self.connection.recv(4096)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self._has_ended = True
                # One that has asked may have ended its side alone, and waits for the answer.
                if not self._is_asked or self._answer is not None:
                    self.close()
                return
            if not self._is_asked:
                self._question += data
                if len(self._question) > LONGEST_QUESTION:
                    self.close()
                    return
                self._ask()
        if self._answer:
            self._send(self._answer)
        if not self._loop.stays_armed and self.connection.fileno() >= 0:
            self._arm()

    def _ask(self) -> None:
        self._is_asked = self._answerer.ask(self.connection, bytes(self._question), self._reply)
        if self._is_asked and self._answer is None:
            # Its time is that of the answer's maker, until there is one.
            self._timer.cancel()

    def _reply(self, answer: bytes) -> None:
        if self.connection.fileno() < 0 or self._answer is not None:
            return
        self._timer.cancel()
        self._timer = self._loop.call_later(TIME, self.close)
        self._send(memoryview(answer))

    def _send(self, answer: memoryview) -> None:
        try:
            sent = self.connection.send(answer)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        self._answer = answer[sent:]
        if self._answer:
            self._arm()
            return
        # Not closed yet: a close() with input unread would reset the connection, and the answer be lost with it.
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
        if self._has_ended:
            self.close()

    def close(self) -> None:
        """Forget it."""
        self._timer.cancel()
        fd = self.connection.fileno()
        if self._answerer.clients.pop(fd, None) is not None:
            self._loop.unwatch(fd)
            self.connection.close()
