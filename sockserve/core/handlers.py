"""The handlers: one object per request, whose constructor runs ``setup()``, ``handle()`` and ``finish()``.

A handler runs in one thread at a time: in a pool, after ``keep_open()``, perhaps in another one each time.

Rule 1. Before a connection is given to a parking place all input that was read from its descriptor has been handled:
nothing else would tell of bytes in a buffer, of ``rfile`` or of TLS.
Rule 2. To be parked is the last thing that a handler does: another thread may run it already.
"""

from __future__ import annotations

import io
import socket
import sys
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from sockserve.core.base_server import AddressT, BaseServer, RequestT
from sockserve.core.connection_info import KnowsConnection
from sockserve.core.preparation_settings import tls_of
from sockserve.core.preparing import complete, is_unknown, record_of
from sockserve.core.servable import Address, AnyServer, Request
from sockserve.core.streams import (
    StreamReader,
    UnbufferedReader,
    give_up_buffers,
    open_reader,
    open_writer,
    take_buffers,
)
from sockserve.core.sweeping import HandlersDeadlines, marks_waits
from sockserve.core.type_parameters import TypeVar, filled_up
from sockserve.errors import HandshakeError
from sockserve.log import log
from sockserve.net.closing import half_close
from sockserve.net.tls import is_part_of_record, is_tls, recv_beneath
from sockserve.net.waiting_socket import WaitingSocket
from sockserve.seconds import socket_limit_of

if TYPE_CHECKING:
    from sockserve.core.deadlines import Deadlines

__all__ = ["BaseRequestHandler", "KeepStreamOpen", "StreamRequestHandler"]


_CONNECTED = (socket.SOCK_STREAM, getattr(socket, "SOCK_SEQPACKET", socket.SOCK_STREAM))

_DONT_WAIT: int = getattr(socket, "MSG_DONTWAIT", 0)

ServerT = TypeVar("ServerT", bound=BaseServer[Any, Any], default=BaseServer[Any, Any])


class KeepOpen:
    """A handler whose ``handle()`` may be called more than once."""

    if TYPE_CHECKING:
        request: Request
        client_address: Address
        server: AnyServer

        def handle(self) -> None:
            """Do the work that the client asks for now."""

        def finish(self) -> None:
            """Do what comes after the last of it."""

    # Set per instance: CPython 3.11 does not specialise loads that a class attribute shadows.
    _serving_keeps_open: bool | None
    """Whether ``keep_open()`` was called since ``handle()`` was; None: it never was."""

    _serving_handle_raised = False

    def keep_open(self) -> None:
        """Ask, inside ``handle()``, that it be called again when the client has more to say.

        Without it the connection is closed when ``handle()`` returns. The wait ends without another call when the
        client closes its side, after ``timeout`` seconds of silence, and when the server drains. ``handle()`` should
        read what it is called for: input that is there already counts as more to say. Over TLS, a handler that reads
        from ``self.request`` itself, or without a buffer, may be called once more to read end-of-file.
        Raises TypeError if the request is not a connection.
        """
        # For the first time; the socket's type is an enum that would be looked up for each message.
        if self._serving_keeps_open is None and (
            not isinstance(self.request, socket.socket) or self.request.type not in _CONNECTED
        ):
            raise TypeError(f"{type(self).__name__}.keep_open(): only a connection can be kept open")
        self._serving_keeps_open = True

    def _serving_converse(self, has_input: bool, /) -> None:
        """Call ``handle()`` until the connection is parked, or else ``finish()``. False: look first for input."""
        try:
            while has_input or self._serving_wait_for_input():
                has_input = False
                self.handle()
                if not self._serving_keeps_open:
                    break
                self._serving_keeps_open = False
                if self._serving_parks():
                    return
        except BaseException as error:
            self._serving_handle_raised = True
            self._serving_keeps_open = False
            try:
                self.finish()
            except Exception as second:
                error.add_note(f"finish() then raised {second!r}")
            raise
        self.finish()

    def _serving_parks(self) -> bool:
        """Whether the server calls ``_serving_converse()`` when there is more to do, so that no thread waits here."""
        try:
            live = self.server._serving_state.table.by_id.get(id(self.request))  # noqa: SLF001 - absent: see handlers
        except AttributeError:
            return False
        if live is None or live.parking is None:
            return False
        if self._serving_is_dry():
            if live.parking.is_crowded():
                self._serving_rest()
        elif not live.parking.is_turn_over(live):
            return False
        live.continue_handler = self._serving_go_on
        return True

    def _serving_rest(self) -> None:
        """Keep as little memory as possible until ``_serving_go_on()``: all input has been handled."""

    def _serving_go_on(self, has_input: bool, /) -> None:
        """What a server calls that has parked the connection."""
        if not has_input:
            found = self._serving_look()
            if found is None and self._serving_parks():
                return
            has_input = found is True
        self._serving_converse(has_input)

    def _serving_look(self) -> bool | None:
        """Look for input without waiting. None: a part of a TLS record, and nothing yet. False: wait for it to know."""
        return False

    def _serving_is_dry(self) -> bool:
        """Whether all input that was read has been handled, so that more of it makes the descriptor readable."""
        request = self.request
        # Two calls fewer for each message on a plain socket.
        return type(request) is socket.socket or not _holds_input(request)

    def _serving_wait_for_input(self) -> bool:
        """Block until input arrives; False at end-of-file, after the time-out, and if the connection is lost."""
        try:
            return _wait_for_input(self.request)
        except (ConnectionError, TimeoutError) as error:
            log.debug("%s said no more: %s", self.client_address, error)
            return False


