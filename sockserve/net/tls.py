"""TLS on a connection that the ssl module wrapped: the handshake under a deadline, and a clean end.

Nothing here imports ssl. A program that uses it has imported it; one that does not need not pay for it.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sockserve.errors import HandshakeError
from sockserve.seconds import limit_of, socket_limit_of

if TYPE_CHECKING:
    import ssl

    from typing_extensions import TypeIs

SHORTEST = 0.001
"""Seconds that a handshake gets at least: a limit of 0 refuses whatever is not there at once."""

__all__ = ["close_notify", "defer_handshake", "handshake", "is_tls", "recv_beneath", "refusal_of", "wrapped_like"]


def is_tls(sock: object) -> TypeIs[ssl.SSLSocket]:
    """Say whether a socket is an ``ssl.SSLSocket``. Never raises; costs next to nothing."""
    if type(sock) is socket.socket:
        return False
    # getattr: another thread may be in the middle of importing ssl.
    tls_class: Any = getattr(sys.modules.get("ssl"), "SSLSocket", None)
    return tls_class is not None and isinstance(sock, tls_class)


def defer_handshake(listener: socket.socket) -> None:
    """Make ``accept()`` on a listener that an SSLContext wrapped return without a handshake. No effect on any other.

    The accepted connection is an SSLSocket all the same; ``handshake()`` has to come before anything is read from it.
    """
    if is_tls(listener):
        listener.do_handshake_on_connect = False  # type: ignore[attr-defined]  # missing in typeshed
        if listener.suppress_ragged_eofs:  # type: ignore[attr-defined]  # missing in typeshed
            # Only the option makes it true: without it OpenSSL 3 calls an end of input without close_notify a fatal
            # error, answers with an alert, and lets nothing be written any more. A drain ends the input so.
            listener.context.options |= sys.modules["ssl"].OP_IGNORE_UNEXPECTED_EOF


def wrapped_like(listener: socket.socket, twin: socket.socket) -> socket.socket:
    """Return ``twin``, or if an SSLContext wrapped the listener, what the same context makes of it in the same way."""
    if not is_tls(listener):
        return twin
    return listener.context.wrap_socket(
        twin,
        server_side=listener.server_side,
        do_handshake_on_connect=listener.do_handshake_on_connect,  # type: ignore[attr-defined]  # missing in typeshed
        suppress_ragged_eofs=listener.suppress_ragged_eofs,  # type: ignore[attr-defined]  # missing in typeshed
    )


def handshake(sock: ssl.SSLSocket, timeout: float | None) -> None:
    """Shake hands, all of it within ``timeout`` seconds, however slowly the peer sends; None: without limit.

    No effect if hands were shaken already. Whatever happens the socket has its own time-out again afterwards. Raises
    HandshakeError, with a reason of one line, from the ssl module's or the system's exception.
    """
    limit = limit_of(timeout, "handshake_timeout")
    before = sock.gettimeout()
    try:
        # One deadline for the whole handshake, not a limit for each wait: CPython's _ssl.c, do_handshake.
        # 0 would mean not to wait at all, and leave what has arrived unread.
        sock.settimeout(None if limit is None else socket_limit_of(max(limit, SHORTEST)))
        sock.do_handshake()
    except OSError as error:
        raise HandshakeError(f"TLS handshake failed: {_reason(error, timeout)}") from error
    finally:
        _set_timeout(sock, before)


def refusal_of(error: BaseException) -> BaseException:
    """Give the HandshakeError for what ssl raised while it wrapped a connection; any other error as it is."""
    ssl = sys.modules.get("ssl")
    if ssl is None or not isinstance(error, ssl.SSLError) or not isinstance(error, OSError):
        return error
    refusal = HandshakeError(f"TLS handshake failed: {_reason(error, None)}")
    refusal.__cause__ = error
    return refusal


def close_notify(sock: ssl.SSLSocket, timeout: float, peer_stalls: Callable[[bool], object] | None = None) -> None:
    """Tell the peer that no more data comes (RFC 8446, 6.1), without waiting for its answer. Never raises OSError.

    Takes at most ``timeout`` seconds, and those only while the peer does not take what was sent before:
    ``peer_stalls(True)`` is called before such a wait and ``peer_stalls(False)`` after it. Says nothing
    if that ended in the middle of a record: the peer must see that data is missing. The connection stays open, can
    then be half-closed, and what the peer still sends is encrypted. No effect on one that is closed, unwrapped, or
    never got through its handshake.
    """
    ssl = sys.modules["ssl"]
    deadline = time.monotonic() + timeout
    before = sock.gettimeout()
    # Without a time-out unwrap() would wait for the peer's close_notify.
    _set_timeout(sock, 0)
    try:
        while True:
            try:
                sock.unwrap()
                break
            except ssl.SSLWantWriteError:
                if peer_stalls is not None:
                    peer_stalls(True)
                has_room = _wait_writable(sock, deadline - time.monotonic())
                if peer_stalls is not None:
                    peer_stalls(False)
                if not has_room:
                    break
    except (OSError, ValueError):
        # SSLWantReadError: said, and not answered yet. Any other: the peer is gone, or TLS was not up or is over.
        pass
    finally:
        _set_timeout(sock, before)


def recv_beneath(sock: ssl.SSLSocket, size: int, flags: int = 0) -> bytes:
    """What ``recv()`` of the socket beneath TLS gives: records as they are. Raises as that."""
    # A cooperative socket lets others run meanwhile.
    receive: Callable[[ssl.SSLSocket, int, int], bytes] = getattr(type(sock), "recv_beneath", socket.socket.recv)
    return receive(sock, size, flags)


def _wait_writable(sock: socket.socket, timeout: float) -> bool:
    wait: Callable[[float], bool] | None = getattr(sock, "wait_writable", None)
    if wait is not None:
        return wait(timeout)
    if not hasattr(select, "poll"):
        return bool(select.select([], [sock], [], max(0.0, timeout))[1])
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(max(0.0, timeout) * 1000))


def _reason(error: OSError, timeout: float | None) -> str:
    if isinstance(error, TimeoutError) and error.errno is None and timeout is not None:
        return f"not done within {timeout:g} s"
    # OpenSSL's own words, as WRONG_VERSION_NUMBER, or the text without the line of _ssl.c at its end.
    of_openssl: str | None = getattr(error, "reason", None)
    return of_openssl.replace("_", " ").lower() if of_openssl else (error.strerror or str(error)).partition(" (_ssl")[0]


def _set_timeout(sock: socket.socket, timeout: float | None) -> None:
    try:
        sock.settimeout(timeout)
    except OSError:
        # EBADF: another thread closed it, which what comes next will find out.
        pass
