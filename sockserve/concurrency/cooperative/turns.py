"""Workers that are greenlets, and take turns in the thread of one loop.

Rule 1. A worker gives its turn away in ``pause()`` only, to the loop's own greenlet, which gives it back.
Rule 2. A turn may come for nothing: after a pause a worker looks again at what it waits for.
Rule 3. A loop may end before the workers do; another one in the same thread takes them over where they are.
Rule 4. A worker that is done rests, and serves again; nothing of what it did is left for what it does next.
Rule 5. What ends a worker's function ends that one only, unless it is a signal handler's exception, which goes to the
loop's greenlet.
"""

from __future__ import annotations

import collections
import contextvars
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from sockserve.concurrency.cooperative.blocking_calls import BlockingCalls
from sockserve.concurrency.cooperative.own_thread import OwnThread
from sockserve.concurrency.cooperative.signal_origin import came_from_signal_handler
from sockserve.core.loop import Loop, Timer
from sockserve.core.one_shot import OneShot
from sockserve.log import log
from sockserve.seconds import LONGEST_WAIT

try:
    import greenlet
    from greenlet import getcurrent
except ImportError as error:
    raise ImportError(
        "handlers in greenlets need the library greenlet: pip install 'sockserve[greenlet]'", name="greenlet"
    ) from error

__all__ = ["RequestGreenlet", "Turns", "current_worker", "getcurrent", "sleep", "wait_in"]

Result = TypeVar("Result")

MOST_RESTING = 64
"""Workers at most that wait for their next function: to make one, with its stack, takes as long as a short request."""


_left_behind: list[RequestGreenlet] = []
"""In a forked child, the workers of its parent: one that is collected unwinds, and ends the parent's connection."""


class Awaited(Protocol):
    """What a worker waits for, if the loop has to know of it."""

    def follow(self, loop: Loop | None) -> None:
        """Another loop has taken over; None: none will tell any more. What fails is for those that wait to hear."""

    def stop_direct(self) -> None:
        """The loop gives the worker turns by itself, and shall no longer."""


