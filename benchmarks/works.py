"""The table of works: what the clients do, and which figures come of it.

Figures are named with their units: ``cpu_us`` is microseconds of processor time per request, the figure of merit.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import resource
import socket
import statistics
import subprocess
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

from benchmarks import loads
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.processes import Place, ServerProcess, pause, wakeups

Figures = dict[str, float]
Start = Callable[[Contender, str, Collection[int]], contextlib.AbstractContextManager[ServerProcess]]

PING, PONG = b"PING\r\n", b"+PONG\r\n"


class Effort(NamedTuple):
    """How much of everything a round has."""

    share: float
    """Of the requests that a work asks for."""
    warms_up: bool
    """Whether every server has some requests before it is measured."""
    connections: int
    idle_seconds: float
    shutdowns: int
    without: tuple[str, ...] = ()
    """Works that do nothing which others do not."""


FULL = Effort(share=1.0, warms_up=True, connections=10_000, idle_seconds=60.0, shutdowns=100)
SMOKE = Effort(
    share=0.005,
    warms_up=False,
    connections=60,
    idle_seconds=1.0,
    shutdowns=3,
    without=("ping1", "ping500", "ping2000", "ping-stream"),
)

FEWEST = 200
"""Requests of a run, whatever its share."""


class Places(NamedTuple):
    """The processors."""

    clients: int
    server: int
    both: tuple[int, ...]


class Work(Protocol):
    """One row of the matrix."""

    @property
    def name(self) -> str:
        """As ``WORK=`` selects it."""
        ...

    @property
    def protocol(self) -> str:
        """What its servers are asked to do."""
        ...

    @property
    def unit(self) -> str:
        """The figure that is drawn and comes first in the table."""
        ...

    def contenders(self, number: int = 1) -> Sequence[Contender]:
        """The servers that take part in the round of this number."""
        ...

    def measure(
        self, contenders: Sequence[Contender], start: Start, places: Places, effort: Effort
    ) -> dict[str, Figures]:
        """One round; raises what ``start`` and the loads raise."""
        ...


class Rate(NamedTuple):
    """As many requests as a program asks for; the servers are all up, and have their turns one after the other."""

    name: str
    protocol: str
    load: Callable[[Place, int, int], loads.Result]
    clients: int
    requests: int
    """Of a round: from a tenth of a second to a few of processor time, which the kernel counts in microseconds."""
    turns: int
    further: int = 0
    """Turns of the same length that twins have after these. Less a turn scatters than the minute in which it
    falls; of many turns, one twin's beside the other's, both have the same minutes."""
    unit: str = "cpu_us"
    on_both: bool = False
    """Whether the server has both processors, the clients' too."""

    def contenders(self, number: int = 1) -> Sequence[Contender]:
        """Those that speak the protocol, and can serve so many clients at once."""
        able = (each for each in CONTENDERS if self.protocol in each.protocols)
        if not self.stays or self.clients == 1:
            return list(able)
        return [each for each in able if not each.one_at_a_time and not (each.forks and self.clients > 50)]

    @property
    def stays(self) -> bool:
        """Whether a client keeps its connection."""
        return self.protocol.startswith(("ping", "http-kept", "cpu", "wait", "held", "hash"))

    def measure(
        self, contenders: Sequence[Contender], start: Start, places: Places, effort: Effort
    ) -> dict[str, Figures]:
        """The processor time and the latencies of a round."""
        cpu: dict[str, float] = dict.fromkeys((each.name for each in contenders), 0.0)
        results: dict[str, list[loads.Result]] = {name: [] for name in cpu}
        cores = places.both if self.on_both else {places.server}
        with contextlib.ExitStack() as stack:
            running = [(each, stack.enter_context(start(each, self.protocol, cores))) for each in contenders]
            servers = running
            turns, further = (round(number * min(1.0, effort.share * 10)) for number in (self.turns, self.further))
            turns = max(1, turns)
            for turn in range(turns + further):
                if turn == turns:
                    servers = [(each, server) for each, server in running if each.is_twin]
                    servers.sort(key=lambda pair: pair[0].program[2])
                # The one that comes second finds warm caches: let all have that.
                for each, server in servers if turn % 2 == 0 else reversed(servers):
                    slowness = 1 if self.stays else each.slowness
                    number = max(FEWEST, self.clients, round(self.requests * effort.share / slowness / turns))
                    if turn == 0 and effort.warms_up:
                        self.load(server.place, self.clients, max(FEWEST, self.clients))
                        settle(server)
                    before = server.cpu_seconds()
                    result = self.load(server.place, self.clients, number)
                    cpu[each.name] += settle(server) - before
                    results[each.name].append(result)
            memory = {each.name: server.memory() for each, server in running}
        return {name: _figures(cpu[name], results[name]) | {"mib": memory[name] / 2**20} for name in cpu}


