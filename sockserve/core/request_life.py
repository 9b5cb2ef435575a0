"""A request's life from VERIFY to SHUTDOWN, the same for every server and every way to run a handler.

Rule 1. Whatever a step raises is reported once, to ``handle_error()`` inside the ``except``; then the request is
closed. What ``handle_error()`` raises propagates, and nothing else does that is an Exception.
Rule 2. A request is closed exactly once, in the thread that served it, unless it was detached or a subclass kept it.
Rule 3. Nothing here needs more of a server than ``socketserver``'s hooks: a standard library's is served as well.
"""

from __future__ import annotations

import functools
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from sockserve.core.active_requests import LiveRequest
from sockserve.core.events import Events
from sockserve.core.preparing import DRAIN_GRACE, Preparation, prepare
from sockserve.core.replaced import reach
from sockserve.core.request_states import RequestState
from sockserve.core.serving import serving_of, table_of
from sockserve.errors import PeerError, RefusedError
from sockserve.log import log
from sockserve.net.closing import cut, end_input
from sockserve.net.departure import has_left

__all__ = [
    "begin",
    "call",
    "close",
    "contain",
    "cut_others",
    "drain_one",
    "end_failed",
    "fail",
    "finish_unprepared",
    "forget",
    "give_up",
    "let_go",
    "refuse",
    "resume",
    "serve",
    "step_of",
    "take",
    "takes_record",
    "tell_cut",
    "unprepared",
]


_UNHEARD = Events(())

unprepared: dict[int, PeerError] = {}
"""By identity: requests whose ``finish_request()`` is called only so that what ``process_request()`` took is given
back, with the error to raise in place of running the handler. Empty nearly always."""

_STEPS: dict[Any, Callable[[Any, LiveRequest], None]] = {}
"""What a hook does with the record of its request; only hooks that are not overridden are found here."""

Hook = TypeVar("Hook", bound=Callable[..., Any])


def takes_record(step: Callable[[Any, LiveRequest], None]) -> Callable[[Hook], Hook]:
    """Mark a hook that looks up its request's record and then does ``step(server, live)``."""

    def mark(hook: Hook) -> Hook:
        _STEPS[hook] = step
        return hook

    return mark


def step_of(hook: object) -> Callable[[Any, LiveRequest], None] | None:
    """What a hook does with the record of its request; None if it was not marked, an override for one."""
    return _STEPS.get(getattr(hook, "__func__", None))


def call(hook: Any, server: Any, live: LiveRequest) -> None:
    """Call ``hook(request, client_address)``; without the look-up if it is one that was marked."""
    try:
        step = _STEPS[hook.__func__]
    except (AttributeError, KeyError, TypeError):
        hook(live.request, live.client_address)
    else:
        # As long as the request is served it would keep a method alive for itself.
        del hook
        step(server, live)


def take(server: Any, live: LiveRequest) -> None:
    """Verify what ``get_request()`` returned and hand it to ``process_request()``."""
    try:
        # Here and not before: an exception of a signal handler must not leave it in the table.
        live.table.enter(live)
        events = live.events
        if events.accept:
            Events.emit(events.accept, server, live)
        live.state = "verify"
        accepted = server.verify_request(live.request, live.client_address)
        if events.verify:
            Events.emit(events.verify, server, live, bool(accepted))
        if accepted:
            call(server.process_request, server, live)
        else:
            refuse(server, live)
    except Exception as error:
        fail(server, live, error)
    except BaseException:
        give_up(server, live)
        raise
    # Still "verify": a subclass's process_request() served it in its own way, or keeps it for process_request_thread().
    if live.state == "verify":
        let_go(server, live, "verify")


def begin(server: Any, request: Any, client_address: Any) -> LiveRequest:
    """The record of a request; made now if whoever calls got the request on a way of their own."""
    table = table_of(server)
    live = table.take(request)
    if live is None:
        # Nobody heard of its beginning.
        live = table.add(request, client_address, _UNHEARD)
    live.thread = threading.get_ident()
    return live