class RequestGreenlet(greenlet.greenlet):
    """A greenlet that runs a function, and pauses in it; later perhaps another one."""

    __slots__ = ("_timer", "argument", "awaits", "deadline", "function", "hub", "listens_to")

    def __init__(self, hub: Turns, function: Callable[..., object], argument: object = None) -> None:
        super().__init__(_work, hub.loop_greenlet)
        self.hub = hub
        self.give(function, argument)
        self.awaits: Awaited | None = None
        """What it waits for, or has waited for."""
        self.listens_to: Awaited | None = None
        """What the loop tells it of by itself: each turn may be about that, until something steps between."""
        self.deadline: float | None = None
        """When its present pause ends at the latest, on the clock of ``time.monotonic()``."""
        self._timer: Timer | None = None

    def give(self, function: Callable[..., object], argument: object) -> None:
        """Say what it runs when it has its next turn."""
        # Apart, which for each connection takes less memory than a closure.
        self.function: Callable[..., object] | None = function
        self.argument = argument
        # A worker sees the context variables of what started it, and changes its own only. If there are none it
        # gets a context of its own with the first that it sets.
        context = contextvars.copy_context()
        if context:
            self.gr_context = context

    def take_function(self) -> Callable[..., object]:
        """What it runs, which is kept no longer than until it is called."""
        function, self.function = self.function, None
        return cast("Callable[..., object]", function)

    def leave_nothing(self) -> None:
        """Let nothing tell it any more of what it was at."""
        if self.listens_to is not None:
            self.listens_to.stop_direct()
        self.clear_timer()
        # A request's record knows its worker: in a circle both would stay until the garbage collector comes by.
        self.awaits = self.argument = None

    def is_current(self) -> bool:
        """Whether it is what calls this."""
        return getcurrent() is self

    def pause(self, deadline: float | None = None) -> None:
        """Let others run until one of them, or the loop, gives the turn back; or until ``deadline``."""
        if self.listens_to is not None:
            self.listens_to.stop_direct()
        if deadline is None:
            self.hub.switch()
        else:
            self.listen(deadline)

    def listen(self, deadline: float) -> object:
        """As ``pause()``; return what the loop tells of what the worker listens to, or an empty tuple."""
        self.deadline = deadline
        if self._timer is None or deadline < self._timer.when:
            self.set_timer()
        try:
            return self.hub.switch()
        finally:
            self.deadline = None

    def set_timer(self) -> None:
        """End the present pause in time. One timer serves many pauses: it finds out later that they went on."""
        self.clear_timer()
        loop = self.hub.loop
        if self.deadline is not None and loop is not None:
            self._timer = loop.call_later(self.deadline - time.monotonic(), self._on_timer)

    def clear_timer(self) -> None:
        """Leave nothing behind in the loop."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _on_timer(self) -> None:
        self._timer = None
        if self.deadline is None:
            return
        if self.deadline <= time.monotonic():
            self.switch()
        else:
            self.set_timer()


def _work() -> None:
    # A function, as each method that is under way is an object of its own for each connection.
    me = cast("RequestGreenlet", getcurrent())
    try:
        while True:
            try:
                # Not by "*": that makes the stack longer which a switch copies.
                if me.argument is None:
                    me.take_function()()
                else:
                    me.take_function()(me.argument)
            except greenlet.GreenletExit:
                raise
            except BaseException as error:
                if came_from_signal_handler(error) or (me.hub.is_forked and isinstance(error, SystemExit)):
                    # The latter is the end of a process that a handler forked.
                    raise
                _tell_end(error)
            if not me.hub.rests(me):
                return
    finally:
        me.hub.ended(me)


def _tell_end(error: BaseException) -> None:
    # As threading.excepthook does at the end of a thread.
    if isinstance(error, SystemExit):
        log.debug("a handler, or what it spawned, has ended its greenlet: %r", error)
    else:
        log.error("Exception ended the greenlet of a handler, or of what it spawned", exc_info=error)


def _no_loop() -> None:
    raise RuntimeError("there is no loop that a worker could give its turn to")


class Turns:
    """The workers of one thread, and the loop that gives them their turns."""

    def __init__(self) -> None:
        self.loop: Loop | None = None
        self.thread: OwnThread | None = None
        """The thread that the workers belong to; None: there was none yet."""
        self.loop_greenlet: greenlet.greenlet | None = None
        """What runs the loop; a worker that ends gives its turn back there."""
        self.switch: Callable[[], object] = _no_loop
        """Gives a worker's turn back to the loop."""
        self.is_stranded = False
        """Whether the loop has ended by an exception, so that the workers rest until their own thread comes back."""
        self.workers: set[RequestGreenlet] = set()
        """Those that have something to do."""
        self.lets_rest = False
        """Whether one that is done shall stay for more, until ``dismiss()``."""
        self._resting: list[RequestGreenlet] = []
        self._ready: collections.deque[RequestGreenlet] = collections.deque()
        self._resumed_in = -1
        """The turn of the loop in which those that were ready were last resumed."""
        self._blocking_calls = BlockingCalls()
        self.is_forked = False
        """Whether its workers are of a process that this one was forked from, but perhaps for the one that forked."""

    # turns

    def begin(self, function: Callable[..., object], argument: object = None) -> RequestGreenlet:
        """Run a function, with its argument if it has one, in a new worker until it pauses or ends.

        A signal handler's exception is raised here.
        """
        self.settle()
        worker = self._worker_for(function, argument)
        try:
            self.workers.add(worker)
            worker.switch()
        except BaseException:
            if worker.dead or worker.function is not None:
                # A signal handler's, before the worker had begun.
                self.ended(worker)
            raise
        return worker

    def spawn(self, function: Callable[[], object]) -> RequestGreenlet:
        """Run it in a new worker soon. Called in a worker."""
        worker = self._worker_for(function)
        try:
            self.workers.add(worker)
            self.resume(worker)
        except BaseException:
            if worker not in self._ready:
                self.ended(worker)
            raise
        return worker

    def _worker_for(self, function: Callable[..., object], argument: object = None) -> RequestGreenlet:
        if self._resting:
            worker = self._resting.pop()
            worker.give(function, argument)
        else:
            worker = RequestGreenlet(self, function, argument)
        return worker

    def resume(self, worker: RequestGreenlet) -> None:
        """Give a worker its turn soon; from any thread."""
        # In this order: see move_to().
        self._ready.append(worker)
        loop = self.loop
        if loop is not None:
            loop.call_soon(self._resume_ready)

    def _resume_ready(self) -> None:
        loop = self.loop
        if loop is not None:
            if self._resumed_in == loop.turns:
                # Each that asked to be resumed since then has asked for another call, too: that is the next turn's.
                return
            self._resumed_in = loop.turns
        try:
            for _ in range(len(self._ready)):
                worker = self._ready.popleft()
                if not worker.dead:
                    worker.switch()
        except BaseException:
            # A signal handler's. The same loop may be run again.
            if self._ready and loop is not None:
                loop.call_soon(self._resume_ready)
            raise

    def give_way(self, worker: RequestGreenlet) -> None:
        """Let all others that can go on do so first. Called by the worker."""
        self.resume(worker)
        worker.pause()

    def rests(self, worker: RequestGreenlet) -> bool:
        """Let a worker that calls this rest until it is given something to do; false: it shall end."""
        if not self.lets_rest or len(self._resting) >= MOST_RESTING:
            return False
        self.ended(worker)
        worker.gr_context = None
        try:
            self._resting.append(worker)
            while worker.function is None:
                self.switch()
        except BaseException:
            # A signal handler's: what ends must be given nothing.
            if worker in self._resting:
                self._resting.remove(worker)
            raise
        return True

    def dismiss(self) -> None:
        """Let none rest any more; those that do end, if this is their thread."""
        self.lets_rest = False
        while self._resting and self.is_here():
            worker = self._resting.pop()
            # A worker that ends gives its turn back there.
            worker.parent = getcurrent()
            worker.throw()

    def ended(self, worker: RequestGreenlet) -> None:
        """A worker is about to end, or to rest."""
        self.workers.discard(worker)
        worker.leave_nothing()

    # loops

    def is_here(self) -> bool:
        """Whether the workers are of the caller's thread."""
        return self.thread is not None and self.thread.is_here()

    def is_elsewhere(self) -> bool:
        """Whether they are of another thread, which may have ended."""
        return self.thread is not None and not self.thread.is_here()

    def settle(self) -> None:
        """Give the turns away in the greenlet that calls this: it runs the loop, or is about to."""
        me = getcurrent()
        if me is not self.loop_greenlet:
            self.thread = OwnThread()
            self.loop_greenlet = me
            self.switch = me.switch
            for worker in (*self.workers, *self._resting):
                worker.parent = me

    def move_to(self, loop: Loop) -> None:
        """Be served by a loop that runs in this thread."""
        if loop is self.loop:
            return
        self._resumed_in = -1
        self.loop = loop
        self.is_stranded = False
        for worker in self.workers:
            worker.set_timer()
            if worker.awaits is not None:
                worker.awaits.follow(loop)
        if self._ready:
            loop.call_soon(self._resume_ready)

    def forked(self) -> None:
        """In a forked child: have no worker but the one that forked; the others serve the parent's clients, there."""
        me = getcurrent()
        others = [worker for worker in (*self.workers, *self._resting) if worker is not me]
        _left_behind.extend(others)
        for worker in others:
            worker.deadline = None
            worker.clear_timer()
            if worker.awaits is not None:
                worker.awaits.follow(None)
        self.is_forked = True
        self.workers.difference_update(others)
        self._resting.clear()
        self._ready.clear()
        self._blocking_calls = BlockingCalls()
        if self.is_elsewhere():
            self.thread = self.loop = self.loop_greenlet = None
            self.switch = _no_loop

    # threads

    def run_in_thread(self, me: RequestGreenlet, function: Callable[[], Result]) -> Result:
        """Call a function in a thread of a pool while other workers go on; return or raise what it does."""
        future = self._blocking_calls.start(function)
        future.add_done_callback(lambda _: self.resume(me))
        try:
            while not future.done():
                me.pause()
        finally:
            future.cancel()
        return future.result()

    def close_threads(self) -> None:
        """Let the pool's threads end when they have nothing to do."""
        self._blocking_calls.end()


