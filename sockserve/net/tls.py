"""TLS on a connection that the ssl module wrapped: the handshake under a deadline, and a clean end.

Nothing here imports ssl: a program that uses TLS has imported it, and other programs do not pay for the import.

Of a connection one thread at a time calls these functions.
"""

from __future__ import annotations

import errno
import select
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sockserve.errors import HandshakeError
from sockserve.net.waiting_socket import WaitingSocket
from sockserve.seconds import limit_of, socket_limit_of

if TYPE_CHECKING:
    import ssl

    from typing_extensions import TypeIs

SHORTEST = 0.001
"""Seconds that a handshake has at least: with a limit of 0 even input that has arrived would stay unread."""

__all__ = [
    "close_notify",
    "defer_handshake",
    "handshake",
    "is_part_of_record",
    "is_tls",
    "reason_of",
    "recv_beneath",
    "refusal_of",
    "wait_writable",
    "wrap_accepted",
    "wrapped_like",
]


def is_tls(sock: object) -> TypeIs[ssl.SSLSocket]:
    """Say whether a socket is an ``ssl.SSLSocket``. Never raises; costs next to nothing."""
    if type(sock) is socket.socket:
        return False
    # getattr: another thread may be importing ssl now, and the module have no such name yet.
    tls_class: Any = getattr(sys.modules.get("ssl"), "SSLSocket", None)
    return tls_class is not None and isinstance(sock, tls_class)


def defer_handshake(listener: socket.socket) -> None:
    """Make ``accept()`` on a listener that an SSLContext wrapped return without a handshake. No effect on any other.

    The accepted connection is an SSLSocket all the same. Call ``handshake()`` before anything is read from it.
    """
    if is_tls(listener):
        listener.do_handshake_on_connect = False  # type: ignore[attr-defined]  # missing in typeshed
        if listener.suppress_ragged_eofs:  # type: ignore[attr-defined]  # missing in typeshed
            # A drain ends the input without close_notify. Without this option OpenSSL 3 calls that a fatal error, sends
            # an alert, and refuses to write the answer.
            listener.context.options |= sys.modules["ssl"].OP_IGNORE_UNEXPECTED_EOF


def wrapped_like(listener: socket.socket, twin: socket.socket) -> socket.socket:
    """Return ``twin``, wrapped by the listener's SSLContext in the same way as the listener, if that is wrapped."""
    if not is_tls(listener):
        return twin
    return listener.context.wrap_socket(
        twin,
        server_side=listener.server_side,
        do_handshake_on_connect=listener.do_handshake_on_connect,  # type: ignore[attr-defined]  # missing in typeshed
        suppress_ragged_eofs=listener.suppress_ragged_eofs,  # type: ignore[attr-defined]  # missing in typeshed
    )


def handshake(sock: ssl.SSLSocket, timeout: float | None) -> None:
    """Complete the TLS handshake within ``timeout`` seconds, however slowly the peer sends; None: no limit.

    No effect if it is complete already. The socket has its own time-out again in any case. HandshakeError: it failed;
    the text gives the reason in one line, the cause is the exception of the ssl module or of the system.
    """
    limit = limit_of(timeout, "handshake_timeout")
    before = sock.gettimeout()
    try:
        # CPython takes the time-out as one deadline for the whole handshake: _ssl.c, do_handshake.
        sock.settimeout(None if limit is None else socket_limit_of(max(limit, SHORTEST)))
        sock.do_handshake()
    except OSError as error:
        raise HandshakeError(f"TLS handshake failed: {reason_of(error, timeout)}") from error
    finally:
        _set_timeout(sock, before)


def refusal_of(error: BaseException) -> BaseException:
    """Return the HandshakeError for what ssl raised while it wrapped a connection; any other error as it is."""
    ssl = sys.modules.get("ssl")
    if ssl is None or not isinstance(error, ssl.SSLError) or not isinstance(error, OSError):
        return error
    refusal = HandshakeError(f"TLS handshake failed: {reason_of(error)}")
    refusal.__cause__ = error
    return refusal