def serve(server: Any, live: LiveRequest) -> None:
    """PREPARE, HANDLE, and SHUTDOWN of a request that nothing went wrong with; raises what the steps raise."""
    events = live.events
    live.state = "prepare"
    # Not held in a variable meanwhile: of ten thousand clients each would keep its method alive.
    if hasattr(server, "prepare_request"):
        try:
            prepares = getattr(server, "_serving_prepares", False)
            if prepares and not prepare(server, live):
                # Parked; another thread may have it by now.
                return
            request, live.client_address = server.prepare_request(live.request, live.client_address)
        except PeerError as error:
            finish_unprepared(server, live, error)
            return
        if request is not live.request:
            live.table.replace(live, request)
        if prepares and not server.verify_client(request, live.client_address):
            refuse(server, live)
            return
    if events.prepare:
        Events.emit(events.prepare, server, live)
    live.state = "handle"
    server.finish_request(live.request, live.client_address)
    if live.continue_handler is None:
        if events.handle:
            Events.emit(events.handle, server, live)
        close(server, live)
    else:
        _park_or_close(server, live)


def finish_unprepared(server: Any, live: LiveRequest, error: PeerError) -> None:
    """Let ``finish_request()`` raise the peer's error, and end the request if an override of it hushes that up.

    So what an override of ``process_request()`` took is given back where it always is. Not for other errors of
    PREPARE: an override that does not ask its base class would run its handler, for a client that was to have none.
    This one finds a connection without input, on which TLS is not up.
    """
    # A standard library's finish_request() would run the handler.
    if not getattr(server, "_serving_raises_unprepared", False):
        raise error
    request = live.request
    key = id(request)
    end_input(request)
    unprepared[key] = error
    try:
        server.finish_request(request, live.client_address)
    finally:
        was_raised = unprepared.pop(key, None) is None
    if not was_raised:
        raise error
    live.outcome = "refused" if isinstance(error, RefusedError) else "left"
    close(server, live)


def resume(server: Any, live: LiveRequest, has_input: bool) -> None:
    """As ``serve()``, with a request that was parked: until it is parked again or over. Errors are contained.

    ``has_input``: its client has spoken, and not: it may have spoken or left, that is to be seen.
    """
    # Not by contain(), which would be one more call for each message.
    try:
        live.thread = threading.get_ident()
        if live.preparation is not None:
            serve(server, live)
            return
        live.state = "handle"
        continue_handler: Any
        continue_handler, live.continue_handler = live.continue_handler, None
        continue_handler(has_input)
        _park_or_close(server, live)
    except Exception as error:
        fail(server, live, error)
    except BaseException:
        give_up(server, live)
        raise


def _park_or_close(server: Any, live: LiveRequest) -> None:
    while live.continue_handler is not None:
        if live.parking is not None and live.parking.park(live):
            # Somebody else may have it by now.
            return
        # Nobody would hear its client any more: it ends as in a drain.
        end_input(live.request)
        continue_handler, live.continue_handler = live.continue_handler, None
        continue_handler(False)
    if live.events.handle:
        Events.emit(live.events.handle, server, live)
    close(server, live)


def contain(server: Any, live: LiveRequest, step: Callable[[Any, LiveRequest], None]) -> None:
    """Run a step that closes the request if all goes well; if not, report and close it here."""
    try:
        step(server, live)
    except Exception as error:
        fail(server, live, error)
    except BaseException:
        give_up(server, live)
        raise


def refuse(server: Any, live: LiveRequest) -> None:
    """Close a request to which ``verify_request()`` said no."""
    live.outcome = "refused"
    log.debug("%s: refused %s", server, live.client_address)
    close(server, live)


def fail(server: Any, live: LiveRequest, error: Exception) -> None:
    """Report what a step raised, inside the ``except``, and close the request."""
    live.state = "error"
    if isinstance(error, RefusedError):
        live.outcome = "refused"
    else:
        live.outcome = "left" if has_left(live.request, error, live.client_address) else "failed"
    try:
        if live.events.error:
            Events.emit(live.events.error, server, live, error)
        server.handle_error(live.request, live.client_address)
    finally:
        close(server, live)