def current_worker() -> RequestGreenlet | None:
    """The worker that calls this; None: no worker does."""
    me: Any = getcurrent()
    return me if isinstance(me, RequestGreenlet) else None


def wait_in(me: RequestGreenlet, change: OneShot, timeout: float | None) -> bool:
    """Wait in a worker, which calls this, at most ``timeout`` seconds until ``change`` is set; say whether it is."""
    deadline = None if timeout is None else time.monotonic() + timeout
    change.then(lambda: me.hub.resume(me))
    while not change.is_set():
        if deadline is not None and deadline <= time.monotonic():
            return False
        me.pause(deadline)
    return True


def sleep(seconds: float) -> None:
    """Let others run for so many seconds; outside of a worker, block the thread. inf: for ever.

    Raises ValueError if ``seconds`` is negative or NaN, as ``time.sleep()`` does.
    """
    if not seconds >= 0:
        raise ValueError("sleep length must be non-negative")
    me = current_worker()
    if me is None:
        while seconds > LONGEST_WAIT:
            time.sleep(LONGEST_WAIT)  # noqa: TID251 - as below
            seconds -= LONGEST_WAIT
        time.sleep(seconds)  # noqa: TID251 - it is what was asked for
    elif seconds == 0:
        me.hub.give_way(me)
    else:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            me.pause(deadline)
