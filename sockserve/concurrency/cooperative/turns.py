"""The RequestGreenlets of one thread, and the loop that gives them their turns.

Rule 1. A loop may end before the greenlets do; another one in the same thread takes them over where they are.
Rule 2. A greenlet that is done rests, and serves again; nothing of what it did is left for what it does next.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import TypeVar

from sockserve.concurrency.cooperative.blocking_calls import BlockingCalls
from sockserve.concurrency.cooperative.own_thread import OwnThread
from sockserve.concurrency.cooperative.request_greenlet import Greenlet, RequestGreenlet, getcurrent
from sockserve.core.loop import Loop

__all__ = ["Turns"]

Result = TypeVar("Result")

MOST_RESTING = 64
"""Greenlets at most that rest until their next function: to make one, with its stack, takes as long as a short
request."""


_left_behind: list[RequestGreenlet] = []
"""In a forked child, the greenlets of its parent: one that is collected unwinds, and ends the parent's connection."""


def _no_loop() -> None:
    raise RuntimeError("there is no loop that a greenlet could give its turn to")


class Turns:
    """Starts greenlets, keeps those that rest, and gives turns to those that can go on."""

    def __init__(self) -> None:
        self.loop: Loop | None = None
        self.thread: OwnThread | None = None
        """The thread that the greenlets belong to; None: there was none yet."""
        self.loop_greenlet: Greenlet | None = None
        """Runs the loop; a greenlet that ends gives its turn back there."""
        self.switch: Callable[[], object] = _no_loop
        """Gives a greenlet's turn back to the loop greenlet."""
        self.is_stranded = False
        """Whether an exception ended the loop, so that the greenlets stand still until code in their thread waits."""
        self.greenlets: set[RequestGreenlet] = set()
        """Those that have something to do."""
        self.lets_rest = False
        """Whether a greenlet that is done stays for more, until ``dismiss()``."""
        self._resting: list[RequestGreenlet] = []
        self._ready: collections.deque[RequestGreenlet] = collections.deque()
        self._resumed_in = -1
        """The turn of the loop in which those that were ready were last resumed."""
        self._blocking_calls = BlockingCalls()
        self.is_forked = False
        """Whether this process was forked from the one that made the greenlets, the forking one perhaps excepted."""

    # turns

    def begin(self, function: Callable[..., object], argument: object = None) -> RequestGreenlet:
        """Run a function, with its argument if it has one, in a new greenlet until it pauses or ends.

        A signal handler's exception is raised here.
        """
        self.give_turns_from_here()
        started = self._greenlet_for(function, argument)
        try:
            self.greenlets.add(started)
            started.switch()
        except BaseException:
            if started.dead or started.function is not None:
                # A signal handler's, before the function had begun.
                self.forget(started)
            raise
        return started

    def spawn(self, function: Callable[[], object]) -> RequestGreenlet:
        """Run it in a new greenlet soon. Called in a greenlet."""
        spawned = self._greenlet_for(function)
        try:
            self.greenlets.add(spawned)
            self.resume(spawned)
        except BaseException:
            if spawned not in self._ready:
                self.forget(spawned)
            raise
        return spawned

    def _greenlet_for(self, function: Callable[..., object], argument: object = None) -> RequestGreenlet:
        if not self._resting:
            return RequestGreenlet(self, function, argument)
        rested = self._resting.pop()
        rested.give(function, argument)
        return rested

    def resume(self, paused: RequestGreenlet) -> None:
        """Give a greenlet its turn soon. In any thread, and in a signal handler."""
        # Queued first: a loop that takes over in between finds it in the queue (move_to()).
        self._ready.append(paused)
        loop = self.loop
        if loop is not None:
            loop.call_soon(self._resume_ready)

    def _resume_ready(self) -> None:
        loop = self.loop
        if loop is not None:
            if self._resumed_in == loop.turns:
                # Each resume() since then has asked for a call of its own, which comes in the next turn.
                return
            self._resumed_in = loop.turns
        try:
            for _ in range(len(self._ready)):
                next_one = self._ready.popleft()
                if not next_one.dead:
                    next_one.switch()
        except BaseException:
            # A signal handler's. The same loop may be run again.
            if self._ready and loop is not None:
                loop.call_soon(self._resume_ready)
            raise

    def give_way(self, current: RequestGreenlet) -> None:
        """Let all others that can go on do so first. Called by the greenlet."""
        self.resume(current)
        current.pause()

    # rest

    def rest(self, done: RequestGreenlet) -> bool:
        """Wait for the next function of a greenlet, which calls this; False: there will be none, and it shall end."""
        if not self.lets_rest or len(self._resting) >= MOST_RESTING:
            return False
        self.forget(done)
        done.gr_context = None
        try:
            self._resting.append(done)
            while done.function is None:
                self.switch()
        except BaseException:
            # A signal handler's: what ends must be given nothing.
            if done in self._resting:
                self._resting.remove(done)
            raise
        return True

    def dismiss(self) -> None:
        """Let no greenlet rest any more; those that do end, if this is their thread."""
        self.lets_rest = False
        while self._resting and self.is_here():
            dismissed = self._resting.pop()
            # A greenlet that ends gives its turn back there.
            dismissed.parent = getcurrent()
            dismissed.throw()

    def forget(self, ended: RequestGreenlet) -> None:
        """Count a greenlet no longer: it is about to end, or to rest."""
        self.greenlets.discard(ended)
        ended.leave_nothing()

    # calls that block

    def run_in_thread(self, caller: RequestGreenlet, function: Callable[[], Result]) -> Result:
        """Call a function in a thread of a pool while other greenlets go on; return or raise what it does."""
        future = self._blocking_calls.start(function)
        future.add_done_callback(lambda _: self.resume(caller))
        try:
            while not future.done():
                caller.pause()
        finally:
            future.cancel()
        return future.result()

    def close_threads(self) -> None:
        """Let the pool's threads end when they have nothing to do."""
        self._blocking_calls.end()

    # thread and loop

    def is_here(self) -> bool:
        """Whether the greenlets are of the caller's thread."""
        return self.thread is not None and self.thread.is_here()

    def is_elsewhere(self) -> bool:
        """Whether they are of another thread, which may have ended."""
        return self.thread is not None and not self.thread.is_here()

    def give_turns_from_here(self) -> None:
        """Make the caller the loop greenlet: it runs the loop, or is about to."""
        me = getcurrent()
        if me is not self.loop_greenlet:
            self.thread = OwnThread()
            self.loop_greenlet = me
            self.switch = me.switch
            for each in (*self.greenlets, *self._resting):
                each.parent = me

    def move_to(self, loop: Loop) -> None:
        """Get the turns from a loop that runs in this thread, with all timers and descriptors."""
        if loop is self.loop:
            return
        self._resumed_in = -1
        self.loop = loop
        self.is_stranded = False
        for each in self.greenlets:
            each.set_timer()
            if each.awaits is not None:
                each.awaits.follow(loop)
        if self._ready:
            loop.call_soon(self._resume_ready)

    def forked(self) -> None:
        """In a forked child: keep only the greenlet that forked; the others serve the parent's clients, there."""
        me = getcurrent()
        others = [each for each in (*self.greenlets, *self._resting) if each is not me]
        _left_behind.extend(others)
        for each in others:
            each.deadline = None
            each.clear_timer()
            if each.awaits is not None:
                each.awaits.follow(None)
        self.is_forked = True
        self.greenlets.difference_update(others)
        self._resting.clear()
        self._ready.clear()
        self._blocking_calls = BlockingCalls()
        if self.is_elsewhere():
            self.thread = self.loop = self.loop_greenlet = None
            self.switch = _no_loop
