"""P1 to P13, and whether they hold: a table of limits, each on a figure, or on a ratio of two figures of one run."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.contenders import BY_NAME, OURS

Rounds = Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]
"""Of each work, of each server, the figures of each round."""

ENOUGH_ROUNDS = 5
MANY = 10_000


class Figure(NamedTuple):
    """One figure of one server in one work."""

    work: str
    server: str
    name: str = "cpu_us"

    def median(self, rounds: Rounds) -> float | None:
        """Over the rounds; None if it was not measured."""
        values = self.values(rounds)
        return statistics.median(values) if values else None

    def values(self, rounds: Rounds) -> list[float]:
        """Of each round."""
        return [each[self.name] for each in rounds.get(self.work, {}).get(self.server, ()) if self.name in each]

    def __str__(self) -> str:
        return f"{self.work} {self.server} {self.name}"


class Limit(NamedTuple):
    """``figure`` is at most ``factor`` times ``other``, or without that ``factor`` itself; ``at_least``: at least."""

    target: str
    figure: Figure
    factor: float
    other: Figure | None = None
    at_least: bool = False

    def judge(self, rounds: Rounds) -> Verdict:
        """What the medians say."""
        value = self.figure.median(rounds)
        base = 1.0 if self.other is None else self.other.median(rounds)
        if value is None or base is None:
            return Verdict(self, None, None, [])
        if not base:
            return Verdict(self, None, None, [])
        ratio = value / base
        holds = ratio >= self.factor if self.at_least else ratio <= self.factor
        return Verdict(self, ratio, holds, self.of_each_round(rounds))

    def of_each_round(self, rounds: Rounds) -> list[float]:
        """What each round for itself found; empty if the two were not measured in the same rounds."""
        values = self.figure.values(rounds)
        bases = [1.0] * len(values) if self.other is None else self.other.values(rounds)
        if len(values) != len(bases) or not all(bases):
            return []
        return [value / base for value, base in zip(values, bases, strict=True)]


class Verdict(NamedTuple):
    """A limit, the ratio or the figure that was found, whether it holds, and what each round for itself found.

    None: not measured.
    """

    limit: Limit
    found: float | None
    holds: bool | None
    rounds: Sequence[float]

    @property
    def word(self) -> str:
        """In the table."""
        return {True: "holds", False: "MISSED", None: "not measured"}[self.holds]


def _below(target: str, factor: float, figure: Figure, *others: str) -> list[Limit]:
    """The same figure of other servers."""
    return [Limit(target, figure, factor, figure._replace(server=other)) for other in others]


def _never_worse() -> list[Limit]:
    """P11: every work that both libraries have."""
    works = {
        "inline": ("ping1", "connect", "connect-stream", "udp"),
        "thread": ("ping1", "ping50", "ping500", "ping2000", "ping-stream", "connect", "connect-stream", "udp", "http"),
    }
    limits = [
        limit
        for model, names in works.items()
        for work in names
        for limit in _below("P11", 1.05, Figure(work, model), f"stdlib-{model}")
    ]
    for name in ("kib_each", "open_us"):
        limits += _below("P11", 1.05, Figure("idle", "thread", name), "stdlib-thread")
    for name in ("idle_p99_ms", "busy_p99_ms"):
        for model in works:
            limits += _below("P11", 1.05, Figure("shutdown", model, name), f"stdlib-{model}")
    return limits


_HOLD_MANY = [
    name
    for name in OURS
    if "ping" in BY_NAME[name].protocols and not BY_NAME[name].one_at_a_time and not BY_NAME[name].forks
]
_STOP = [name for name in OURS if "connect" in BY_NAME[name].protocols]

LIMITS: Sequence[Limit] = (
    *(
        limit
        for pool in ("pool", "pool-16")
        for factor, other in ((1.25, "floor"), (0.25, "stdlib-thread"), (0.75, "uvloop"))
        for limit in _below("P1", factor, Figure("connect", pool), other)
    ),
    *_below("P2", 1.35, Figure("ping500", "greenlet"), "floor"),
    *_below("P2", 1.0, Figure("ping500", "greenlet"), "uvloop", "asyncio", "gevent"),
    *_below("P3", 1.6, Figure("ping500", "pool"), "floor"),
    *_below("P3", 0.5, Figure("ping500", "pool"), "stdlib-thread"),
    *_below("P3", 1.0, Figure("ping500", "pool"), "uvloop"),
    Limit("P3", Figure("held", "pool-16", "p99_ms"), 5.0),
    Limit("P3", Figure("hash", "pool", "per_second"), 1.7, Figure("hash", "pool-1", "per_second"), at_least=True),
    *_below("P4", 1.1, Figure("udp", "inline"), "uvloop"),
    *_below("P4", 1.0, Figure("udp", "inline"), "stdlib-inline"),
    *_below("P5", 0.25, Figure("udp", "pool"), "stdlib-thread"),
    Limit("P6", Figure("idle", "greenlet", "kib_each"), 7.0),
    Limit("P6", Figure("idle", "pool", "kib_each"), 6.0),
    Limit("P6", Figure("idle", "pool", "threads"), 16.0),
    *(
        Limit("P6", Figure("idle", name, "p99_among_ms"), 1.3, Figure("idle", name, "p99_alone_ms"))
        for name in ("greenlet", "pool")
    ),
    *(
        Limit("P7", Figure("idle", name, "open_last_us"), 1.3, Figure("idle", name, "open_first_us"))
        for name in _HOLD_MANY
    ),
    *(
        Limit("P8", Figure("cpu", two, "per_second"), 1.8, Figure("cpu", one, "per_second"), at_least=True)
        for two, one in (("prefork-pool", "pool-2"), ("prefork-pool-1", "pool-1"))
    ),
    *(Limit("P9", Figure("shutdown", name, f"{kind}_p99_ms"), 5.0) for name in _STOP for kind in ("idle", "busy")),
    *(Limit("P9", Figure("wakeups", name, "per_minute"), 0.0) for name in _STOP),
    Limit("P10", Figure("connect-stream", "pool"), 1.25, Figure("connect", "pool")),
    *_never_worse(),
    *_below("P12", 0.6, Figure("http", "pool"), "stdlib-thread"),
    Limit(
        "P13",
        Figure("cpu", "free-threaded-pool-2", "per_second"),
        1.8,
        Figure("cpu", "free-threaded-pool-1", "per_second"),
        at_least=True,
    ),
)

TARGETS = tuple(dict.fromkeys(limit.target for limit in LIMITS))


def judge(rounds: Rounds) -> list[Verdict]:
    """All limits, in the order of the targets."""
    return [limit.judge(rounds) for limit in LIMITS]


def word_of(verdicts: Iterable[Verdict]) -> str:
    """Of a whole target: it is missed if one of its limits is, and holds if all were measured and hold."""
    words = {verdict.holds for verdict in verdicts}
    if False in words:
        return "MISSED"
    if words == {True}:
        return "holds"
    return "not measured" if words == {None} else "holds, as far as measured"


def caveats(rounds: Rounds) -> list[str]:
    """Why the verdicts are not yet those that count."""
    found = []
    number = max((len(each) for work in rounds.values() for each in work.values()), default=ENOUGH_ROUNDS)
    if number < ENOUGH_ROUNDS:
        found.append(f"medians of {number} rounds: the targets are about at least {ENOUGH_ROUNDS}")
    held = [each["connections"] for rows in rounds.get("idle", {}).values() for each in rows]
    if held and min(held) < MANY:
        found.append(f"{min(held):.0f} idle connections: the targets are about {MANY}")
    return found
