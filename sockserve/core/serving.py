"""Everything that this package knows of one server, in one object: ``serving_of(server)``.

It works on any server object, a standard library's included, and on one whose ``__init__`` never ran: the state is made
on first use. A worker process replaces the whole of it by ``begin_anew()``, so nothing of its parent's is left over.

The core has attributes of its own here. A layer above the core keeps its objects by their class, in ``part()``, and the
core never names them.
"""

# ruff: noqa: D102 - the hooks of a server are explained in base_server

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sockserve.core.active_requests import ActiveRequests
from sockserve.core.deferral import Deferral
from sockserve.core.events import Events, LogObserver, Observer
from sockserve.core.intake import Intake
from sockserve.core.lifecycle import Lifecycle
from sockserve.core.loop import Loop
from sockserve.core.servable import Address, AnyServer, Request
from sockserve.net.accept_errors import Verdict
from sockserve.net.lingering import Farewells, Lingering
from sockserve.net.unix_path import BoundPath

__all__ = [
    "Accepting",
    "LoopsDispatcher",
    "Served",
    "ServedInLoop",
    "Serving",
    "begin_anew",
    "events_of",
    "finish_lingering",
    "serving_of",
    "stay_begins",
    "stay_ends",
    "table_of",
]

Part = TypeVar("Part")

_DEFAULT_OBSERVERS: tuple[Observer, ...] = (LogObserver(),)


class LoopsDispatcher(Protocol):
    """The side of a dispatcher that a loop sees. All of it is called in the loop's thread."""

    def attach(self, loop: Loop) -> None:
        """A loop begins to serve: wake it when ``reap()`` has something to do."""

    def detach(self) -> None:
        """The loop ends."""

    def full(self) -> bool:
        """Whether no request can be taken now: the loop does not accept then."""
        ...

    def must_poll(self) -> float | None:
        """After how many seconds ``reap()`` must be called because nothing will wake the loop; None: never."""
        ...

    def reap(self) -> None:
        """Forget finished workers. Called once per turn of the loop."""


class Accepting(Protocol):
    """A server's stay in a loop of ours."""

    loop: Loop
    holds_end: bool
    """Whether the maker of the loop calls ``finish()``, once the loop's descriptors are closed too."""

    def take_one(self) -> bool:
        """Take one request that is ready; true if there was one."""
        ...

    def failed(self, error: BaseException, verdict: Verdict) -> None:
        """Do what the table says about an error of ``get_request()``."""

    def recovered(self) -> None:
        """Accepting works again: whatever made it fail is over. No effect if nothing did."""

    def has_free_loop(self) -> bool:
        """Whether the loop's thread serves no requests itself, so that timers are called in time."""
        ...

    def leave(self) -> None:
        """Leave the loop. Idempotent."""

    def finish(self) -> None:
        """End all waits for the end of the stay."""


class Serving:
    """The state of one server. Its attributes may be read in any thread; a comment says which thread writes them."""

    __slots__ = (
        "_parts",
        "acceptor",
        "bound_path",
        "dispatcher",
        "events",
        "intake",
        "lifecycle",
        "lingering",
        "shares_listener",
        "table",
        "when_begun",
    )

    def __init__(self) -> None:
        self.lifecycle = Lifecycle()
        """Whether it accepts, and how it is told to stop."""
        self.table = ActiveRequests()
        """The requests in progress."""
        self.events: Events | None = None
        """The observers, sorted; ``events_of()`` keeps it up to date."""
        self.acceptor: Accepting | None = None
        """The present stay in a loop of ours; written in the loop's thread."""
        self.intake: Intake | None = None
        """How ``get_request()`` takes requests during that stay; written in the loop's thread."""
        self.dispatcher: LoopsDispatcher | None = None
        """What runs the handlers, if a mix-in made something that does; written on first use."""
        self.lingering = Lingering()
        """Connections that stay open for a moment after their end."""
        self.bound_path: BoundPath | None = None
        """The Unix path that the server bound, if it did; written where it binds and closes."""
        self.shares_listener = False
        """Whether other processes accept from the same listener; written before the server serves."""
        self.when_begun: Callable[[Loop], object] | None = None
        """Called in the loop's thread when a stay in a loop begins; written before the server serves."""
        self._parts: dict[type, Any] = {}

    def part(self, kind: type[Part], make: Callable[[], Part] | None = None) -> Part:
        """What a layer above keeps for this server: one object of each class, made on first use. From any thread."""
        try:
            found: Part = self._parts[kind]
        except KeyError:
            # Atomic: of two threads that make one at once both get the first.
            found = self._parts.setdefault(kind, (make or kind)())
        return found

    def find(self, kind: type[Part]) -> Part | None:
        """The same if it was made before, else None."""
        found: Part | None = self._parts.get(kind)
        return found

    def put(self, part: object) -> None:
        """Keep this object in the place of any other of its class."""
        self._parts[type(part)] = part

    def pop(self, kind: type[Part]) -> Part | None:
        """Forget it and return it; None if there is none."""
        found: Part | None = self._parts.pop(kind, None)
        return found


