"""What follows when ``get_request()`` raises: whose error it is, and what hears of it.

Rule 1. What ``accept()`` or ``recvfrom()`` raised is judged by the table of ``net/accept_errors``.
Rule 2. An error that comes after one of them has returned belongs to that client: the request is reported and closed
as any that fails, and accepting goes on without a pause.
Rule 3. Any other error is judged by the table too: nothing was taken from the queue, so it may come again at once.
"""

from __future__ import annotations

from sockserve.core.active_requests import LiveRequest
from sockserve.core.events import Events
from sockserve.core.request_life import close, contain
from sockserve.core.servable import Address, AnyServer, Request
from sockserve.core.serving import Accepting, events_of, table_of
from sockserve.errors import ListenerLostError, RefusedError
from sockserve.log import log
from sockserve.net.accept_errors import Verdict, judge
from sockserve.net.tls import refusal_of
from sockserve.net.watched_socket import take_taken

__all__ = ["not_taken"]


def not_taken(server: AnyServer, acceptor: Accepting | None, error: BaseException, remembers: bool) -> bool:
    """Do what follows when ``get_request()`` raised; true if a request was taken all the same, which is over now.

    ``remembers``: ``take_taken()`` knows what this thread took. Called inside the ``except``; raises ListenerLostError,
    what ``handle_error()`` raises, and what is no Exception.
    """
    try:
        if remembers and (taken := take_taken()) is not None:
            _end_taken(server, acceptor, taken, error)
            return True
        if not isinstance(error, BlockingIOError):
            _accept_failed(server, acceptor, error, judge(error))
        elif acceptor is not None:
            # Another process or thread was quicker, or a loop has taken all that there was.
            acceptor.recovered()
    finally:
        # Or this frame and the error hold each other, and so an accepted connection that is in a frame below.
        del error
    return False


def _accept_failed(server: AnyServer, acceptor: Accepting | None, error: BaseException, verdict: Verdict) -> None:
    """Nothing was taken. Called inside the ``except``; raises ListenerLostError, and what is no Exception."""
    if not isinstance(error, Exception):
        try:
            raise error
        finally:
            # Or this frame and the error hold each other, and so an accepted connection that is in a frame below.
            del error
    if verdict is Verdict.NOTHING_THERE:
        return
    if heard := events_of(server).error:
        Events.emit(heard, server, None, error)
    if not isinstance(error, OSError):
        server.handle_error(None, None)
    if acceptor is not None:
        acceptor.failed(error, verdict)
    elif verdict is Verdict.FATAL:
        raise ListenerLostError(f"the socket of {server} cannot accept: {error}") from error


def _end_taken(
    server: AnyServer, acceptor: Accepting | None, taken: tuple[Request, Address], error: BaseException
) -> None:
    """Report an error to the request that was taken before it, and close that; raises what is no Exception.

    Called inside the ``except``.
    """
    if acceptor is not None:
        acceptor.recovered()
    request, client_address = taken
    if request is None:
        # Received in a way that leaves nothing to close.
        if not isinstance(error, Exception):
            raise error
        if heard := events_of(server).error:
            Events.emit(heard, server, None, error)
        server.handle_error(None, None)
        return
    live = LiveRequest(table_of(server), events_of(server), request, client_address)
    contain(server, live, lambda _, live: _fail(server, live, error))


def _fail(server: AnyServer, live: LiveRequest, error: BaseException) -> None:
    live.table.enter(live)
    if live.events.accept:
        Events.emit(live.events.accept, server, live)
    refusal = refusal_of(error)
    if not isinstance(refusal, RefusedError):
        raise error
    # An override wrapped what it accepted, and the client failed the handshake. Not to handle_error(), which programs
    # let raise: socketserver says nothing of an OSError here.
    live.outcome = "refused"
    if live.events.error:
        Events.emit(live.events.error, server, live, refusal)
    log.info("refused %s: %s", live.client_address, refusal)
    close(server, live)
