"""A request's life from VERIFY to SHUTDOWN, the same for every server and every way to run a handler.

Rule 1. Whatever a step raises is reported once, to ``handle_error()`` inside the ``except``; then the request is
closed. What ``handle_error()`` raises propagates, and nothing else does that is an Exception.
Rule 2. A request is closed exactly once, in the thread that served it, unless it was detached or a subclass kept it.
Rule 3. Nothing here needs more of a server than ``Servable``, the hooks of ``socketserver``: a server of the standard
library is served as well.

``contain()`` is the try, except and finally of every request. ``take_again()`` and ``resume()`` have it once more in
their own code, as the two ways that a busy server goes for each request or message.
"""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from sockserve.core.active_requests import LiveRequest
from sockserve.core.aftercare import part_from
from sockserve.core.events import Events
from sockserve.core.preparation_settings import is_proxied
from sockserve.core.preparing import prepare
from sockserve.core.request_states import RequestState
from sockserve.core.servable import Address, Preparing, Request, Servable
from sockserve.core.serving import table_of
from sockserve.errors import PeerError, RefusedError
from sockserve.log import log
from sockserve.net.closing import end_input
from sockserve.net.departure import has_left

__all__ = [
    "begin",
    "call",
    "close",
    "contain",
    "end_failed",
    "fail",
    "finish_unprepared",
    "forget",
    "give_up",
    "handle",
    "let_go",
    "refuse",
    "resume",
    "serve",
    "step_of",
    "take",
    "takes_record",
    "unprepared",
]


_UNHEARD = Events(())

unprepared: dict[int, PeerError] = {}
"""By identity: requests whose ``finish_request()`` is called only so that what ``process_request()`` took is given
back, with the error to raise in place of running the handler. Empty nearly always."""

# Not Servable: a step is made for one class of servers, often an unbound method of it, and is called with those alone.
Step: TypeAlias = Callable[[Any, LiveRequest], None]

_STEPS: dict[object, Step] = {}
"""What a hook does with the record of its request; only hooks that are not overridden are found here."""

Hook = TypeVar("Hook", bound=Callable[..., object])


def takes_record(step: Step) -> Callable[[Hook], Hook]:
    """Mark a hook that looks up its request's record and then does ``step(server, live)``."""

    def mark(hook: Hook) -> Hook:
        _STEPS[hook] = step
        return hook

    return mark


def step_of(hook: object) -> Step | None:
    """What a hook does with the record of its request; None if it was not marked, an override for one."""
    return _STEPS.get(getattr(hook, "__func__", None))


def call(hook: Any, server: Servable, live: LiveRequest) -> None:
    """Call ``hook(request, client_address)``; without the look-up if it is one that was marked."""
    try:
        step = _STEPS[hook.__func__]
    except (AttributeError, KeyError, TypeError):
        hook(live.request, live.client_address)
    else:
        # As long as the request is served it would keep a method alive for itself.
        del hook
        step(server, live)


def take(server: Servable, live: LiveRequest) -> None:
    """Verify what ``get_request()`` returned and hand it to ``process_request()``. In the thread that took it."""
    contain(server, live, _verify_and_process)
    # Still "verify": a subclass's process_request() served it in its own way, or keeps it for process_request_thread().
    if live.state == "verify":
        let_go(server, live, "verify")


def _verify_and_process(server: Servable, live: LiveRequest) -> None:
    # Here and not before: an exception of a signal handler must not leave it in the table.
    live.table.enter(live)
    events = live.events
    if events.accept:
        Events.emit(events.accept, server, live)
    live.state = "verify"
    limits = live.table.limits
    if limits is not None and not limits.admit(live, is_proxied=_comes_by_proxy(server, live)):
        _turn_away(server, live, limits.farewell)
        return
    accepted = server.verify_request(live.request, live.client_address)
    if events.verify:
        Events.emit(events.verify, server, live, bool(accepted))
    if accepted:
        call(server.process_request, server, live)
    else:
        refuse(server, live)


def _comes_by_proxy(server: Any, live: LiveRequest) -> bool:
    """Whether its address is a proxy's, and the client's is still to come."""
    if not getattr(server, "proxy_from", ()):
        return False
    try:
        return is_proxied(server, live.client_address)
    except RefusedError:
        # PREPARE will say so.
        return False


def _turn_away(server: Any, live: LiveRequest, farewell: bytes | None) -> None:
    """Close a request that ``limits`` refuse: no hook is asked, and of those of its end ``close_request()`` alone.

    Raises what ``handle_error()`` raises.
    """
    live.outcome = "refused"
    live.state = "shutdown"
    try:
        part_from(server, live.request, farewell)
        server.close_request(live.request)
    except Exception as error:
        end_failed(server, live, error)
    finally:
        forget(server, live)


def begin(server: Servable, request: Request, client_address: Address) -> LiveRequest:
    """The record of a request that the calling thread is to serve or to give away.

    It is made now if the caller got the request without ``get_request()``; then no observer hears of it.
    """
    table = table_of(server)
    live = table.take(request)
    if live is None:
        live = table.add(request, client_address, _UNHEARD)
    live.thread = threading.get_ident()
    return live