class KeepStreamOpen(KeepOpen):
    """The same for a handler that uses its connection through ``rfile`` and ``wfile``."""

    if TYPE_CHECKING:
        connection: Request
        rfile: io.BufferedIOBase
        wfile: io.BufferedIOBase
        rbufsize: ClassVar[int]
        wbufsize: ClassVar[int]

    _serving_has_buffers = True

    def buffered_input(self) -> bytes:
        """What ``rfile`` has read ahead of the handler, and still holds: for a program that goes on without it."""
        return self.rfile.buffered() if isinstance(self.rfile, StreamReader | UnbufferedReader) else b""

    def _serving_look(self) -> bool | None:
        connection = self.connection
        if not is_tls(connection) or not isinstance(self.rfile, StreamReader):
            return False
        before = connection.gettimeout()
        connection.settimeout(0)
        try:
            return bool(self.rfile.peek(1))
        except OSError as error:
            # Any other error comes again when the handler reads.
            return None if is_part_of_record(error) else False
        finally:
            connection.settimeout(before)

    def _serving_is_dry(self) -> bool:
        try:
            if not self.wfile.closed:
                # The client may be waiting for this before it says more.
                self.wfile.flush()
        except (ConnectionError, TimeoutError):
            # The wait for input will meet it, too.
            return False
        # What another kind of file has read ahead cannot be known.
        is_ours = isinstance(self.rfile, StreamReader | UnbufferedReader)
        return is_ours and not self.buffered_input() and not _holds_input(self.connection)

    def _serving_rest(self) -> None:
        self._serving_has_buffers = False
        give_up_buffers(self.rfile, self.wfile)

    def _serving_go_on(self, has_input: bool, /) -> None:
        # One that was parked because its turn was over still has its input in a buffer.
        if not self._serving_has_buffers:
            self._serving_has_buffers = True
            take_buffers(self.rfile, self.rbufsize, self.wfile, self.wbufsize)
        super()._serving_go_on(has_input)

    def _serving_wait_for_input(self) -> bool:
        peek = getattr(self.rfile, "peek", None)
        try:
            if not self.wfile.closed:
                # The client may be waiting for this before it says more.
                self.wfile.flush()
            return _wait_for_input(self.connection) if peek is None else bool(peek(1))
        except (ConnectionError, TimeoutError) as error:
            log.debug("%s said no more: %s", self.client_address, error)
            return False


for _class in (KeepOpen, KeepStreamOpen):
    marks_waits(_class, "_serving_wait_for_input")


class BaseRequestHandler(KnowsConnection, KeepOpen, Generic[ServerT, RequestT, AddressT]):
    """Handles one request. Override ``handle()``, perhaps ``setup()`` and ``finish()``.

    ``self.request``, ``self.client_address`` and ``self.server`` say what to handle. ``finish()`` runs whenever
    ``setup()`` succeeded, also after an error; if both raise, the error of ``handle()`` is the one reported.
    ``deadlines``, as an attribute of the class or assigned in ``handle()``, takes the place of the server's.

    Subscript it to get their types: ``class H(BaseRequestHandler[MyServer, socket.socket])``.
    """

    __module__ = "sockserve"

    client_speaks_first: ClassVar[bool] = False
    """Whether a client has to say something before the handler can do anything, as in HTTP, and not in SMTP, where the
    server greets. In a pool a new connection holds no thread then until its first byte, which is waited for as long as
    ``timeout`` says, if there is one; the handler is made after that."""

    request: RequestT
    client_address: AddressT
    server: ServerT

    if TYPE_CHECKING:
        deadlines: Deadlines | None
    else:
        deadlines = HandlersDeadlines()

    if sys.version_info < (3, 13) and not TYPE_CHECKING:

        def __class_getitem__(cls, arguments: Any) -> Any:
            return super().__class_getitem__(filled_up(cls, arguments))

    def __init__(self, request: RequestT, client_address: AddressT, server: ServerT) -> None:
        self.request = request
        self.client_address = client_address
        self.server = server
        self._serving_keeps_open = None
        # Absent from a standard library's server, and from what tests pass for one.
        try:
            live = server._serving_state.table.by_id.get(id(request))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        except AttributeError:
            live = None
        if live is not None:
            live.handler = self
        try:
            self.setup()
        except BaseException:
            self._serving_close_files()
            raise
        self._serving_converse(True)

    def setup(self) -> None:
        """Called before ``handle()``."""

    def handle(self) -> None:
        """Do all the work of the request."""

    def finish(self) -> None:
        """Called after ``handle()``, also if that raised."""

    def detach_request(self) -> RequestT:
        """Take the request away from the server, which will neither shut it down nor close it; the caller must.

        ``finish()`` still runs. Input that ``rfile`` has read ahead does not go along: see ``buffered_input()``.
        Raises RuntimeError if the server's class is not one of sockserve's and does not know of this.
        """
        try:
            live = self.server._serving_state.table.by_id.get(id(self.request))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        except AttributeError:
            live = None
        if live is None:
            raise RuntimeError(f"{type(self.server).__name__} does not let go of requests")
        live.detached = True
        if live.parking is not None:
            # Before its next owner can close it, and the number be another's.
            live.parking.detach(live)
        return self.request

    def _serving_close_files(self) -> None:
        """Close what ``setup()`` opened before it raised."""