def _figures(cpu: float, results: Sequence[loads.Result]) -> Figures:
    figures = {
        "cpu_us": cpu / sum(result.requests for result in results) * 1e6,
        "per_second": statistics.median(result.per_second for result in results),
    }
    for name in ("p50_ms", "p99_ms"):
        times = [time for result in results if (time := getattr(result, name)) is not None]
        if times:
            figures[name] = statistics.median(times)
    return figures


SETTLED = 100e-6
"""Seconds of processor time in a fiftieth of a second, below which a server has nothing left to do."""


def settle(server: ServerProcess) -> float:
    """Wait until the server has closed what its clients left, at most a second; return its processor time."""
    now = server.cpu_seconds()
    for _ in range(50):
        pause(0.02)
        before, now = now, server.cpu_seconds()
        if now - before < SETTLED:
            break
    return now


class Idle(NamedTuple):
    """Ten thousand connections that have asked once and stay.

    Measured are their memory, what opening them costs from the first to the last, and how long a new client waits among
    them. That is compared to a second server of the same kind, which has no other clients, in turns: what else the
    machine does meets both alike.
    """

    name: str = "idle"
    protocol: str = "ping"
    unit: str = "kib_each"
    clients: int = 10
    requests: int = 2_000
    """Of a turn. All turns together leave a client enough ports that no server has seen yet."""
    turns: int = 3

    def contenders(self, number: int = 1) -> Sequence[Contender]:
        """Those that can hold them: not in a process each. Those that no target is about, once."""
        return [
            each
            for each in CONTENDERS
            if self.protocol in each.protocols
            and not each.one_at_a_time
            and not each.forks
            and (number == 1 or each.program[0] == "blocking.py")
        ]

    def measure(
        self, contenders: Sequence[Contender], start: Start, places: Places, effort: Effort
    ) -> dict[str, Figures]:
        """All of it, server after server."""
        figures = {}
        for each in contenders:
            # In this order: the server of ten thousand goes first, so that no other server waits for their farewells.
            with (
                start(each, self.protocol, {places.server}) as alone,
                contextlib.ExitStack() as connections,
                start(each, self.protocol, {places.server}) as server,
            ):
                requests = max(FEWEST, round(self.requests * effort.share / each.slowness))
                ask = functools.partial(loads.redis_benchmark, clients=self.clients, requests=requests, keep=False)
                ask(alone.place)
                ask(server.place)
                opening, held = self._open(server, connections, effort)
                figures[each.name] = opening | self._compare(ask, alone, server)
                # They have been kept all the time.
                for connection in held[::10]:
                    _ask(connection)
        return figures

    def _open(
        self, server: ServerProcess, connections: contextlib.ExitStack, effort: Effort
    ) -> tuple[Figures, list[socket.socket]]:
        count = min(effort.connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200)
        step = count // 10
        held: list[socket.socket] = []
        settle(server)
        memory = server.memory()
        marks = [server.cpu_seconds()]
        for _ in range(10):
            for _ in range(step):
                held.append(connections.enter_context(_from_elsewhere(server.place)))
                _ask(held[-1])
            marks.append(settle(server))
        steps = [(after - before) / step * 1e6 for before, after in itertools.pairwise(marks)]
        figures = {
            "connections": step * 10,
            "kib_each": (server.memory() - memory) / (step * 10) / 1024,
            "threads": server.threads(),
            "open_us": statistics.fmean(steps),
            "open_first_us": steps[0],
            "open_last_us": steps[-1],
        }
        return figures, held

    def _compare(self, ask: Callable[[Place], loads.Result], alone: ServerProcess, server: ServerProcess) -> Figures:
        results: dict[ServerProcess, list[float]] = {alone: [], server: []}
        for turn in range(self.turns):
            for each in (alone, server) if turn % 2 == 0 else (server, alone):
                results[each].append(ask(each.place).p99_ms or 0.0)
                settle(each)
        # One turn in which something else had the processor decides nothing.
        return {
            "p99_alone_ms": statistics.median(results[alone]),
            "p99_among_ms": statistics.median(results[server]),
        }


ELSEWHERE = "127.0.0.2"
"""Where the connections that stay come from. From the address of the clients that are timed they would take two thirds
of the ports of one parity, all of which connect() tries, in those clients' time, before one of the other."""


def _from_elsewhere(port: Place) -> socket.socket:
    connection = socket.socket()
    try:
        connection.settimeout(60.0)
        # Without it, bind() would choose a port, from all that no server at all is connected from.
        connection.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
        connection.bind((ELSEWHERE, 0))
        connection.connect(("127.0.0.1", port))
    except BaseException:
        connection.close()
        raise
    return connection


def _ask(connection: socket.socket) -> None:
    connection.sendall(PING)
    if connection.recv(100) != PONG:
        raise loads.LoadError("a wrong answer, or none")


