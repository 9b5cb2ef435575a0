"""One server's stay in a loop: when its listener is watched, how it accepts, what an error of accept() does.

Theory of operation. ``serve_forever()`` and ``attach()`` make an Acceptor, which is a source of the loop until it
leaves. Before each wait it watches the listener, or does not, with a reason: "suspended", "back off", "full", "limit".
When the listener is ready it takes up to ``BATCH`` requests, each by ``_handle_request_noblock()``, whose work is
``take_one()``. How a request is taken is the intake's, how long a pause lasts is the back-off's, what becomes of the
request is ``request_life``'s. ``stop_requested``, ``listener_closed`` and ``listener_lost`` are set by other threads
and looked at before each wait and each request.

From any thread: ``look_again()``, ``retire()``, ``has_paused()``, ``listener_closes()``. In a forked child:
``forked()``, ``abandon()``. In the thread that takes requests, which in a pool is one of its workers: ``take_one()``,
``recovered()``, ``failed()``, ``found_nothing()``. All else in the thread that runs the loop.

Rule 1. A server that is full, suspended or backing off is not watched: the kernel's backlog holds the rest.
Rule 2. What the loop borrowed it gives back: the listener's blocking mode is the caller's again after ``leave()``.
Rule 3. A descriptor is polled only while it is still the socket that the server began with.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from sockserve.core.accept_failures import not_taken
from sockserve.core.active_requests import LiveRequest
from sockserve.core.back_off import BackOff
from sockserve.core.deferral import Deferral
from sockserve.core.events import Events
from sockserve.core.hook_marks import has_no_ticks, never_waits
from sockserve.core.intake import BY_INTAKE, Intake, is_unix
from sockserve.core.life_in_place import serves_at_once, take_again
from sockserve.core.lifecycle import Stay
from sockserve.core.limit_pause import limit_pause_of
from sockserve.core.limits import limits_of
from sockserve.core.loop import Loop, Source
from sockserve.core.one_shot import OneShot
from sockserve.core.preparation_settings import check_settings
from sockserve.core.request_life import take
from sockserve.core.servable import AnyServer
from sockserve.core.serving import LoopsDispatcher, events_of, serving_of, stay_begins, stay_ends
from sockserve.core.sweeping import begin_sweeping, end_sweeping
from sockserve.errors import AlreadyServingError, ListenerLostError, ServerClosedError
from sockserve.log import log
from sockserve.net.accept_errors import Verdict, is_shortage
from sockserve.net.watched_socket import forget_taken, tell_when_closed
from sockserve.seconds import check_times, limit_of

__all__ = ["BATCH", "Acceptor"]


BATCH = 64
"""Requests taken in one turn at most: enough to make the wait's cost vanish, few enough that other servers of the loop
get their turn. A stop does not wait for the end of a batch."""


class Acceptor(Source, Stay):
    """Takes requests for one server while a loop runs. Made by ``server.attach(loop)``."""

    def __init__(
        self,
        server: AnyServer,
        loop: Loop,
        poll_interval: float,
        dispatcher: LoopsDispatcher | None = None,
        connection_class: type[socket.socket] | None = None,
    ) -> None:
        self.server = server
        self.loop = loop
        self._state = serving_of(server)
        self.lifecycle = self._state.lifecycle
        self.stop_requested = False
        self.listener_closed = False
        """Whether ``server_close()`` took the listener away on purpose."""
        self.watching = False
        self.ended = OneShot()
        self.holds_end = False
        """Whether the maker of the loop calls ``finish()``, once the loop's descriptors are closed too."""
        self.listener_lost = False
        """Whether the listener is closed or about to be, for any reason. From any thread."""
        self._recycled: LiveRequest | None = None
        """The record of the next request, if that is one that the loop's thread serves at once."""
        self.max_wait: float | None = None
        longest_wait = limit_of(poll_interval, "poll_interval")
        self._ticks = False
        self._left = False
        self._batch = 1
        self._stop_watching: Callable[[], None] | None = None
        self._longest_wait: float | None = None
        self._paused_for: str | None = None
        self._is_shared = self._state.shares_listener
        self._looks_again = False
        self._dispatcher: LoopsDispatcher | None = None
        self.listener: Any = getattr(server, "socket", None)
        self._takes_ours = never_waits(server.get_request)
        self.intake = Intake(self.listener, remembers=not self._takes_ours, has_names=is_unix(server))
        self._fd = -1
        self._fileno: Callable[[], int] = server.fileno
        self.events = events_of(server)
        self.table = self._state.table
        self.back_off = BackOff(server, loop, self.table)
        self.table.limits = limits_of(server)
        self._limit_pause = limit_pause_of(server, loop)
        check_times(server)
        check_settings(server)
        if not self.lifecycle.begin(self):
            raise AlreadyServingError(f"{server} is already being served by another serve_forever()")
        try:
            self._fd = server.fileno()
            if self.listener is not None and self.listener.fileno() == self._fd:
                self._fileno = self.listener.fileno
            # shutdown() and server_close() may both have come before this start: a quiet end, not an error.
            if self._fd < 0 and not self.stop_requested:
                raise ServerClosedError(f"{server} is closed: it cannot serve before it gets a new socket")  # noqa: TRY301
            self._state.acceptor, self._state.intake = self, self.intake
            stay_begins(server)
            if self._state.when_begun is not None:
                self._state.when_begun(loop)
            if not has_no_ticks(server.service_actions):
                self._ticks = True
                self._longest_wait = self.max_wait = longest_wait
            self._dispatcher = dispatcher
            if dispatcher is not None:
                dispatcher.attach(loop)
            loop.add(self)
            begin_sweeping(server, loop if self.has_free_loop() else None)
            if self._fd >= 0:
                self._take_over_listener(longest_wait, connection_class)
            self.lifecycle.serving.set()
        except BaseException:
            self.leave()
            raise

    def _take_over_listener(self, longest_wait: float | None, connection_class: type[socket.socket] | None) -> None:
        listener = self.listener
        try:
            self.intake.open(connection_class)
            if self._takes_ours and not self.intake.can_block:
                self._batch = BATCH
            self._stop_watching = tell_when_closed(listener, self._listener_goes)
            if self._stop_watching is None:
                # Nothing tells of its end: that is looked for.
                self._longest_wait = self.max_wait = longest_wait
        except (OSError, ValueError):
            # Closed meanwhile: the first turn finds out whether by server_close().
            if listener.fileno() == self._fd:
                raise

    # 1 WAIT

    def before_wait(self) -> None:
        """Watch the listener if the server may take a request, and leave the loop if it is to stop."""
        if self.stop_requested:
            self.leave()
            return
        try:
            is_other = getattr(self.server, "socket", None) is not self.listener
            if self.listener_lost or is_other or self._fileno() != self._fd:
                message = f"the socket of {self.server} was closed or replaced while it was being served"
                raise ListenerLostError(message)  # noqa: TRY301 - caught only to look at listener_closed
            reason = None
            if self.lifecycle.suspended:
                reason = "suspended"
            elif self.back_off.timer is not None and self.back_off.is_pause():
                reason = "back off"
            elif self._dispatcher is not None and self._dispatcher.full():
                reason = "full"
            elif self._limit_pause is not None and self.is_at_limit():
                reason = "limit"
                self._limit_pause.wait_for_room(is_first=self._paused_for != reason)
            if self._dispatcher is not None:
                # Also while suspended: children may end meanwhile.
                must_poll = self._dispatcher.must_poll()
                longest = self._longest_wait
                self.max_wait = (
                    longest if must_poll is None else must_poll if longest is None else min(must_poll, longest)
                )
            if self._looks_again:
                self._looks_again = False
                if self._is_shared and self.watching:
                    # The kernel looks only when a watch begins.
                    self._unwatch()
                    self.watching = False
            if reason is not None or not self.watching:
                self._pause_or_go_on(reason)
        except (OSError, ValueError, ListenerLostError) as error:
            # In this order, or a close in progress is seen by neither: server_close() sets the second before it clears
            # the first.
            self.listener_closed = self.lifecycle.listener_is_closing or self.listener_closed
            if not self.listener_closed:
                self.leave()
                is_lost = self.listener_lost or self._fileno() != self._fd
                if is_lost and not isinstance(error, ListenerLostError):
                    # Closed between the look above and the watch.
                    message = f"the socket of {self.server} was closed while it was being served"
                    raise ListenerLostError(message) from error
                raise
        if self.listener_closed:
            if not self.stop_requested:  # again: a signal handler may have stopped it properly since
                log.warning("%s: server_close() came before shutdown(); the loop ends", self.server)
            self.leave()

    def is_at_limit(self) -> bool:
        """Whether ``limits`` let nothing be accepted now."""
        return self._limit_pause is not None and self._limit_pause.must_wait()

    def look_again(self) -> None:
        """Watch the listener anew in the next turn. From any thread.

        The wake-up for a queued connection may have gone to another process (EPOLLEXCLUSIVE).
        """
        self._looks_again = True
        self.loop.wake()

    def _pause_or_go_on(self, reason: str | None) -> None:
        changed = reason != self._paused_for
        if changed:
            self._paused_for = reason
            if wait := events_of(self.server).wait:
                Events.emit(wait, self.server, reason)
        if reason is None and not self.watching:
            self.back_off.end_pause()
            # First: a pool's worker may unwatch it at once, and would be overruled here.
            self.watching = True
            try:
                self._watch()
            except OSError as error:
                self.watching = False
                if not is_shortage(error):
                    raise
                self.back_off.begin("the system cannot watch the listener", error)
        elif reason is not None and self.watching:
            self._unwatch()
            self.watching = False
        if reason == "suspended" and changed:
            # A drain waits for the moment from which nothing new can come.
            self.table.touch()

    def _watch(self) -> None:
        self.loop.watch(self._fd, self._accept, shared=self._is_shared)

    def _unwatch(self) -> None:
        self.loop.unwatch(self._fd)

    def has_free_loop(self) -> bool:
        """Whether the loop's thread serves no requests itself."""
        return self._dispatcher is not None

    def has_paused(self) -> bool:
        """Whether no request is being taken, nor about to be. Called after the server was suspended."""
        return not self.watching or self.loop.thread in (None, threading.get_ident())

    # 2 ACCEPT

    def _accept(self) -> None:
        """Take what waits, at most a batch."""
        take = self.server._handle_request_noblock  # noqa: SLF001 - stdlib's name for one request
        lifecycle = self.lifecycle
        dispatcher = self._dispatcher
        limit_pause = self._limit_pause
        count_waiting = self.intake.count_waiting
        waiting = 1
        if dispatcher is None:
            self._have_recycled()
        for _ in range(self._batch):
            if self.stop_requested or self.listener_lost or lifecycle.suspended:
                return
            if dispatcher is not None and dispatcher.full():
                return
            if limit_pause is not None and self.is_at_limit():
                return
            # An override may return None after one request, as the standard library's does.
            has_taken = take()
            if has_taken is not True:
                if has_taken is False and waiting == 1:
                    self.found_nothing()
                return
            waiting -= 1
            if count_waiting is not None and not waiting:
                waiting = count_waiting()
                if not waiting:
                    return

    def found_nothing(self) -> None:
        """Nothing was there although the listener was ready: another process was quicker, or it was shut down."""
        if self.intake.has_ended():
            self.failed(OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN)), Verdict.FATAL)

    def take_one(self) -> bool:
        """Take one request that is ready; true if there was one. In the loop's thread; in a pool in its workers."""
        server = self.server
        intake = self.intake
        # What an override raises after it has got a request is of that request, not of the listener.
        remembers = intake.remembers
        if remembers:
            forget_taken()
        try:
            accept = intake.accept
            if accept is not None and getattr(server.get_request, "__func__", None) in BY_INTAKE:
                request, client_address = accept()
            else:
                request, client_address = server.get_request()
        except BaseException as error:
            if remembers or not isinstance(error, BlockingIOError):
                return not_taken(server, self, error, remembers)
            # As not_taken() does: the end of each batch of datagrams.
            if self.back_off.delay:
                self.recovered()
            return False
        if remembers:
            forget_taken()
        if self.back_off.delay:
            self.recovered()
        events = self.events
        try:
            is_current = events.observers is server.observers
        except AttributeError:
            # A standard library's server, which a pool takes requests for in this way too, has none.
            is_current = True
        if not is_current:
            events = self.events = events_of(server)
        recycled = self._recycled
        if recycled is not None and recycled.events is events:
            self._recycled = None
            if take_again(server, recycled, request, client_address):
                self._recycled = recycled
        else:
            take(server, LiveRequest(self.table, events, request, client_address))
        return True

    def _have_recycled(self) -> None:
        events = self.events
        if not serves_at_once(self.server, events):
            self._recycled = None
        elif (
            self._recycled is None
            or self._recycled.events is not events
            or self._recycled.thread != threading.get_ident()
        ):
            self._recycled = LiveRequest(self.table, events, None, None)

    def recovered(self) -> None:
        """Accepting works again: whatever made it fail is over."""
        self.back_off.recovered()

    def failed(self, error: BaseException, verdict: Verdict) -> None:
        """Do what the table says about an error of ``get_request()``."""
        if self.listener_closed or verdict is Verdict.IGNORE:
            return
        if verdict is Verdict.FATAL:
            self.leave()
            raise ListenerLostError(f"the socket of {self.server} cannot accept any more: {error}") from error
        self.back_off.begin("accept failed", error)

    # 9 TICK

    def after_turn(self) -> None:
        """One turn is over."""
        if self._left:
            return
        if self._ticks:
            self.server.service_actions()
        if self._dispatcher is not None:
            self._dispatcher.reap()
        if getattr(self.server, "observers", self.events.observers) is not self.events.observers:
            self.events = events_of(self.server)
        if self.events.tick:
            Events.emit(self.events.tick, self.server)

    # leaving

    def listener_closes(self) -> None:
        """``server_close()`` is about to close the listener. From any thread."""
        self.listener_closed = True
        self._listener_goes()

    def _listener_goes(self) -> None:
        self.listener_lost = True
        # Now and not in the next turn: by then the number may be another descriptor's.
        self._unwatch()
        self.intake.stop_receiving()
        self.loop.wake()

    def leave(self) -> None:
        """Leave the loop. Idempotent."""
        with Deferral():
            self._leave()

    def _leave(self) -> None:
        if self._left:
            return
        self._left = True
        self.loop.remove(self)
        end_sweeping(self.server)
        self.back_off.end_pause()
        if not self.listener_closed:
            self._unwatch()
        self._return_listener()
        self.watching = False
        if self._dispatcher is not None:
            self._dispatcher.detach()
        if not self.holds_end:
            self.finish()

    def abandon(self) -> None:
        """Close this process's copy of the listener."""
        self.intake.stop_receiving()
        if self.listener is not None:
            self.listener.close()

    def forked(self) -> None:
        """In a child that was forked beside the loop's thread: nothing of this stay is here."""
        self._left = self.stop_requested = True
        self.watching = False
        self._stop_watching = None
        self.back_off.forget()
        self.intake.is_lent = False
        self.intake.stop_receiving()
        if self._dispatcher is not None:
            self._dispatcher.detach()
        self._state.acceptor = self._state.intake = None
        # What the thread held that is not here must not be waited for.
        stay_ends(self.server, in_child=True)

    def finish(self) -> None:
        """End all waits for the end of this stay."""
        self.lifecycle.end()
        self._state.acceptor = self._state.intake = None
        stay_ends(self.server)
        self.ended.set()
        self.table.touch()

    def _return_listener(self) -> None:
        if self._stop_watching is not None:
            self._stop_watching()
            self._stop_watching = None
        self.intake.give_back()
