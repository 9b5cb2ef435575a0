"""The hub: waits for the greenlets of a thread, ends them, and keeps them going when their own loop does not run.

Rule 1. What waits for greenlets in their thread, but outside of them, runs them meanwhile.
Rule 2. A wait needs no descriptor that is not open already.
"""

from __future__ import annotations

import atexit
import os
import time
import weakref
from collections.abc import Callable

from sockserve.concurrency.cooperative.errand import Errand
from sockserve.concurrency.cooperative.request_greenlet import RequestGreenlet, current_request_greenlet
from sockserve.concurrency.cooperative.turns import Turns
from sockserve.core.forked import tell_when_forked
from sockserve.core.lifecycle import CUT_GRACE
from sockserve.core.loop import Loop
from sockserve.core.one_shot import OneShot
from sockserve.log import log

__all__ = ["Hub"]


class Hub(Turns):
    """The greenlets of one thread, for code outside of them. The head of this folder says what each thread may call."""

    def __init__(self) -> None:
        super().__init__()
        self._errand_loop: Loop | None = None
        """Runs the greenlets while code in their thread, but outside of them, waits."""
        self._spare_loop: Loop | None = None
        """The next such loop. It needs descriptors, and the wait for an end may come when there are none left."""
        self._watchers: list[Callable[[], object]] = []
        """Called, once each, when a greenlet ends or rests."""
        _hubs.append(weakref.ref(self, _hubs.remove))
        tell_when_forked(self)

    def forked(self) -> None:
        """As ``Turns.forked()``; besides, no wait of the parent's goes on here."""
        super().forked()
        self._watchers.clear()

    def forget(self, ended: RequestGreenlet) -> None:
        """Count a greenlet no longer, and tell those that wait."""
        super().forget(ended)
        while self._watchers:
            self._watchers.pop()()

    # errands

    def run(self, function: Callable[[], object]) -> RequestGreenlet:
        """Run a function in a new greenlet until it ends, and the other greenlets meanwhile."""
        done = OneShot()
        started: list[RequestGreenlet] = []

        def run_and_tell() -> None:
            try:
                function()
            finally:
                done.set()

        self._run_until(done, None, lambda: started.append(self.begin(run_and_tell)))
        return started[0]

    def _run_until(self, change: OneShot, timeout: float | None, start: Callable[[], object] | None = None) -> bool:
        """Let the greenlets run, from outside of them, until ``change`` is set; False: ``timeout`` was not enough."""
        outer, loop = self.loop, self._errand_loop
        is_outermost = loop is None
        had_spare = self._spare_loop is not None
        if loop is None:
            loop, self._spare_loop = self._spare_loop or Loop(), None
            self._errand_loop = loop
        # Else a signal handler has interrupted such a wait: it needs no loop of its own.
        errand = Errand(loop, change)
        try:
            if timeout is not None:
                loop.call_later(timeout, errand.leave)
            if start is not None:
                loop.call_soon(start)
            if self._ready:
                loop.call_soon(self._resume_ready)
            self.give_turns_from_here()
            self.move_to(loop)
            loop.run(errand)
        finally:
            errand.leave()
            if is_outermost:
                self._errand_loop = None
                loop.close()
                if had_spare:
                    self.reserve()
                if outer is not None and not outer.is_closed:
                    self.move_to(outer)
        return change.is_set()

    def reserve(self) -> None:
        """Open what a wait will need. If the system refuses it, the wait tries once more."""
        if self._spare_loop is None:
            try:
                self._spare_loop = Loop()
            except OSError as error:
                log.debug("there will be no loop to wait in: %s", error)

    def unreserve(self) -> None:
        """Close it. In any thread."""
        spare, self._spare_loop = self._spare_loop, None
        if spare is not None:
            spare.close()

    def stand_still(self, deadline: float) -> None:
        """Keep another thread out of its greenlets from now on; return once it is, or when ``deadline`` is over.

        For the interpreter's end: CPython before 3.14 ends threads that still run then by pthread_exit(3), which
        unwinds their stack, and crashes if that is a greenlet's.
        """
        stands = OneShot()
        asked: Loop | None = None

        def stand() -> None:
            stands.set()
            # Not for ever: other code that runs at the interpreter's end may yet stop the server.
            OneShot().wait(CUT_GRACE)
            if asked is not None:
                asked.call_soon(stand)

        while self.is_elsewhere() and not self.has_ended() and time.monotonic() < deadline:
            loop = self.loop
            if loop is None or (loop.is_closed and not self.greenlets):
                return
            if loop is not asked:
                asked = loop
                loop.call_soon(stand)
            # The thread may just now leave one loop for the next.
            if stands.wait(0.01):
                return

    def has_ended(self) -> bool:
        """Whether the greenlets' thread has ended, so that nothing can run them any more."""
        return self.thread is not None and self.thread.has_ended()

    # waiting

    def wait(self, change: OneShot, timeout: float | None) -> bool:
        """Wait at most ``timeout`` seconds until ``change`` is set, in any thread or greenlet; return whether it is.

        The greenlets go on meanwhile, also if the caller holds their thread.
        """
        me = current_request_greenlet()
        if me is not None:
            return me.wait_for(change, timeout)
        if self.is_here():
            return self._run_until(change, timeout)
        return change.wait(timeout)

    def wait_until_idle(self, timeout: float | None) -> bool:
        """Wait at most ``timeout`` seconds until no greenlet but the caller is left; return whether so."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            change = OneShot()
            # First to watch, then to look: one that ends in between is seen either way.
            self._watchers.append(change.set)
            if not self.others():
                return True
            remaining = None if deadline is None else deadline - time.monotonic()
            if (remaining is not None and remaining <= 0) or self.is_lost():
                return False
            self.wait(change, remaining)

    def is_lost(self) -> bool:
        """Whether the greenlets stand still, and the caller cannot run them."""
        return self.is_elsewhere() and (self.is_stranded or self.has_ended())

    def others(self) -> set[RequestGreenlet]:
        """Return the greenlets but the caller."""
        return {each for each in self.greenlets.copy() if not each.is_current()}

    def kill(self, timeout: float) -> bool:
        """Raise GreenletExit in the greenlets but the caller; return whether they ended, within ``timeout`` seconds."""
        me = current_request_greenlet()
        if me is None and self.is_here():
            self._throw_into(self.others())
        elif self.loop is not None and not self.loop.is_closed:
            self.loop.call_soon(lambda: self._throw_into(self.greenlets - {me}))
        return self.wait_until_idle(timeout)

    def _throw_into(self, killed: set[RequestGreenlet]) -> None:
        for each in killed:
            each.throw()
            if each.dead:
                # One that had not begun does not call forget() itself.
                self.forget(each)


_hubs: list[weakref.ref[Hub]] = []
"""All hubs of this process. A list, as its operations are atomic."""


@atexit.register
def _stand_still() -> None:
    deadline = time.monotonic() + CUT_GRACE
    for reference in _hubs.copy():
        hub = reference()
        if hub is not None:
            hub.stand_still(deadline)


if hasattr(os, "register_at_fork"):
    # The threads of the others are not in the child, and their loops are the parent's.
    os.register_at_fork(after_in_child=_hubs.clear)
