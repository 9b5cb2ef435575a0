"""PREPARE: what comes before the first byte of a connection's handler, the PROXY header and the TLS handshake.

Rule 1. One deadline, ``handshake_timeout``, is for all of it, however slowly the peer sends.
Rule 2. The steps never wait: they say for what they would. So the same steps are waited for by a thread, by a greenlet,
or in a pool by no worker at all.
Rule 3. Not a byte is read behind the PROXY header, and the socket that TLS made is the request before the handshake
begins: a drain reaches it.
Rule 4. A peer that leaves without a byte has left; one that does anything else wrong is refused.
"""

from __future__ import annotations

import math
import select
import socket
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from sockserve.core.active_requests import ActiveRequests, LiveRequest
from sockserve.core.connection_info import ConnectionInfo, TLSInfo, plain_info, tls_info_of
from sockserve.core.poller import wait_readable
from sockserve.core.preparation_settings import is_proxied, prepares, tls_of
from sockserve.core.servable import Address, AnyServer, Request
from sockserve.core.serving import Served, table_of
from sockserve.errors import DatagramTruncatedError, HandshakeError, PeerError, ProxyHeaderError, RefusedError
from sockserve.net.closing import end_input
from sockserve.net.tls import SHORTEST, reason_of, recv_beneath, wait_writable, wrap_accepted
from sockserve.net.waiting_socket import WaitingSocket
from sockserve.seconds import limit_of

if TYPE_CHECKING:
    from sockserve.net.proxy_header import ProxyHeader
    from sockserve.net.tls_settings import TLS

__all__ = [
    "DRAIN_GRACE",
    "Preparation",
    "complete",
    "is_unknown",
    "prepare",
    "record_of",
    "sees_drain",
]

DRAIN_GRACE = 1.0
"""Seconds that a drain gives one that has just begun: a healthy handshake is over by then, also across an ocean and on
a busy machine. Ended at once, 2 of 193 clients were lost at each restart."""

LOOK_AGAIN = 0.25
"""Seconds after which a thread that waits sees that a drain has begun."""

RETRY = 0.02
"""Seconds between two looks at a hello that grows, where the system cannot tell when there is more of it."""

_AF_UNIX = getattr(socket, "AF_UNIX", None)


def sees_drain(server: object, live: LiveRequest) -> bool:
    """Whether a request is yet to be prepared, or has just begun: then its steps see by themselves that a drain begins.

    Once they are over they call ``drain_request()``.
    """
    preparation: Preparation | None = live.preparation
    if preparation is not None:
        return preparation.is_young()
    return live.state in ("accept", "verify", "dispatch") and prepares(server)


def prepare(server: AnyServer, live: LiveRequest) -> bool:
    """Prepare a request; false: it is parked, and ``prepare()`` is to be called again when its client has spoken.

    Raises RefusedError, PeerError; what ``TLS.context_for()`` raises.
    """
    preparation: Preparation | None = live.preparation
    if preparation is None:
        preparation = live.preparation = Preparation(server, live)
        if server._serving_has_steps:  # noqa: SLF001 - the servers' answer to this module
            preparation.begin_with_server()
    try:
        while not preparation.advance():
            if live.parking is not None and not preparation.must_stay:
                if live.parking.park(live, preparation.seconds_left()):
                    # Another thread may have it by now.
                    return False
                # No event of its client would be heard any more; here it is.
                preparation.hurry()
            preparation.wait()
    except BaseException:
        live.preparation = None
        raise
    _end(server, live)
    return True


def record_of(server: AnyServer, request: Request, client_address: Address) -> LiveRequest:
    """The record of a request that ``complete()`` is to be called for, also of one that the server does not know."""
    live = table_of(server).find(request)
    if live is None:
        live = LiveRequest(ActiveRequests(), None, request, client_address)
    # It becomes no other request's: what is found out now is this one's.
    live.escaped = True
    return live


def is_unknown(live: LiveRequest) -> bool:
    """Whether ``record_of()`` made it, and no server will close its request."""
    return live.events is None


def complete(server: AnyServer, live: LiveRequest, tls: TLS) -> None:
    """Shake hands on a connection whose handler runs, in this thread or greenlet. Raises as ``prepare()``."""
    preparation = live.preparation = Preparation(server, live)
    preparation.begin_with_tls(tls)
    try:
        while not preparation.advance():
            preparation.wait()
    finally:
        _end(server, live)


def _end(server: AnyServer, live: LiveRequest) -> None:
    """A request is prepared, or will never be."""
    live.preparation = None
    # In this order: a drain does it the other way round, and leaves alone what is being prepared.
    if getattr(server, "draining", False) and hasattr(server, "drain_request"):
        server.drain_request(live.request)


