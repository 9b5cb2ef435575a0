"""A server that runs in a thread for the length of a ``with`` block."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Generator
from typing import Any, Generic, Protocol, TypeVar

from sockserve.seconds import limit_of
from sockserve.testing.leaks import leak_guard, stack_of

__all__ = ["Servable", "call_within", "running"]

LOOK_AGAIN = 0.05
"""Seconds between two looks whether a server that has not begun to serve has failed instead."""

Result = TypeVar("Result")
ServerT = TypeVar("ServerT", bound="Servable")


class Servable(Protocol):
    """What ``running()`` needs of a server: any subclass of sockserve's or the standard library's ``BaseServer``."""

    def fileno(self) -> int:
        """The listening socket's descriptor."""
        ...

    def serve_forever(self, poll_interval: float = ...) -> None:
        """Serve until ``shutdown()``."""

    def shutdown(self) -> None:
        """Stop serving."""

    def server_close(self) -> None:
        """Close the listening socket."""


@contextlib.contextmanager
def running(
    server: ServerT, *, timeout: float = 10.0, poll_interval: float | None = None, check_leaks: bool = True
) -> Generator[ServerT]:
    """Guarantee that the server serves when the body begins, and that it is gone when the block has ended.

    It serves in a daemon thread, with the given ``poll_interval`` in seconds, if any. At the end it is shut down and
    closed. Nothing that was opened or started meanwhile may be left, by your code or by the server (LeakError names
    it), unless ``check_leaks`` is false. What ``serve_forever()`` raised is raised here; an exception of the body takes
    precedence, with the rest as its note. No step takes longer than ``timeout`` seconds: TimeoutError shows where it
    hangs.
    """
    with leak_guard(timeout=timeout, closes=[server.fileno()]) if check_leaks else contextlib.nullcontext():
        arguments = () if poll_interval is None else (poll_interval,)
        loop = _Call(server.serve_forever, arguments)
        try:
            _start(server, loop, timeout)
            yield server
        except BaseException as error:
            try:
                _stop(server, loop, timeout)
            except BaseException as another:
                if another is not error:
                    error.add_note("Stopping the server failed too: " + "".join(traceback.format_exception(another)))
            raise
        _stop(server, loop, timeout)


def call_within(timeout: float, function: Callable[..., Result], *args: Any) -> Result:
    """Return what ``function(*args)`` returns or raise what it raises, within ``timeout`` seconds.

    It runs in a daemon thread. TimeoutError: the time is up; the thread goes on, and a note shows where it hangs.
    From any thread.
    """
    call = _Call(function, args)
    call.start()
    return call.outcome(timeout)


class _Call(threading.Thread, Generic[Result]):
    """A call in a daemon thread, and its outcome. The thread that started it asks for the outcome."""

    def __init__(self, function: Callable[..., Result], args: tuple[Any, ...]) -> None:
        super().__init__(name=getattr(function, "__qualname__", repr(function)), daemon=True)
        self._function = function
        self._args = args
        self._result: Result
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result = self._function(*self._args)
        except BaseException as error:
            self._error = error

    def outcome(self, timeout: float) -> Result:
        """Return or raise what the function did. TimeoutError: it has not ended within ``timeout`` seconds."""
        self.join(limit_of(timeout, "timeout"))
        if self.is_alive():
            raise self.hang("ended", timeout)
        if self._error is not None:
            raise self._error
        return self._result

    def hang(self, what: str, timeout: float) -> TimeoutError:
        """Return the TimeoutError that says what the call has not done, with its stack as a note."""
        error = TimeoutError(f"{self.name}() has not {what} within {timeout} seconds")
        error.add_note("".join(["It is here:\n", *stack_of(self)]))
        return error


def _start(server: Servable, loop: _Call[None], timeout: float) -> None:
    is_serving = _start_signal(server)
    loop.start()
    deadline = time.monotonic() + timeout
    while not is_serving(LOOK_AGAIN):
        if not loop.is_alive():
            loop.outcome(0)
            return
        if time.monotonic() > deadline:
            raise loop.hang("begun to wait for requests", timeout)


def _start_signal(server: Servable) -> Callable[[float], bool]:
    wait: Callable[[float], bool] | None = getattr(server, "wait_until_serving", None)
    if wait is not None:
        return wait
    # socketserver's shutdown() may come only while serve_forever() runs, or it may wait for ever. The loop's first call
    # of fileno() says that it runs.
    begun = threading.Event()
    attributes = vars(server)
    own = {key: attributes[key] for key in ("fileno",) if key in attributes}
    fileno = server.fileno

    def first_fileno() -> int:
        del attributes["fileno"]
        attributes.update(own)
        fd = fileno()
        if fd >= 0:
            begun.set()
        return fd

    attributes["fileno"] = first_fileno
    return begun.wait


def _stop(server: Servable, loop: _Call[None], timeout: float) -> None:
    with contextlib.ExitStack() as last_first:
        last_first.callback(loop.outcome, timeout)
        last_first.callback(call_within, timeout, server.server_close)
        if loop.is_alive():
            last_first.callback(call_within, timeout, server.shutdown)
