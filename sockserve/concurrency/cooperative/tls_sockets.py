"""TLS over a cooperative socket: where OpenSSL has to wait for the peer, other greenlets run."""

# ruff: noqa: D102 - the methods promise what those of ssl.SSLSocket do

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any, cast

from sockserve.concurrency.cooperative.channel import FEW
from sockserve.concurrency.cooperative.sockets import CooperativeMethods

__all__ = ["CooperativeTLSSocket"]


class CooperativeTLSSocket(  # type: ignore[misc]  # pyright: ignore[reportIncompatibleMethodOverride] - as to typeshed
    ssl.SSLSocket, CooperativeMethods
):
    """An ``ssl.SSLSocket`` for handlers that run in greenlets; see CooperativeSocket.

    Before the handshake, and after ``unwrap()``, its methods are those of the socket beneath.
    """

    @classmethod
    def adopt(cls, sock: ssl.SSLSocket) -> ssl.SSLSocket:
        """Make a socket cooperative, before or after its handshake, and return it; a subclass's is left as it is."""
        if type(sock) is ssl.SSLSocket:
            limit = sock.gettimeout()
            # OpenSSL's object refers to the Python object, which therefore has to stay the same one.
            sock.__class__ = cls
            cast("CooperativeTLSSocket", sock)._serving_begin(limit)  # noqa: SLF001 - it is one now
        return sock

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 - ssl's name
        return self._serving_tls(super().read, len, buffer)  # type: ignore[deprecated]  # pyright: ignore[reportDeprecated] - others use it

    def write(self, data: Any) -> int:
        return self._serving_tls(super().write, data)  # type: ignore[no-any-return,deprecated]

    def send(self, data: Any, flags: int = 0) -> int:
        return self._serving_tls(super().send, data, flags)  # type: ignore[no-any-return]

    def do_handshake(self, block: bool = False) -> None:
        self._serving_tls(super().do_handshake, block)

    def unwrap(self) -> Any:
        return self._serving_tls(super().unwrap)

    def recv_beneath(self, size: int, flags: int = 0) -> bytes:
        """Read as ``recv()`` of the socket beneath: bytes that are not decrypted."""
        return CooperativeMethods.recv(self, size, flags)

    def _serving_tls(self, operation: Callable[..., Any], *args: Any) -> Any:
        channel = self._serving_channel
        channel.unwaited += 1
        if channel.unwaited > FEW:
            channel.share()
        # One deadline for the whole operation: a peer may send a record a byte at a time.
        deadline = channel.begin()
        while True:
            try:
                return operation(*args)
            except ssl.SSLWantReadError:
                if channel.limit == 0:
                    raise
                wait = channel.wait_input
            except ssl.SSLWantWriteError:
                if channel.limit == 0:
                    raise
                wait = channel.wait_output
            deadline = wait(deadline)
