"""The greenlet that a request runs in, and how it waits.

Rule 1. A RequestGreenlet gives its turn away in ``pause()`` and ``listen()`` only, to the loop greenlet, which gives it
back.
Rule 2. A turn may come for nothing: after a pause the greenlet looks again at what it waits for.
Rule 3. What ends its function ends that one only, unless it is a signal handler's exception, which goes to the loop
greenlet.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from sockserve.concurrency.cooperative.signal_origin import came_from_signal_handler
from sockserve.core.loop import Loop, Timer
from sockserve.core.one_shot import OneShot
from sockserve.log import log
from sockserve.seconds import LONGEST_WAIT

try:
    from greenlet import GreenletExit, getcurrent
    from greenlet import greenlet as Greenlet  # noqa: N812 - it is a class
except ImportError as error:
    raise ImportError(
        "handlers in greenlets need the library greenlet: pip install 'sockserve[greenlet]'", name="greenlet"
    ) from error

__all__ = ["Awaited", "Greenlet", "RequestGreenlet", "TurnGiver", "current_request_greenlet", "getcurrent", "sleep"]

Result = TypeVar("Result")


class Awaited(Protocol):
    """What a greenlet waits for, if the loop has to know of it."""

    def follow(self, loop: Loop | None) -> None:
        """Be told by another loop from now on; None: by none. If that fails, the greenlets that wait get a turn."""

    def stop_direct(self) -> None:
        """End the loop's switching straight to the greenlet: from now on it calls this object first."""


class TurnGiver(Protocol):
    """What a RequestGreenlet needs of the thread that it belongs to."""

    loop: Loop | None
    loop_greenlet: Greenlet | None
    switch: Callable[[], object]
    """Gives the turn back to the loop greenlet; returns what the next turn is about."""
    is_forked: bool

    def resume(self, paused: RequestGreenlet) -> None:
        """Give it a turn soon."""

    def give_way(self, current: RequestGreenlet) -> None:
        """Let all others that can go on do so first."""

    def spawn(self, function: Callable[[], object]) -> RequestGreenlet:
        """Run a function in another greenlet soon."""
        ...

    def run_in_thread(self, caller: RequestGreenlet, function: Callable[[], Result]) -> Result:
        """Call a function in a thread while other greenlets go on; return or raise what it does."""
        ...

    def rest(self, done: RequestGreenlet) -> bool:
        """Wait in it for its next function; False: there will be none, and it shall end."""
        ...

    def forget(self, ended: RequestGreenlet) -> None:
        """It is about to end."""


class RequestGreenlet(Greenlet):
    """Runs a function, and pauses in it; after that perhaps another one."""

    __slots__ = ("_timer", "argument", "awaits", "deadline", "function", "hub", "listens_to")

    def __init__(self, hub: TurnGiver, function: Callable[..., object], argument: object = None) -> None:
        super().__init__(_work, hub.loop_greenlet)
        self.hub = hub
        self.give(function, argument)
        self.awaits: Awaited | None = None
        """What it waits for, or has waited for last."""
        self.listens_to: Awaited | None = None
        """What the loop tells it of without a detour: a turn may be about that, until it pauses for anything else."""
        self.deadline: float | None = None
        """When its present pause ends at the latest, on the clock of ``time.monotonic()``."""
        self._timer: Timer | None = None

    def give(self, function: Callable[..., object], argument: object) -> None:
        """Set what it runs when it has its next turn."""
        # Apart: for each connection a closure would take more memory.
        self.function: Callable[..., object] | None = function
        self.argument = argument
        # It sees the context variables of the code that started it, and changes its own only. If there are none, it
        # gets a context of its own with the first that it sets.
        context = contextvars.copy_context()
        if context:
            self.gr_context = context

    def take_function(self) -> Callable[..., object]:
        """Return what it is to run, and keep no reference to it."""
        function, self.function = self.function, None
        return cast("Callable[..., object]", function)

    def leave_nothing(self) -> None:
        """End what its function has begun to wait for: it gets no further turn for that."""
        if self.listens_to is not None:
            self.listens_to.stop_direct()
        self.clear_timer()
        # A request's record knows its greenlet: a circle would keep both until the garbage collector runs.
        self.awaits = self.argument = None

    def is_current(self) -> bool:
        """Whether it is the caller."""
        return getcurrent() is self

    def pause(self, deadline: float | None = None) -> None:
        """Give the turn away until the next one, or until ``deadline``. Called in this greenlet."""
        if self.listens_to is not None:
            self.listens_to.stop_direct()
        if deadline is None:
            self.hub.switch()
        else:
            self.listen(deadline)

    def listen(self, deadline: float) -> object:
        """As ``pause()``; return what the loop tells of what the greenlet listens to, or an empty tuple."""
        self.deadline = deadline
        if self._timer is None or deadline < self._timer.when:
            self.set_timer()
        try:
            return self.hub.switch()
        finally:
            self.deadline = None

    def wait_for(self, change: OneShot, timeout: float | None) -> bool:
        """Wait at most ``timeout`` seconds until ``change`` is set; return whether it is. Called in this greenlet."""
        deadline = None if timeout is None else time.monotonic() + timeout
        change.then(lambda: self.hub.resume(self))
        while not change.is_set():
            if deadline is not None and deadline <= time.monotonic():
                return False
            self.pause(deadline)
        return True

    def set_timer(self) -> None:
        """Have the present pause end in time. One timer serves many pauses: it is moved on when it is due too early."""
        self.clear_timer()
        loop = self.hub.loop
        if self.deadline is not None and loop is not None:
            self._timer = loop.call_later(self.deadline - time.monotonic(), self._on_timer)

    def clear_timer(self) -> None:
        """Cancel the timer in the loop, if there is one."""
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
    # A function: a bound method would be an object of its own for each connection.
    me = cast("RequestGreenlet", getcurrent())
    try:
        while True:
            try:
                # Not by "*": that makes the stack longer which a switch copies.
                if me.argument is None:
                    me.take_function()()
                else:
                    me.take_function()(me.argument)
            except GreenletExit:
                raise
            except BaseException as error:
                if came_from_signal_handler(error) or (me.hub.is_forked and isinstance(error, SystemExit)):
                    # The latter is the end of a process that a handler forked.
                    raise
                _log_end(error)
            if not me.hub.rest(me):
                return
    finally:
        me.hub.forget(me)


def _log_end(error: BaseException) -> None:
    # As threading.excepthook does at the end of a thread.
    if isinstance(error, SystemExit):
        log.debug("a handler, or what it spawned, has ended its greenlet: %r", error)
    else:
        log.error("Exception ended the greenlet of a handler, or of what it spawned", exc_info=error)


def current_request_greenlet() -> RequestGreenlet | None:
    """Return the RequestGreenlet that calls this; None outside of any."""
    me: Any = getcurrent()
    return me if isinstance(me, RequestGreenlet) else None


def sleep(seconds: float) -> None:
    """Let others run for so many seconds; outside of a handler's greenlet, block the thread. inf: for ever.

    Raises ValueError if ``seconds`` is negative or NaN, as ``time.sleep()`` does.
    """
    if not seconds >= 0:
        raise ValueError("sleep length must be non-negative")
    me = current_request_greenlet()
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
