"""Tiny handlers that many tests share, made for whichever module the servers come from."""

from __future__ import annotations

import os
import select
import sys
import sysconfig
import types
import weakref
from typing import Any, ClassVar

from support.under_test import LIMIT

__all__ = ["Boom", "Signal", "handlers"]


KEEPS_CLASSES = sys.version_info < (3, 14) and bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
"""Whether a class lives for ever once a thread was started: in CPython 3.13 without a GIL (3.14 collects it again)."""


class Boom(Exception):  # noqa: N818 - it has to be found in a log
    """What ``Crash`` raises."""


class Signal:
    """An event that crosses threads and fork(2) alike."""

    kept: ClassVar[list[Signal]] = []
    """Those that have to be closed by hand, because they belong to classes that are never collected."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self._closes = [weakref.finalize(self, os.close, fd) for fd in self.fds()]
        if KEEPS_CLASSES:
            self.kept.append(self)

    def fds(self) -> tuple[int, int]:
        """The descriptors of its pipe."""
        return self._reader, self._writer

    def close(self) -> None:
        """Close them, before it is collected."""
        for close in self._closes:
            close()

    def set(self) -> None:
        """Say that it happened, once more."""
        os.write(self._writer, b"!")

    def wait(self, timeout: float = LIMIT) -> bool:
        """Wait until it has happened; other threads and processes that wait see it, too."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def take(self, timeout: float = LIMIT) -> bool:
        """Wait until it has happened once more since the last call; for one waiting thread only."""
        return self.wait(timeout) and bool(os.read(self._reader, 1))


def handlers(module: Any) -> types.SimpleNamespace:
    """Make the handler classes anew, derived from those of ``module``; ``Gate`` comes with signals of its own."""

    class Echo(module.BaseRequestHandler):
        """Sends back whatever comes, until end-of-file; small reads, to shake the framing."""

        def handle(self) -> None:
            while data := self.request.recv(10):
                self.request.sendall(data)

    class EchoStream(module.StreamRequestHandler):
        """Sends back each line, until end-of-file."""

        def handle(self) -> None:
            for line in self.rfile:
                self.wfile.write(line)

    class EchoDatagram(module.DatagramRequestHandler):
        """Sends back each datagram."""

        def handle(self) -> None:
            self.wfile.write(self.rfile.read())

    class Crash(module.BaseRequestHandler):
        """Raises; of a stream it reads what is there before, so that the close is no reset."""

        def handle(self) -> None:
            if not isinstance(self.request, tuple):
                self.request.recv(65536)
            raise Boom("the handler raised")

    class Silent(module.BaseRequestHandler):
        """Reads until end-of-file and answers nothing."""

        def handle(self) -> None:
            while self.request.recv(65536):
                pass

    class WriteFirst(module.StreamRequestHandler):
        """Greets before it reads, then sends back one line."""

        greeting = b"hello\n"

        def handle(self) -> None:
            self.wfile.write(self.greeting)
            self.wfile.write(self.rfile.readline())

    class Gate(module.BaseRequestHandler):
        """Signals ``begun``, waits for ``opened`` without reading, then answers ``b"open"``."""

        begun = Signal()
        opened = Signal()

        def handle(self) -> None:
            self.begun.set()
            if not self.opened.wait():
                raise TimeoutError("the test did not open the gate")
            if isinstance(self.request, tuple):
                self.request[1].sendto(b"open", self.client_address)
            else:
                self.request.sendall(b"open")

    return types.SimpleNamespace(
        Echo=Echo,
        EchoStream=EchoStream,
        EchoDatagram=EchoDatagram,
        Crash=Crash,
        Silent=Silent,
        WriteFirst=WriteFirst,
        Gate=Gate,
    )
