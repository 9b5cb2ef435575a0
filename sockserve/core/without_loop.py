"""One request without a loop, for ``handle_request()``."""

from __future__ import annotations

from sockserve.core.accept_failures import not_taken
from sockserve.core.active_requests import LiveRequest
from sockserve.core.limits import limits_of
from sockserve.core.request_life import take
from sockserve.core.servable import AnyServer
from sockserve.core.serving import events_of, table_of
from sockserve.core.sweeping import begin_sweeping
from sockserve.net.watched_socket import forget_taken

__all__ = ["take_without_loop"]


def take_without_loop(server: AnyServer) -> bool:
    """Take one request that is ready; return whether there was one. In the thread that calls ``handle_request()``.

    Raises ListenerLostError, what ``handle_error()`` raises, and what is no Exception.
    """
    begin_sweeping(server, None)
    table_of(server).limits = limits_of(server)
    forget_taken()
    try:
        request, client_address = server.get_request()
    except BaseException as error:
        return not_taken(server, None, error, True)
    forget_taken()
    take(server, LiveRequest(table_of(server), events_of(server), request, client_address))
    return True