class _MadeOnFirstUse:
    """``server._serving_state``: looked up here only until the server has one of its own."""

    def __get__(self, server: object, owner: object = None) -> Serving:
        if server is None:
            raise AttributeError("only a server object has a state")
        # Atomic: see Serving.part(). In vars(), whatever __setattr__ the program's class has.
        state: Serving = vars(server).setdefault(_NAME, Serving())
        return state


_NAME = "_serving_state"
# In quotes only here: it has to work on servers of the standard library, which have no such attribute.
_made_on_first_use = _MadeOnFirstUse()


class Served:
    """The base of everything that has to do with a server's state: the servers, and the mix-ins for any server."""

    _serving_state = _made_on_first_use

    def _serving_wrapped(self, request: Request) -> Request:
        """What is to stand in the place of a connection that TLS was just put around, before the handshake."""
        return request

    if TYPE_CHECKING:
        # The hooks of socketserver, for the mix-ins: each server that they are mixed into has them.

        timeout: float | None
        RequestHandlerClass: Callable[..., Any]

        def serve_forever(self, poll_interval: float = ...) -> None: ...
        def server_close(self) -> None: ...
        def service_actions(self) -> None: ...
        def handle_timeout(self) -> Any: ...
        def fileno(self) -> int: ...
        def verify_request(self, request: Request, client_address: Address) -> bool: ...
        def process_request(self, request: Request, client_address: Address) -> None: ...
        def prepare_request(self, request: Request, client_address: Address) -> tuple[Request, Address]: ...
        def finish_request(self, request: Request, client_address: Address) -> None: ...
        def handle_error(self, request: Request, client_address: Address) -> None: ...
        def shutdown_request(self, request: Request) -> None: ...
        def close_request(self, request: Request) -> None: ...


class ServedInLoop(Served):
    """The base of what serves in a loop of ours: BaseServer, and the mix-ins that bring such a loop to any server."""

    def _serving_make_acceptor(self, loop: Loop, poll_interval: float) -> Accepting:
        """Begin a stay in a loop. Raises AlreadyServingError, ServerClosedError, OSError."""
        raise NotImplementedError

    def _serving_run(self, poll_interval: float) -> None:
        """Serve in a loop of this server's own until ``shutdown()``."""
        with Deferral() as signals, Loop() as loop:
            # Before the first run() already: a shutdown() from another thread waits from now on.
            loop.thread = threading.get_ident()
            acceptor = self._serving_make_acceptor(loop, poll_interval)
            acceptor.holds_end = True
            try:
                signals.lifted(loop.run)
            finally:
                try:
                    acceptor.leave()
                finally:
                    loop.close()
                    acceptor.finish()

    def _serving_loop_ended(self, *, failed: bool) -> None:
        """A loop that hosted the server has ended, in this thread; ``failed``: by an exception."""

    # Private in name only: programs set it from handlers and signal handlers. Setting it is how the shutdown() of the
    # standard library stops its loop.

    @property
    def _BaseServer__shutdown_request(self) -> bool:  # noqa: N802 - stdlib's name
        return self._serving_state.lifecycle.stop_requested

    @_BaseServer__shutdown_request.setter
    def _BaseServer__shutdown_request(self, value: bool) -> None:  # noqa: N802 - stdlib's name
        # Some look for it in vars(), too.
        self._serving_state.lifecycle.stop_requested = vars(self)[_SHUTDOWN_REQUEST] = value


# Two attributes of the standard library's servers that programs use: they set the one, and wait for the other.
_SHUTDOWN_REQUEST = "_BaseServer__shutdown_request"
_IS_SHUT_DOWN = "_BaseServer__is_shut_down"


def stay_begins(server: object) -> None:
    """Say in the attributes that programs look at that a loop serves this server."""
    vars(server).setdefault(_IS_SHUT_DOWN, threading.Event()).clear()


def stay_ends(server: object, *, in_child: bool = False) -> None:
    """Say in the attributes that programs look at that none does; ``in_child``: what the parent waits for is not it."""
    attributes = vars(server)
    attributes[_SHUTDOWN_REQUEST] = False
    if in_child:
        attributes.pop(_IS_SHUT_DOWN, None)
    attributes.setdefault(_IS_SHUT_DOWN, threading.Event()).set()


def serving_of(server: AnyServer) -> Serving:
    """The state of any server; made on first use. From any thread."""
    try:
        state: Serving = server._serving_state  # noqa: SLF001 - this module's
    except AttributeError:
        state = _made_on_first_use.__get__(server)
    return state


def begin_anew(server: object) -> None:
    """In a worker process that was forked to serve: forget all that this server was about in its parent."""
    vars(server)[_NAME] = Serving()


def table_of(server: object) -> ActiveRequests:
    """The live table of any server."""
    return serving_of(server).table


def events_of(server: object) -> Events:
    """The events of any server; follows changes of ``server.observers``."""
    observers: tuple[Observer, ...] = getattr(server, "observers", _DEFAULT_OBSERVERS)
    state = serving_of(server)
    events = state.events
    if events is None or events.observers is not observers:
        events = state.events = Events(observers)
    return events


def finish_lingering(server: object) -> None:
    """Wait until each answer of a connection that lingers has arrived: ``LINGER_SECONDS`` at most."""
    state = serving_of(server)
    state.lingering.finish(in_haste=True)
    if (farewells := state.find(Farewells)) is not None:
        farewells.finish(in_haste=True)