class Shutdown(NamedTuple):
    """How long ``shutdown()`` takes, while no client talks to the server and while fifty clients do."""

    name: str = "shutdown"
    protocol: str = "connect"
    unit: str = "busy_p99_ms"

    def contenders(self, number: int = 1) -> Sequence[Contender]:
        """Those that have the method, once: a hundred times is often enough."""
        able = [each for each in CONTENDERS if each.program[0] == "blocking.py" and self.protocol in each.protocols]
        return able if number == 1 else []

    def measure(
        self, contenders: Sequence[Contender], start: Start, places: Places, effort: Effort
    ) -> dict[str, Figures]:
        """Milliseconds, of both kinds."""
        figures: dict[str, Figures] = {}
        for each in contenders:
            # A shutdown of the standard library's takes a quarter of a second.
            times = max(1, effort.shutdowns // (20 if each.group == "stdlib" else 1))
            program = ("shutdown_server.py", str(times), *each.program[1:])
            figures[each.name] = {}
            with start(each._replace(program=program), self.protocol, {places.server}) as server:
                for kind, clients in (("idle", contextlib.nullcontext()), ("busy", endless_clients(server.place))):
                    with clients:
                        took = sorted(json.loads(server.read_line(times * 2 + 60.0)))
                    figures[each.name] |= {
                        f"{kind}_p50_ms": statistics.median(took),
                        f"{kind}_p99_ms": percentile(took, 99),
                    }
        return figures


@contextlib.contextmanager
def endless_clients(port: Place) -> Iterator[None]:
    """Fifty clients that connect, ask, and connect again, for the length of a block."""
    command = ["ab", "-q", "-r", "-s", "60", "-c", "50", "-n", "1000000000", f"http://127.0.0.1:{port}/"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as clients:
        try:
            yield
        finally:
            clients.kill()


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest of the values that at least so many percent of them do not exceed (nearest rank)."""
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


class Wakeups(NamedTuple):
    """How often an idle server wakes; all servers idle at the same time, in the first round only."""

    name: str = "wakeups"
    protocol: str = "connect"
    unit: str = "per_minute"

    def contenders(self, number: int = 1) -> Sequence[Contender]:
        """All, once: what never happens need not be looked for five times, two minutes each."""
        return [each for each in CONTENDERS if self.protocol in each.protocols] if number == 1 else []

    def measure(
        self, contenders: Sequence[Contender], start: Start, places: Places, effort: Effort
    ) -> dict[str, Figures]:
        """Per minute."""
        with contextlib.ExitStack() as stack:
            servers = {
                each.name: stack.enter_context(start(each, self.protocol, {places.server})) for each in contenders
            }
            for server in servers.values():
                loads.ab(server.place, 1, 10)
            for server in servers.values():
                settle(server)
            # Workers that a pool no longer needs leave it after a minute.
            pause(1.1 * effort.idle_seconds)
            before = {name: server.sleeps() for name, server in servers.items()}
            pause(effort.idle_seconds)
            return {
                name: {"per_minute": wakeups(before[name], server.sleeps()) * 60 / effort.idle_seconds}
                for name, server in servers.items()
            }


def _wrk(port: Place, clients: int, requests: int) -> loads.Result:
    # It counts seconds, not requests.
    return loads.wrk(port, clients, requests / 10_000)


WORKS: Sequence[Work] = (
    Rate("ping1", "ping", loads.redis_benchmark, clients=1, requests=4_000, turns=2, further=8),
    Rate("ping50", "ping", loads.redis_benchmark, clients=50, requests=25_000, turns=2, further=4),
    Rate("ping500", "ping", loads.redis_benchmark, clients=500, requests=50_000, turns=1),
    Rate("ping2000", "ping", loads.redis_benchmark, clients=2000, requests=40_000, turns=1, further=1),
    Rate("ping-stream", "ping-stream", loads.redis_benchmark, clients=50, requests=30_000, turns=2),
    Rate("ping-unix", "ping-unix", loads.redis_benchmark, clients=50, requests=30_000, turns=2),
    Rate("wait1", "wait1", loads.redis_benchmark, clients=200, requests=20_000, turns=2, unit="per_second"),
    Rate("wait5", "wait5", loads.redis_benchmark, clients=200, requests=8_000, turns=2, unit="per_second"),
    Rate("held", "held", loads.beside_held, clients=1, requests=2_000, turns=2, unit="p99_ms"),
    Rate("hash", "hash", loads.redis_benchmark, clients=16, requests=20_000, turns=2, unit="per_second", on_both=True),
    Rate("connect", "connect", loads.ab, clients=50, requests=8_000, turns=2, further=4),
    Rate("connect-stream", "connect-stream", loads.ab, clients=50, requests=6_000, turns=2),
    Rate("udp", "udp", loads.dnsperf, clients=50, requests=15_000, turns=2),
    Rate("http", "http", loads.ab, clients=50, requests=3_000, turns=2),
    Rate("http-kept", "http-kept", _wrk, clients=50, requests=10_000, turns=1),
    Idle(),
    Rate("cpu", "cpu", loads.redis_benchmark, clients=8, requests=2_000, turns=2, unit="per_second", on_both=True),
    Shutdown(),
    Wakeups(),
)
