"""The hub: waits for the workers of a thread, ends them, and keeps them going when their own loop does not run.

Rule 1. Whatever waits for workers in their own thread, but outside of them, runs them meanwhile.
Rule 2. To wait needs no descriptor that is not there already.
"""

from __future__ import annotations

import atexit
import os
import time
import weakref
from collections.abc import Callable

from sockserve.concurrency.cooperative.errand import Errand
from sockserve.concurrency.cooperative.turns import RequestGreenlet, Turns, current_worker, getcurrent, sleep, wait_in
from sockserve.core.forked import tell_when_forked
from sockserve.core.lifecycle import CUT_GRACE
from sockserve.core.loop import Loop
from sockserve.core.one_shot import OneShot
from sockserve.log import log

__all__ = ["Hub", "RequestGreenlet", "current_worker", "getcurrent", "sleep"]


class Hub(Turns):
    """The workers of one thread, as seen from outside of them."""

    def __init__(self) -> None:
        super().__init__()
        self._errand_loop: Loop | None = None
        """What runs the workers while something in their thread, but outside of them, waits."""
        self._spare_loop: Loop | None = None
        """The next such loop: it needs descriptors, and what waits for an end may do so when there are none left."""
        self._watchers: list[Callable[[], object]] = []
        _hubs.append(weakref.ref(self, _hubs.remove))
        tell_when_forked(self)

    def forked(self) -> None:
        """As that of every set of workers; and there is nothing that waits for those of the parent."""
        super().forked()
        self._watchers.clear()

    def ended(self, worker: RequestGreenlet) -> None:
        """A worker is about to end, or to rest."""
        super().ended(worker)
        while self._watchers:
            self._watchers.pop()()

    # errands

    def run(self, function: Callable[[], object]) -> RequestGreenlet:
        """Run a function in a new worker until it ends, and the other workers meanwhile."""
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
        """Let the workers run, from outside of them, until ``change`` is set; False: ``timeout`` was not enough."""
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
            self.settle()
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
        """Have at hand what a wait will need; also if there is none to be had: it tries again then."""
        if self._spare_loop is None:
            try:
                self._spare_loop = Loop()
            except OSError as error:
                log.debug("there will be no loop to wait in: %s", error)

    def unreserve(self) -> None:
        """Give that back. From any thread."""
        spare, self._spare_loop = self._spare_loop, None
        if spare is not None:
            spare.close()

    def stand_still(self, deadline: float) -> None:
        """Keep the thread, another one, out of its workers from now on; wait until it is, or ``deadline`` is over.

        For the interpreter's end: CPython before 3.14 ends threads that still run then by pthread_exit(3), which
        unwinds their stack, and crashes if that is a greenlet's.
        """
        stands = OneShot()
        asked: Loop | None = None

        def stand() -> None:
            stands.set()
            # Not for ever: something else that runs at the interpreter's end may yet stop the server.
            OneShot().wait(CUT_GRACE)
            if asked is not None:
                asked.call_soon(stand)

        while self.is_elsewhere() and not self.has_ended() and time.monotonic() < deadline:
            loop = self.loop
            if loop is None or (loop.is_closed and not self.workers):
                return
            if loop is not asked:
                asked = loop
                loop.call_soon(stand)
            # Its thread may just now leave the one loop for the next.
            if stands.wait(0.01):
                return

    def has_ended(self) -> bool:
        """Whether the thread of the workers has ended, and so nothing can run them any more."""
        return self.thread is not None and self.thread.has_ended()

    # waiting

    def wait(self, change: OneShot, timeout: float | None) -> bool:
        """Wait at most ``timeout`` seconds until ``change`` is set, in whatever calls this; say whether it is.

        Meanwhile the workers go on, also if the caller holds their thread.
        """
        me = current_worker()
        if me is not None:
            return wait_in(me, change, timeout)
        if self.is_here():
            return self._run_until(change, timeout)
        return change.wait(timeout)

    def wait_until_idle(self, timeout: float | None) -> bool:
        """Wait until there is no worker but the caller, at most ``timeout`` seconds; say whether so."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            change = OneShot()
            self._watchers.append(change.set)
            if not self.others():
                return True
            remaining = None if deadline is None else deadline - time.monotonic()
            if (remaining is not None and remaining <= 0) or self.is_lost():
                return False
            self.wait(change, remaining)

    def is_lost(self) -> bool:
        """Whether the caller cannot have the workers run, and nothing else does."""
        return self.is_elsewhere() and (self.is_stranded or self.has_ended())

    def others(self) -> set[RequestGreenlet]:
        """The workers but the caller."""
        return {worker for worker in self.workers.copy() if not worker.is_current()}

    def kill(self, timeout: float) -> bool:
        """Raise GreenletExit in the workers but the caller; say whether they ended, within ``timeout`` seconds."""
        me = current_worker()
        if me is None and self.is_here():
            self._throw_into(self.others())
        elif self.loop is not None and not self.loop.is_closed:
            self.loop.call_soon(lambda: self._throw_into(self.workers - {me}))
        return self.wait_until_idle(timeout)

    def _throw_into(self, workers: set[RequestGreenlet]) -> None:
        for worker in workers:
            worker.throw()
            if worker.dead:
                # One that had not begun does not tell that it ended.
                self.ended(worker)


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
