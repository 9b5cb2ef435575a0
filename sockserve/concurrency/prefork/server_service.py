"""What workers serve if it is one server: a listener for each place, where the port may be shared by several.

Rule 1. A place's listener listens from the moment its first worker is ready to serve: until then, and while the place
cannot be filled though others serve, the kernel gives it no connection (SO_REUSEPORT, socket(7)).
"""

from __future__ import annotations

import socket
from typing import Any

from sockserve.concurrency.prefork.phases import Phase
from sockserve.concurrency.prefork.worker_link import Link
from sockserve.core.serving import serving_of
from sockserve.net.listen import listen_anew, listen_no_more, shares_port, twin_of

__all__ = ["ServerService", "begin_to_listen", "close_twins", "take_place"]


class ServerService:
    """A server, as its supervisor needs it. Its methods are called in the supervisor's loop."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._empty: set[int] = set()
        """Places whose worker could not start, while none is being started."""

    def work(self, link: Link) -> None:
        """Serve."""
        self._server._serving_work_as_worker(link)  # noqa: SLF001 - the mix-in's own

    def open_place(self, place: int) -> None:
        """Give a place a listener of its own, if the port may be shared by several; the first has the server's."""
        listener: Any = getattr(self._server, "socket", None)
        self._empty.discard(place)
        if place and shares_port(listener):
            twins = _twins_of(self._server)
            if place not in twins:
                twins[place] = twin_of(listener)

    def place_is_empty(self, place: int, others_serve: bool) -> None:
        """Let no client wait there, as soon as there is a worker elsewhere: the kernel would give it its share."""
        self._empty.add(place)
        if others_serve:
            self._quiet(place)

    def _quiet(self, place: int) -> None:
        listener: Any = getattr(self._server, "socket", None)
        if not shares_port(listener):
            return
        if place:
            listener = _twins_of(self._server).get(place)
        if listener is None:
            return
        if listener.type == socket.SOCK_STREAM:
            listen_no_more(listener)
        elif place:
            # A datagram socket gets its share as long as it is bound; the next attempt binds another.
            self.close_place(place)

    def close_place(self, place: int) -> None:
        """Close that listener."""
        twin = _twins_of(self._server).pop(place, None)
        if twin is not None:
            twin.close()

    def ports(self) -> list[int]:
        """The server's, and those of places that have one of their own."""
        return [self._server.fileno(), *(twin.fileno() for twin in _twins_of(self._server).values())]

    def close_ports(self) -> None:
        """Close this process's listeners."""
        self._server._serving_close_ports()  # noqa: SLF001 - as above

    def serves(self) -> None:
        """A worker is ready: let ``wait_until_serving()`` return."""
        for place in self._empty:
            self._quiet(place)
        serving_of(self._server).lifecycle.serving.set()

    def stands(self, phase: Phase, is_rolling: bool, is_lame: bool) -> None:
        """Nothing: one server has no states but those of its lifecycle."""


def take_place(server: Any) -> bool:
    """Give a worker's copy of the server the listener of its place; say whether it shares one with other workers."""
    twins = _twins_of(server)
    mine = twins.pop(server.worker_id or 0, None)
    if mine is not None:
        server.socket.close()
        server.socket = mine
    close_twins(server)
    # Several that wake for one connection cost more than one that has its socket for itself.
    return mine is None and not shares_port(getattr(server, "socket", None))


def begin_to_listen(server: Any) -> None:
    """Let the kernel give a worker's own listener its share, just before the worker serves. Raises OSError."""
    listener: Any = getattr(server, "socket", None)
    try:
        if shares_port(listener):
            listen_anew(listener, server.request_queue_size)
    except OSError:
        # EBADF: a drain that was faster than this start has closed it.
        if listener.fileno() >= 0:
            raise


def close_twins(server: Any) -> None:
    """Close this process's listeners of all places but the one that the server has itself."""
    for twin in (serving_of(server).pop(_Twins) or _Twins()).values():
        twin.close()


class _Twins(dict[int, socket.socket]):
    """The listeners of all places but the first, where each place has one of its own."""


def _twins_of(server: Any) -> _Twins:
    return serving_of(server).part(_Twins)
