"""The whole life of a request in one piece, for requests that the loop's thread serves at once.

Rule 1. It does what ``request_life`` does, step by step, with the same record, for a server without observers of
requests: neither a hook nor an observer can tell the two apart.
Rule 2. A hook that is overridden, in a class or on the server object, is called; of our own hooks the work is done in
place, because a short request's steps cost less than the calls between them.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TypeVar

from sockserve.core.active_requests import LiveRequest
from sockserve.core.aftercare import let_linger
from sockserve.core.events import Events
from sockserve.core.replaced import successor
from sockserve.core.request_life import end_failed, fail, finish_unprepared, give_up, refuse, serve, step_of
from sockserve.core.servable import Address, AnyServer, Request, Servable
from sockserve.core.serving import table_of
from sockserve.errors import PeerError
from sockserve.net.closing import half_close

__all__ = ["end_stream", "own", "serves_at_once", "take_again"]

Hook = TypeVar("Hook", bound=Callable[..., object])

_OWN: set[object] = set()
"""Hooks that do what ``take_again()`` does in place."""


_UNWRAPPED = (socket.socket, tuple)
"""Connections and datagrams of which ``prepare_request()`` has nothing to change."""


def own(hook: Hook) -> Hook:
    """Mark a hook of our own that ``take_again()`` need not call: it does the same in place.

    ``verify_request()`` that says yes, ``prepare_request()`` that changes nothing of a plain socket,
    ``finish_request()`` that calls ``RequestHandlerClass``, ``shutdown_request()`` that calls ``end_stream()``, and
    ``close_request()`` that calls ``close()``.
    """
    _OWN.add(hook)
    return hook


def serves_at_once(server: Servable, events: Events) -> bool:
    """Whether for this server ``take_again()`` is as good as ``take()``: no hook nor observer could tell."""
    is_plain = not events.hear_all and step_of(server.process_request) is serve
    return is_plain and table_of(server).limits is None


def take_again(server: AnyServer, live: LiveRequest, request: Request, client_address: Address) -> bool:
    """As ``take()``, with a record that has served before: true if it may serve once more, since nothing else has it.

    In the loop's thread, which serves the request itself.
    """
    # perf: in one piece, 4500 of 23 000 instructions less with all hooks called, NOTEBOOK.md#one-try-for-each-request
    table = live.table
    live.key = id(request)
    live.request = request
    live.client_address = client_address
    live.since = time.monotonic()
    live.state = "verify"
    live.end_told = False
    try:
        table.by_id[live.key] = live
        if table.watchers:
            table.tell_watchers()
        # Each hook is looked up when it is due: a handler may have overridden a later one on the server object.
        is_own = getattr(server.verify_request, "__func__", None) in _OWN
        if not is_own and not server.verify_request(request, client_address):
            refuse(server, live)
            return False
        live.state = "prepare"
        is_own = type(request) in _UNWRAPPED and getattr(server.prepare_request, "__func__", None) in _OWN
        # For each anew: TLS may have been switched on since the last.
        # perf: not at once by _serving_prepares, 800 instructions fewer on 3.11, NOTEBOOK.md#one-try-for-each-request
        if not (
            is_own
            and server.tls is None
            and server.direct_from is None
            and not server.proxy_from
            and not server._serving_verifies_client  # noqa: SLF001 - of the servers that are served here
        ):
            if server._serving_prepares:  # noqa: SLF001 - as above
                serve(server, live)
                return False
            if not is_own:
                try:
                    prepared, client_address = server.prepare_request(request, client_address)
                except PeerError as error:
                    finish_unprepared(server, live, error)
                    return False
                live.client_address = client_address
                if prepared is not request:
                    table.replace(live, prepared)
                    request = prepared
        live.state = "handle"
        if getattr(server.finish_request, "__func__", None) in _OWN:
            server.RequestHandlerClass(request, client_address, server)
        else:
            server.finish_request(request, client_address)
        live.state = "shutdown"
        try:
            if live.detached:
                pass
            elif getattr(server.shutdown_request, "__func__", None) in _OWN:
                # Not a local variable: a hook may have replaced it since.
                end_stream(server, live.request, live)
            else:
                server.shutdown_request(live.request)
        except Exception as error:
            end_failed(server, live, error)
            return False
        finally:
            table.by_id.pop(live.key, None)
            if table.watchers:
                table.tell_watchers()
    except Exception as error:
        # Not that of handle_error(), after the close: it propagates.
        fail(server, live, error)
        return False
    except BaseException:
        give_up(server, live)
        raise
    if live.escaped or live.detached:
        return False
    live.request = live.handler = None
    return True


def end_stream(server: AnyServer, request: Request, live: LiveRequest | None) -> None:
    """Half-close a connection, let it linger if its peer may not have the whole answer yet, and close it. Never waits.

    If the handler's ``connection`` or ``request`` is another socket, into which this one was wrapped, that is closed.
    """
    if live is not None:
        # Before the half-close: a client that has seen its end, and looks, must not find itself in progress.
        live.end_told = True
    try:
        patience = server._serving_patience  # noqa: SLF001 - of the servers that are served here
        must_linger = half_close(request, patience, live)
        if must_linger:
            let_linger(server, request)
        elif must_linger is None and live is not None and (taken := successor(live)) is not None:
            if half_close(taken, patience, live):
                let_linger(server, taken)
            taken.close()
    finally:
        if getattr(server.close_request, "__func__", None) in _OWN:
            request.close()
        else:
            server.close_request(request)