class StreamRequestHandler(KeepStreamOpen, BaseRequestHandler[ServerT, RequestT, AddressT]):
    """Handles a connection through files: ``self.rfile`` to read from, ``self.wfile`` to write to.

    ``rfile`` stays usable after a time-out, and loses nothing that had arrived before it.
    """

    __module__ = "sockserve"

    rbufsize: ClassVar[int] = -1
    """Size of ``rfile``'s buffer in bytes; -1: the default size, 0: none."""

    wbufsize: ClassVar[int] = 0
    """Size of ``wfile``'s buffer in bytes; 0: every write is sent at once and whole, -1: the default size."""

    timeout: ClassVar[float | None] = None
    """Seconds that one operation on the connection may take; None, or 24 days and more: for ever."""

    disable_nagle_algorithm: ClassVar[bool] = False
    """Whether small writes are sent without waiting for the acknowledgement of earlier ones (TCP_NODELAY, tcp(7))."""

    # Whether the server has only what the connection was before start_tls().
    _serving_closes_connection = False

    connection: RequestT
    """The request; a handler that begins TLS puts the new socket here."""

    rfile: io.BufferedIOBase
    wfile: io.BufferedIOBase

    def setup(self) -> None:
        """Set the connection's options and open the files."""
        connection: Request = self.request
        self.connection = connection
        if self.timeout is not None:
            connection.settimeout(socket_limit_of(self.timeout))
        if self.disable_nagle_algorithm and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.rfile = open_reader(connection, self.rbufsize)
        self.wfile = open_writer(connection, self.wbufsize)

    def start_tls(self, tls: Any = None) -> None:
        """Go on over TLS, as after STARTTLS; the handshake is over when it returns, in ``handshake_timeout`` seconds.

        ``tls``: a ``sockserve.TLS`` or an ``ssl.SSLContext``; None: the server's. ``request``, ``connection``,
        ``rfile`` and ``wfile`` are new ones then. The answer that lets the client begin must be written before.

        Raises HandshakeError, also if the client sent more ahead of its handshake, which nothing protected on its way
        (CVE-2011-0411); ValueError if there are no settings, or TLS is up already.
        """
        server: AnyServer = self.server
        if is_tls(self.connection):
            raise ValueError(f"{type(self).__name__}.start_tls(): the connection is over TLS already")
        settings = tls_of(server, tls)
        if settings is None:
            raise ValueError(f"{type(self).__name__}.start_tls(): neither tls nor the server's tls is given")
        self.wfile.flush()
        if self.buffered_input():
            raise HandshakeError("TLS handshake failed: the client sent something else ahead of it")
        live = record_of(server, self.request, self.client_address)
        # They would hold the socket that is to be exchanged.
        self.rfile.close()
        self.wfile.close()
        try:
            complete(server, live, settings)
        finally:
            self.request = self.connection = live.request
        self._serving_closes_connection = is_unknown(live)
        self.rfile = open_reader(self.connection, self.rbufsize)
        self.wfile = open_writer(self.connection, self.wbufsize)

    def finish(self) -> None:
        """Send what ``wfile`` still holds and close both files. A peer that left is no error."""
        try:
            if not self.wfile.closed:
                self.wfile.close()
        except ConnectionError as error:
            log.debug("%s left before the end of its answer: %s", self.client_address, error)
        finally:
            self.rfile.close()
            if self._serving_closes_connection:
                connection: Request = self.connection
                half_close(connection)
                connection.close()

    def _serving_close_files(self) -> None:
        for name in ("wfile", "rfile"):
            file = vars(self).get(name)
            if file is not None:
                try:
                    file.close()
                except OSError as error:
                    log.debug("%s: closing %s: %s", self.client_address, name, error)


def _holds_input(connection: socket.socket) -> bool:
    """Whether TLS holds input that was read from the descriptor and not yet from the connection."""
    return is_tls(connection) and bool(connection.pending())


def _wait_for_input(connection: socket.socket) -> bool:
    """Block until input arrives; False at end-of-file. Raises OSError."""
    if _holds_input(connection):
        return True
    if is_tls(connection):
        # Whether what comes is a record or the end.
        return bool(recv_beneath(connection, 1, socket.MSG_PEEK))
    if isinstance(connection, WaitingSocket):
        return connection.wait_for_input()
    return bool(connection.recv(1, socket.MSG_PEEK))