class Preparation:
    """The steps of one connection, and what they wait for."""

    def __init__(self, server: AnyServer, live: LiveRequest) -> None:
        limit = limit_of(getattr(server, "handshake_timeout", 10.0), "handshake_timeout")
        self._limit = limit
        self._server = server
        self._live = live
        self._deadline = math.inf if limit is None else time.monotonic() + max(limit, SHORTEST)
        self._begun = time.monotonic()
        self._has_spoken = False
        self._has_ended = False
        self._is_tls = False
        self._wants_output = False
        self._retries = False
        self._hurries = False
        self._steps: Generator[None, None, None] | None = None

    def begin_with_server(self) -> None:
        """All that the server's settings ask for."""
        self._steps = self._prepare()

    def begin_with_tls(self, tls: TLS) -> None:
        """A handshake on a connection that is in use."""
        self._steps = self._start_tls(tls)

    def advance(self) -> bool:
        """Do what can be done now; true if that was all. Raises RefusedError, PeerError."""
        if self._steps is None:
            return True
        try:
            next(self._steps)
        except StopIteration:
            return True
        return False

    @property
    def must_stay(self) -> bool:
        """Whether no event tells when to go on, or only one that a parking place does not wait for."""
        return self._wants_output or self._retries

    def seconds_left(self) -> float | None:
        """Seconds until the deadline; None: there is none."""
        return None if self._deadline == math.inf else max(SHORTEST, self._deadline - time.monotonic())

    def hurry(self) -> None:
        """Refuse it as a drain does, at once or as soon as it is no longer young."""
        self._hurries = True
        if not self.is_young():
            end_input(self._live.request)

    def is_young(self) -> bool:
        """Whether a drain lets it go on for a moment."""
        return time.monotonic() - self._begun < DRAIN_GRACE

    def wait(self) -> None:
        """Wait in this thread or greenlet until ``advance()`` may get further, or has something else to say."""
        sock = self._live.request
        seconds = min(self._deadline - time.monotonic(), LOOK_AGAIN)
        if self._wants_output:
            wait_writable(sock, seconds)
        elif isinstance(sock, WaitingSocket):
            # It is told of each byte that comes.
            sock.wait_readable(seconds)
        elif self._retries:
            self._has_ended = _wait_for_end(sock, min(seconds, RETRY))
        else:
            wait_readable(sock.fileno(), max(0.0, seconds))

    def _prepare(self) -> Generator[None, None, None]:
        server, live = self._server, self._live
        peer = live.client_address
        request = live.request
        if not isinstance(request, socket.socket):
            self._unpack_datagram(request, peer)
            return
        header = None
        before = request.gettimeout()
        request.settimeout(0)
        try:
            if is_proxied(server, peer):
                header = yield from self._read_proxy_header(request)
                self._has_spoken = False
            tls = tls_of(server) if server.tls_at_once else None
            name = None
            if tls is not None:
                tls.check()
                name = yield from self._shake_hands(request, tls)
                yield from self._let_speak(live.request)
        finally:
            _set_timeout(live.request, before)
        self._note(peer, header, None if tls is None else tls_info_of(live.request, name))

    def _unpack_datagram(self, request: Request, peer: Address) -> None:
        """Take the PROXY header off a datagram; its handler gets the rest."""
        if not is_proxied(self._server, peer):
            return
        from sockserve.net.proxy_header import read_header  # noqa: PLC0415 - as above

        data, sock = request
        header, size = read_header(data, is_datagram=True, allows_unix=sock.family == _AF_UNIX)
        data = data[size:]
        limit = self._server.max_packet_size
        if len(data) > limit:
            raise DatagramTruncatedError(limit, peer)
        self._live.table.replace(self._live, (data, sock))
        self._note(peer, header, None)

    def _note(self, peer: Address, header: ProxyHeader | None, tls: TLSInfo | None) -> None:
        live = self._live
        plain = plain_info(live.request, peer)
        local = plain.local_address
        client = peer if header is None or header.source is None else header.source
        destination = local if header is None or header.destination is None else header.destination
        live.connection_info = ConnectionInfo(peer, client, local, destination, header, tls, plain.peer_credentials)
        live.client_address = client

    def _start_tls(self, tls: TLS) -> Generator[None, None, None]:
        live = self._live
        request = live.request
        known: ConnectionInfo | None = live.connection_info
        peer = live.client_address if known is None else known.peer_address
        before = request.gettimeout()
        request.settimeout(0)
        tls.check()
        # A client that leaves now was in the middle of something.
        self._has_spoken = True
        try:
            name = yield from self._shake_hands(request, tls)
        finally:
            _set_timeout(live.request, before)
        self._note(peer, None if known is None else known.proxy_header, tls_info_of(live.request, name))

    def _pause(self, *, output: bool = False, retry: bool = False) -> Generator[None, None, None]:
        self._wants_output = output
        self._retries = retry
        yield
        if time.monotonic() >= self._deadline:
            raise self._refusal(f"not done within {self._limit:g} s")
        ends = self._hurries or getattr(self._server, "draining", False)
        if ends and not self.is_young():
            raise self._refusal("the server ends")

    def _let_speak(self, sock: Any) -> Generator[None, None, None]:
        """In a drain, let a client that has just shaken hands send its request: it is on its way, and would be lost."""
        while getattr(self._server, "draining", False) and self.is_young() and not sock.pending():
            try:
                recv_beneath(sock, 1, socket.MSG_PEEK)
            except BlockingIOError:
                self._wants_output = self._retries = False
                yield
            except OSError:
                return
            else:
                return

    def _refusal(self, reason: str) -> RefusedError:
        if self._is_tls:
            return HandshakeError(f"TLS handshake failed: {reason}")
        return ProxyHeaderError(f"PROXY header: {reason}")

    def _gone(self, error: OSError | None = None) -> PeerError:
        if not self._has_spoken:
            return PeerError("closed without a byte" if error is None else f"gone without a byte: {error}")
        return self._refusal("the peer has left" if error is None else error.strerror or str(error))

    def _peek(self, sock: socket.socket, size: int, known: int = 0) -> Generator[None, None, bytes]:
        """More input than the ``known`` bytes, or b"" at its end; nothing is taken from it."""
        while True:
            try:
                data = sock.recv(size, socket.MSG_PEEK)
            except BlockingIOError:
                yield from self._pause()
                continue
            except OSError as error:
                raise self._gone(error) from error
            if data:
                self._has_spoken = True
            return data if len(data) > known else b""

    def _read_proxy_header(self, sock: socket.socket) -> Generator[None, None, ProxyHeader]:
        from sockserve.net.proxy_header import LONGEST_HEADER, read_header  # noqa: PLC0415 - as above

        allows_unix = sock.family == _AF_UNIX
        taken = b""
        while True:
            seen = yield from self._peek(sock, LONGEST_HEADER - len(taken))
            if not seen:
                raise self._gone()
            header, size = read_header(taken + seen, allows_unix=allows_unix)
            # All of it belongs to the header as long as that has no end: so it need not be peeked at again.
            rest = size - len(taken) if header is not None else len(seen)
            try:
                taken += sock.recv(rest)
            except OSError as error:
                raise self._gone(error) from error
            if header is not None:
                return header

    def _shake_hands(self, sock: socket.socket, tls: TLS) -> Generator[None, None, str | None]:
        import ssl  # noqa: PLC0415 - TLS settings have imported it

        self._is_tls = True
        name = yield from self._look_at_hello(sock, tls)
        wrapped: Any = wrap_accepted(tls.context_for(name), sock)
        if isinstance(self._server, Served):
            wrapped = self._server._serving_wrapped(wrapped)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - the mix-ins' answer
        self._live.table.replace(self._live, wrapped)
        while True:
            try:
                wrapped.do_handshake()
            except ssl.SSLWantReadError:
                yield from self._pause()
            except ssl.SSLWantWriteError:
                yield from self._pause(output=True)
            except OSError as error:
                raise HandshakeError(f"TLS handshake failed: {reason_of(error)}") from error
            else:
                return name

    def _look_at_hello(self, sock: socket.socket, tls: TLS) -> Generator[None, None, str | None]:
        from sockserve.net.client_hello import LONGEST_HELLO, look_at_hello  # noqa: PLC0415 - as ssl

        known = 0
        is_waiting_for_all = False
        try:
            while True:
                seen = yield from self._peek(sock, LONGEST_HELLO, known)
                if not seen:
                    if not known:
                        raise self._gone()
                    if is_waiting_for_all or self._has_ended:
                        # The end of input: the handshake will say so.
                        return None
                    yield from self._pause(retry=True)
                    continue
                if tls.answer_plain and seen[:1].isalpha():
                    _answer(sock, tls.answer_plain)
                    raise self._refusal("plain text, to a server of TLS")
                name, needed = look_at_hello(seen)
                if not needed:
                    return name
                known = len(seen)
                is_waiting_for_all = _wait_for_all(sock, needed)
                yield from self._pause(retry=not is_waiting_for_all)
        finally:
            if is_waiting_for_all:
                _wait_for_all(sock, 1)


def _wait_for_all(sock: socket.socket, size: int) -> bool:
    """Make a socket readable only when this many bytes are there; say whether that is so."""
    # Linux takes the option for every socket, and Unix ones do not heed it.
    if sock.family == _AF_UNIX:
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
    except OSError:
        return False
    return True


def _wait_for_end(sock: socket.socket, seconds: float) -> bool:
    """Wait this long, or until the peer sends no more, which is true then where the system tells it."""
    if not hasattr(select, "poll"):
        return bool(select.select([], [], [sock], max(0.0, seconds))[2])
    poll = select.poll()
    poll.register(sock, getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(max(0.0, seconds) * 1000))


def _answer(sock: socket.socket, answer: bytes) -> None:
    try:
        sock.send(answer)
    except OSError:
        # It left, or does not read.
        pass


def _set_timeout(sock: socket.socket, timeout: float | None) -> None:
    try:
        sock.settimeout(timeout)
    except OSError:
        # EBADF: it was closed meanwhile, which what comes next will find out.
        pass
