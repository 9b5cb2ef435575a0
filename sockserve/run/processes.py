"""Servers of several addresses in worker processes: each worker serves all of them, in one loop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

from sockserve.concurrency.prefork.mix_in import SupervisorStay
from sockserve.concurrency.prefork.phases import Phase
from sockserve.concurrency.prefork.signals import handling_signals
from sockserve.concurrency.prefork.supervisor import Supervisor
from sockserve.concurrency.prefork.worker_handle import drain_within
from sockserve.concurrency.prefork.worker_link import Link
from sockserve.concurrency.prefork.worker_main import live
from sockserve.core.events import Counters
from sockserve.core.loop import Loop
from sockserve.core.server import TCPServer
from sockserve.core.serving import serving_of
from sockserve.errors import AlreadyServingError
from sockserve.net.listen import listens
from sockserve.run.answering import Answerer
from sockserve.run.control import Control
from sockserve.run.health import Fleet, agent, health
from sockserve.run.loading import forget_modules, load_handler
from sockserve.run.opening import AnyServer, address_of, reload_tls
from sockserve.run.program import Program
from sockserve.run.signals import handling, telling_stacks
from sockserve.run.states import State
from sockserve.run.stopping import Draining
from sockserve.run.working_directory import WorkingDirectory

__all__ = ["Processes", "serve_in_processes"]


class Processes(NamedTuple):
    """How many workers, and when one is replaced; as the attributes of ``PreForkMixIn``."""

    processes: int | None
    max_requests: int | None
    worker_timeout: float | None
    drain_timeout: float | None
    lame_duck: float | None = 0.0
    max_requests_jitter: int | None = None


class _Service:
    """What each worker does, and what the supervisor does for it."""

    def __init__(self, program: Program, name: str | None) -> None:
        self._servers = program.servers
        self._name = name
        self._directory = WorkingDirectory()
        self._observers = program.observers
        self._ready: Callable[[], object] | None = program.ready
        self._states = program.states
        self._is_lame = False

    def work(self, link: Link) -> None:
        """Serve all addresses."""
        loop = Loop()

        def serve() -> None:
            if link.orders.is_anew:
                if self._name is not None:
                    self._load_anew(self._name)
                reload_tls(self._servers)
            for server in self._servers:
                server.attach(loop)
            link.beat_in(loop)
            loop.run()

        def finish() -> None:
            # Until the last request has ended: some need a loop.
            Draining(self._servers, loop, None)
            loop.run()
            loop.close()

        live(link, self._servers, serve, finish, observers=self._observers, shares_listener=True)

    def _load_anew(self, name: str) -> None:
        self._directory.follow()
        forget_modules()
        handler = load_handler(name)
        for server in self._servers:
            server.RequestHandlerClass = handler

    def open_place(self, place: int) -> None:
        """Nothing: all places share the listeners."""

    def place_is_empty(self, place: int, others_serve: bool) -> None:
        """Nothing: all places share the listeners."""

    def close_place(self, place: int) -> None:
        """Nothing to close."""

    def ports(self) -> list[int]:
        """Of all servers."""
        return [server.fileno() for server in self._servers]

    def close_ports(self) -> None:
        """Close the listeners of this process."""
        for server in self._servers:
            serving_of(server).lifecycle.draining = True
            TCPServer._serving_free_address(server)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    def serves(self) -> None:
        """The first that is ready says so for all."""
        ready, self._ready = self._ready, None
        if ready is not None:
            ready()
        is_suspended = all(serving_of(server).lifecycle.suspended for server in self._servers)
        if self._states.present in (State.STARTING, State.LAME) and not self._is_lame and not is_suspended:
            self._states.change(State.READY)

    def stands(self, phase: Phase, is_rolling: bool, is_lame: bool) -> None:
        """Tell the states; what they do not let follow is none."""
        self._is_lame = is_lame
        if is_lame and phase is Phase.KEEPS:
            self._states.change(State.LAME)
        elif phase is not Phase.KEEPS or is_rolling:
            self._states.change(_STATE_OF[phase])
        elif self._states.present is State.RELOADING:
            self._states.change(State.READY)


class _Stopping:
    """What a signal to stop means: the first SIGTERM, that the time of a lame duck begins, if there is one."""

    def __init__(self, supervisor: Supervisor, lame_duck: float | None) -> None:
        self._supervisor = supervisor
        self._lame_duck = lame_duck
        self._is_first = True

    def on_signal(self, signum: signal.Signals) -> None:
        """In a signal handler."""
        is_first, self._is_first = self._is_first, False
        if is_first and signum == signal.SIGTERM and self._lame_duck != 0:
            self._supervisor.be_lame(self._lame_duck)
        else:
            self._supervisor.stop()


_STATE_OF = {
    # In a rolling restart.
    Phase.KEEPS: State.RELOADING,
    # Until it is resumed.
    Phase.EMPTIES: State.LAME,
    Phase.STOPS: State.DRAINING,
    Phase.ENDS: State.DRAINING,
    Phase.DRAINS: State.DRAINING,
}


def serve_in_processes(program: Program, name: str | None, processes: Processes) -> Counters:
    """Serve until a signal, or until ``shutdown()`` was called on every server; return what all workers counted.

    ``name`` is the handler's, if a rolling restart shall load it anew. If a signal asked to stop before, no worker is
    made. Raises CrashLoopError.
    """
    servers, loop = program.servers, program.loop
    service = _Service(program, name)
    supervisor = Supervisor(", ".join(address_of(server) for server in servers), service, processes)
    for server in servers:
        if listens(server.socket):
            # For all processes and for good: given back by one, it would let the others block in accept().
            server.socket.setblocking(False)
    with contextlib.ExitStack() as last_first:
        last_first.callback(loop.close)
        loop.thread = threading.get_ident()
        stays = [last_first.enter_context(_staying(server, loop)) for server in servers]
        fleet = Fleet.of(program.states, supervisor.figures)
        control = Control(supervisor, servers, fleet)
        asks = {"health": health(fleet), "agent": agent(fleet), "control": control.ask}
        for desk in program.desks:
            answerer = Answerer(loop, [server.socket for server in desk.servers], asks[desk.name])
            last_first.callback(answerer.leave)
        if program.handles_signals:
            last_first.enter_context(handling(_Stopping(supervisor, processes.lame_duck).on_signal))
            last_first.enter_context(handling_signals(supervisor))
            last_first.enter_context(telling_stacks(supervisor.tell_stacks))

        def run() -> None:
            if not program.early:
                supervisor.run(
                    loop,
                    lambda: _are_stopped(stays),
                    lambda: all(serving_of(server).lifecycle.suspended for server in servers),
                )

        try:
            program.signals.lifted(run)
        finally:
            service.close_ports()
            program.signals.lifted(lambda: supervisor.end(drain_within(processes.drain_timeout)))
    return supervisor.counters


def _are_stopped(stays: Sequence[SupervisorStay]) -> bool:
    """Whether all are to stop. Until then ``shutdown()`` of one returns at once, and its address is still served."""
    if all(stay.stop_requested for stay in stays):
        return True
    for stay in stays:
        if stay.stop_requested:
            stay.ended.set()
    return False


@contextlib.contextmanager
def _staying(server: AnyServer, loop: Loop) -> Generator[SupervisorStay]:
    lifecycle = serving_of(server).lifecycle
    stay = SupervisorStay(loop)
    if not lifecycle.begin(stay):
        raise AlreadyServingError(f"{server} is already being served by another serve_forever()")
    lifecycle.serving.set()
    try:
        yield stay
    finally:
        lifecycle.end()
        stay.ended.set()