def close_notify(sock: ssl.SSLSocket, timeout: float, peer_stalls: Callable[[bool], object] | None = None) -> None:
    """Tell the peer that no more data comes (RFC 8446, 6.1), without waiting for its answer. Never raises OSError.

    It takes at most ``timeout`` seconds, and only while the peer does not take what was sent before:
    ``peer_stalls(True)`` is called before such a wait and ``peer_stalls(False)`` after it. Nothing is sent if the
    output ended in the middle of a record: the peer must see that data is missing. The connection stays open and can be
    half-closed then; what the peer still sends is encrypted. No effect on a connection that is closed, unwrapped, or
    whose handshake never ended.
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
                has_room = wait_writable(sock, deadline - time.monotonic())
                if peer_stalls is not None:
                    peer_stalls(False)
                if not has_room:
                    break
    except (OSError, ValueError):
        # SSLWantReadError: sent, and not answered yet. Others: the peer has left, or TLS was not up or is over.
        pass
    finally:
        _set_timeout(sock, before)


def is_part_of_record(error: BaseException) -> bool:
    """Whether a read without waiting failed only because a record, or the rest of one, has not come yet."""
    ssl = sys.modules.get("ssl")
    return ssl is not None and isinstance(error, ssl.SSLWantReadError)


def recv_beneath(sock: ssl.SSLSocket, size: int, flags: int = 0) -> bytes:
    """Return what ``recv()`` of the socket beneath TLS returns: encrypted records. Raises what that raises."""
    if isinstance(sock, WaitingSocket):
        return sock.recv_beneath(size, flags)
    return socket.socket.recv(sock, size, flags)


def wait_writable(sock: socket.socket, timeout: float) -> bool:
    """Wait until a socket takes more output, at most ``timeout`` seconds; return whether it does."""
    if isinstance(sock, WaitingSocket):
        return sock.wait_writable(timeout)
    if not hasattr(select, "poll"):
        return bool(select.select([], [sock], [], max(0.0, timeout))[1])
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(max(0.0, timeout) * 1000))


def reason_of(error: OSError, timeout: float | None = None) -> str:
    """Return in a few words why a handshake failed; ``timeout``: the limit that it had, in seconds."""
    if isinstance(error, TimeoutError) and error.errno is None and timeout is not None:
        return f"not done within {timeout:g} s"
    # OpenSSL's words, such as WRONG_VERSION_NUMBER; or the text without the line number of _ssl.c at its end.
    of_openssl: str | None = getattr(error, "reason", None)
    return of_openssl.replace("_", " ").lower() if of_openssl else (error.strerror or str(error)).partition(" (_ssl")[0]


def wrap_accepted(context: ssl.SSLContext, sock: socket.socket) -> ssl.SSLSocket:
    """Put TLS around a connection that was accepted, and shake no hands. ``sock`` loses its descriptor.

    Raises HandshakeError if the peer has left already.
    """
    try:
        # Of one that has left, the ssl module would ask for what it sent, and leave it open if that raises.
        sock.getpeername()
        return context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
    except OSError as error:
        _close_lost(error)
        if error.errno in (errno.ENOTCONN, errno.EINVAL, errno.ECONNRESET):
            raise HandshakeError("TLS handshake failed: the peer has left") from error
        raise


def _close_lost(error: BaseException) -> None:
    """Close what ``ssl.SSLSocket`` made before it raised; only the frames of the error have it."""
    traceback = error.__traceback__
    while traceback is not None:
        made = traceback.tb_frame.f_locals.get("self")
        if is_tls(made):
            made.close()
        traceback = traceback.tb_next


def _set_timeout(sock: socket.socket, timeout: float | None) -> None:
    try:
        sock.settimeout(timeout)
    except OSError:
        # EBADF: another thread has closed it; the next operation says so.
        pass