def serve(server: Preparing, live: LiveRequest) -> None:
    """PREPARE, HANDLE, and SHUTDOWN of a request that nothing went wrong with; raises what the steps raise.

    In the thread, process or greenlet that serves it.
    """
    events = live.events
    live.state = "prepare"
    # Rule 3. No local variable for the bound method: the frame would keep it alive for every waiting client.
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
        limits = live.table.limits if prepares else None
        if limits is not None and not limits.readmit(live):
            _turn_away(server, live, None)
            return
        if prepares and not server.verify_client(request, live.client_address):
            refuse(server, live)
            return
    if events.prepare:
        Events.emit(events.prepare, server, live)
    if live.parking is not None and live.parking.await_first_word(live):
        # Another thread may have it by now.
        return
    handle(server, live)


def handle(server: Any, live: LiveRequest) -> None:
    """HANDLE, and SHUTDOWN if the handler is done then."""
    live.state = "handle"
    server.finish_request(live.request, live.client_address)
    if live.continue_handler is None:
        events = live.events
        if events.handle:
            Events.emit(events.handle, server, live)
        close(server, live)
    else:
        _park_or_close(server, live)


def finish_unprepared(server: Servable, live: LiveRequest, error: PeerError) -> None:
    """Let ``finish_request()`` raise the peer's error, and end the request if an override of it hushes that up.

    So what an override of ``process_request()`` took is given back where it always is. Not for other errors of
    PREPARE: an override that does not call its base class would run its handler, for a client that was to have none.
    Here it finds a connection without input, on which TLS is not up.
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


def resume(server: Preparing, live: LiveRequest, has_input: bool) -> None:
    """As ``serve()``, with a request that was parked: until it is parked again or over. Errors are contained.

    ``has_input``: its client has spoken. False: it may have spoken or left, and the handler has to look.
    In the thread that took it out of its parking place.
    """
    # perf: not by contain(), 1400 instructions of 3900 a message fewer, NOTEBOOK.md#one-try-for-each-request
    try:
        live.thread = threading.get_ident()
        if live.preparation is not None:
            serve(server, live)
            return
        live.state = "handle"
        continue_handler, live.continue_handler = live.continue_handler, None
        if continue_handler is not None:
            continue_handler(has_input)
        _park_or_close(server, live)
    except Exception as error:
        fail(server, live, error)
    except BaseException:
        give_up(server, live)
        raise


def _park_or_close(server: Servable, live: LiveRequest) -> None:
    while (continue_handler := live.continue_handler) is not None:
        # Another thread may have the request as soon as this is true.
        if live.parking is not None and live.parking.park(live):
            return
        # No thread would hear its client any more: it ends as in a drain.
        end_input(live.request)
        live.continue_handler = None
        continue_handler(False)
    if live.events.handle:
        Events.emit(live.events.handle, server, live)
    close(server, live)


def contain(server: Servable, live: LiveRequest, step: Step) -> None:
    """Run a step that closes the request if all goes well; if not, report and close it here.

    In the thread that has the request. Raises what ``handle_error()`` raises, and what is no Exception.
    """
    try:
        step(server, live)
    except Exception as error:
        fail(server, live, error)
    except BaseException:
        give_up(server, live)
        raise


def refuse(server: Servable, live: LiveRequest) -> None:
    """Close a request to which ``verify_request()`` said no."""
    live.outcome = "refused"
    log.debug("%s: refused %s", server, live.client_address)
    close(server, live)


def fail(server: Servable, live: LiveRequest, error: Exception) -> None:
    """Report what a step raised, inside the ``except``, and close the request. Raises what ``handle_error()`` raises.

    An error that comes after the close is one that ``handle_error()`` raised: it is raised again, and no hook called.
    """
    if live.state == "shutdown":
        raise error
    live.state = "error"
    if isinstance(error, RefusedError):
        live.outcome = "refused"
    elif live.outcome != "cut":
        live.outcome = "left" if has_left(live.request, error, live.client_address) else "failed"
    try:
        if live.events.error:
            Events.emit(live.events.error, server, live, error)
        server.handle_error(live.request, live.client_address)
    finally:
        close(server, live)


def give_up(server: Servable, live: LiveRequest) -> None:
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


def close(server: Servable, live: LiveRequest) -> None:
    """SHUTDOWN: close the request, unless it was detached, and strike it out. What the hooks raise is reported.

    Raises what ``handle_error()`` raises.
    """
    live.state = "shutdown"
    if live.parking_record is not None and live.parking is not None:
        live.parking.detach(live)
    try:
        if not live.detached:
            server.shutdown_request(live.request)
    except Exception as error:
        end_failed(server, live, error)
    finally:
        # As forget() does.
        if live.events.shutdown:
            Events.emit(live.events.shutdown, server, live)
        live.table.discard(live)


def end_failed(server: Servable, live: LiveRequest, error: Exception) -> None:
    """``shutdown_request()`` raised: report it, and close what it may have left open without calling it again."""
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


def let_go(server: Servable, live: LiveRequest, state: RequestState) -> None:
    """An override has returned, and nothing of ours took the request out of ``state``.

    It was served in another way, or is kept to be served later, or was forgotten: then it is closed when the last
    reference to it is gone, as with ``socketserver``.
    """
    if not live.table.keep(live, functools.partial(forget, server, live), state):
        forget(server, live)


def forget(server: Servable, live: LiveRequest) -> None:
    """Strike out a request that is over here: closed, detached, kept by a subclass, or served by another process.

    From any thread.
    """
    # The observers first: a thread that waits for an idle server then reads exact counters.
    if live.events.shutdown:
        Events.emit(live.events.shutdown, server, live)
    live.table.discard(live)