def give_up(server: Any, live: LiveRequest) -> None:
    """Close the request, if that is the caller's to do: something was raised that is no Exception, and propagates."""
    if live.state == "shutdown":
        # It came out of the hooks that close the request; they are not called twice.
        _close_socket(live)
        live.table.discard(live)
    # In the loop this is a signal handler's exception, and a worker may have the request by now.
    elif live.is_callers_own() or live.owner != "worker":
        live.outcome = "failed"
        try:
            close(server, live)
        except Exception:
            # It must not take the place of what ends the loop or the worker.
            log.exception("%s: the error of closing %s could not be handled", server, live.client_address)


def close(server: Any, live: LiveRequest) -> None:
    """SHUTDOWN: close the request, unless it was detached, and strike it out. What the hooks raise is reported."""
    live.state = "shutdown"
    try:
        if not live.detached:
            server.shutdown_request(live.request)
    except Exception as error:
        end_failed(server, live, error)
    finally:
        forget(server, live)


def end_failed(server: Any, live: LiveRequest, error: Exception) -> None:
    """``shutdown_request()`` raised: report it, and close what it may have left open without asking it again."""
    if live.outcome == "handled":
        live.outcome = "failed"
    try:
        if live.events.error:
            Events.emit(live.events.error, server, live, error)
        server.handle_error(live.request, live.client_address)
    finally:
        _close_socket(live)


def _close_socket(live: LiveRequest) -> None:
    if isinstance(live.request, socket.socket) and not live.detached:
        try:
            live.request.close()
        except OSError as error:
            log.debug("closing %s: %s", live.client_address, error)


def let_go(server: Any, live: LiveRequest, state: RequestState) -> None:
    """An override has returned, and nothing of ours took the request out of ``state``.

    It was served in another way, or is kept to be served later, or was forgotten: then it is closed when the last
    reference to it is gone, as with ``socketserver``.
    """
    if not live.table.keep(live, functools.partial(forget, server, live), state):
        forget(server, live)


def forget(server: Any, live: LiveRequest) -> None:
    """Strike out a request that is over here: closed, detached, kept by a subclass, or served by another process."""
    # The observers first: who waits for an idle server reads exact counters then.
    if live.events.shutdown:
        Events.emit(live.events.shutdown, server, live)
    live.table.discard(live)


def drain_one(server: Any, live: LiveRequest) -> None:
    """Tell whoever serves a request that a drain has begun."""
    preparation = live.preparation
    if preparation is not None and live.process is None and preparation.is_young():
        _end_preparation_later(server, live, preparation)
        return
    if live.process is None and not live.detached and live.kept is None:
        reach(live, server.drain_request)
    # Not else: a child may have begun meanwhile, and what was told was this process's closed copy.
    if live.process is not None:
        live.process.drain()


def _end_preparation_later(server: Any, live: LiveRequest, preparation: Preparation) -> None:
    """Let a handshake that has just begun come to its end."""
    acceptor = serving_of(server).acceptor
    # A thread or greenlet that waits sees itself that a drain has begun.
    if live.parking is None or acceptor is None:
        return

    def end() -> None:
        if live.preparation is preparation:
            reach(live, end_input)

    acceptor.loop.call_soon(lambda: acceptor.loop.call_later(DRAIN_GRACE, end))


def tell_cut(server: Any, live: LiveRequest) -> None:
    """Say in the log that a request did not end by itself."""
    log.warning("%s: cut %s, in progress for %.1f s", server, live.client_address, time.monotonic() - live.since)


def cut_others(server: Any) -> list[LiveRequest]:
    """End the connection of every request in progress but the calling thread's own; say which.

    Not of those that a subclass keeps: what it does with them is its own business.
    """
    late = [live for live in table_of(server).others() if live.kept is None]
    for live in late:
        tell_cut(server, live)
        if live.process is None and not live.detached:
            reach(live, cut)
        if live.process is not None:
            live.process.cut()
    return late
