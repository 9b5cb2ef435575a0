"""A new thread for every request."""

from __future__ import annotations

import collections
import contextvars
import functools
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from sockserve.concurrency.dispatch import Dispatcher, DispatchingMixIn
from sockserve.core.active_requests import LiveRequest
from sockserve.core.request_life import close

__all__ = ["NoThreads", "ThreadDispatcher", "ThreadingMixIn", "WorkerThreads", "interpreter_ends"]


_numbers = itertools.count(1)


class WorkerThreads:
    """The threads that ``server_close()`` waits for. To add or forget one takes the same time however many there are.

    ``append()`` and ``reap()`` are called in the thread that takes requests, ``finished()`` in each thread at its end,
    ``join()`` in any thread.
    """

    # ruff: noqa: D102 - a dispatcher's methods are explained in dispatch.Dispatcher

    def __init__(self) -> None:
        self._threads: dict[int, threading.Thread] = {}
        self._finished: collections.deque[threading.Thread] = collections.deque()

    def append(self, thread: threading.Thread) -> None:
        """Let ``join()`` wait for this thread too, unless it is a daemon."""
        if self._finished:
            self.reap()
        if not thread.daemon:
            self._threads[id(thread)] = thread

    def remove(self, thread: threading.Thread) -> None:
        """Forget it. No effect on one that is not waited for."""
        self._threads.pop(id(thread), None)

    def finished(self, thread: threading.Thread) -> None:
        """Let ``reap()`` forget the thread, which calls this and is about to end."""
        if id(thread) in self._threads:
            self._finished.append(thread)

    def reap(self) -> None:
        """Forget those that have ended."""
        while self._finished:
            try:
                thread = self._finished.popleft()
            except IndexError:
                return
            if thread.is_alive():
                # A few instructions from its end: join() must still wait for it.
                self._finished.appendleft(thread)
                return
            self._threads.pop(id(thread), None)

    def join(self, timeout: float | None = None) -> bool:
        """Wait at most ``timeout`` seconds (None: no limit) for all but the calling thread; say whether all ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in self:
            if thread is threading.current_thread() or thread.ident is None:
                continue
            # The longest that a lock can wait for is 292 years; Thread.join() raises OverflowError for more.
            thread.join(None if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX))
            if thread.is_alive():
                return False
            self.remove(thread)
        return True

    def __iter__(self) -> Iterator[threading.Thread]:
        return iter(list(self._threads.copy().values()))

    def __len__(self) -> int:
        self.reap()
        return len(self._threads)


class NoThreads:
    """Keeps no thread: a program may put one in the place of a server's ``_threads``, as with the standard library."""

    def append(self, thread: threading.Thread) -> None:
        """Keep nothing."""

    def join(self) -> None:
        """Return at once."""


class _Work:
    """What one thread does. One object instead of closures and partials: fewer for the garbage collector to walk."""

    __slots__ = ("_argument", "_function", "_threads")

    def __init__(self, function: Callable[[Any], object], argument: object, threads: WorkerThreads) -> None:
        self._function = function
        self._argument = argument
        self._threads = threads

    def run(self) -> None:
        try:
            self._function(self._argument)
        finally:
            self._threads.finished(threading.current_thread())


class ThreadDispatcher(Dispatcher):
    """Runs each request in a thread of its own."""

    def __init__(
        self, make_thread: Callable[[Callable[[], object]], threading.Thread], block: Callable[[], bool]
    ) -> None:
        self._make_thread = make_thread
        self._block = block
        self.threads = WorkerThreads()
        self.holder: Any = None
        """Set by a program in the place of ``_threads``; it gets each thread as well. None: there is none."""

    def dispatch(self, serve: Callable[[], str], release: Callable[[], None]) -> threading.Thread:
        return self.run(lambda _: serve(), None)

    def run(self, function: Callable[[Any], object], argument: object) -> threading.Thread:
        """Call a function with its argument in a new thread."""
        threads = self.threads
        target = _Work(function, argument, threads).run
        context = contextvars.copy_context()
        if context:
            # Handlers see the context variables that serve_forever() was called with. The outermost
            # call: further in, a call through C would take more of the thread's stack, which is most of what it costs.
            target = functools.partial(context.run, target)
        thread = self._make_thread(target)
        if self._block():
            # Before it starts: it may end at once, and finished() has to find it.
            threads.append(thread)
            if self.holder is not None:
                self.holder.append(thread)
        try:
            thread.start()
        except RuntimeError:
            # The thread did not start. Any other exception is a signal handler's, and the thread may run already.
            threads.remove(thread)
            raise
        return thread

    def reap(self) -> None:
        self.threads.reap()

    def close(self, timeout: float | None) -> bool:
        has_ended = self.threads.join(timeout)
        if has_ended and self.holder is not None:
            self.holder.join()
        return has_ended


class ThreadingMixIn(DispatchingMixIn):
    """Serves each request in a new thread. Write it before the server class: ``class S(ThreadingMixIn, TCPServer)``.

    If a thread cannot start, that is an error of its request; the server goes on.
    """

    __module__ = "sockserve"

    daemon_threads = False
    """Whether the threads are daemons: neither ``server_close()`` nor the end of the interpreter waits for them."""

    block_on_close = True
    """Whether ``server_close()`` waits for the threads."""

    def make_thread(self, target: Callable[[], object]) -> threading.Thread:
        """Make a thread that will call ``target``, and do not start it. Override it to choose its name or class."""
        name = f"{type(self).__name__}-{next(_numbers)}"
        return threading.Thread(target=target, name=name, daemon=self.daemon_threads)

    @property
    def _threads(self) -> Any:
        dispatcher = self._serving_dispatcher
        return dispatcher.threads if dispatcher.holder is None else dispatcher.holder

    @_threads.setter
    def _threads(self, holder: Any) -> None:
        self._serving_dispatcher.holder = holder

    def make_dispatcher(self) -> Dispatcher:
        """One that starts threads."""
        # A function, called for each request: programs change the attribute after construction.
        return ThreadDispatcher(self.make_thread, lambda: self.block_on_close)

    def _serving_dispatch(self, live: LiveRequest) -> None:
        try:
            dispatcher = self._serving_dispatcher
            if isinstance(dispatcher, ThreadDispatcher):
                dispatcher.run(self._serving_work, live)
            else:
                super()._serving_dispatch(live)
        except RuntimeError as error:
            if not interpreter_ends(error):
                raise
            # The interpreter ends: it starts no new thread, and waits for the old ones.
            live.outcome = "refused"
            self._BaseServer__shutdown_request = True
            close(self, live)


def interpreter_ends(error: RuntimeError) -> bool:
    """Return whether a thread could not start because the interpreter ends."""
    # CPython 3.12 says so in the text of a plain RuntimeError, 3.13 by PythonFinalizationError with the same text.
    return sys.is_finalizing() or "interpreter shutdown" in str(error)
