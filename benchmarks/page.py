"""What runs found, written into the documents: ``python -m benchmarks.page RESULTS.json...``, one file for each run.

Replaced is what stands between the markers in README.md and docs/: explanation/performance-results.md has everything,
explanation/performance.md, index.md and README.md the first screen, how-to/choose-a-model.md a line for each model; and
the plots in docs/pictures/measured/.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks import plots, targets
from benchmarks.report import medians, number, spread
from benchmarks.targets import Figure, Limit, Rounds, Verdict
from benchmarks.works import WORKS

RESULTS_PAGE = "explanation/performance-results.md"
DOCUMENTS = pathlib.Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- measured: written by make bench-page -->", "<!-- end of what was measured -->"
PLOTS = ("ping500", "connect", "udp", "http", "idle")
BETWEEN_RUNS = " · "

KEPT = ("ping1", "ping50", "ping500", "ping2000", "ping-unix", "ping-stream", "http-kept")
OPENED = ("connect", "connect-stream", "udp", "http")
UNITS = {work.name: work.unit for work in WORKS}

MODELS = {
    "`inline`": [("udp", "inline", "cpu_us", "µs for a datagram")],
    "`thread`": [("connect", "thread", "cpu_us", "µs for a connection"), ("idle", "thread", "kib_each", "KiB silent")],
    "`pool`": [
        ("connect", "pool", "cpu_us", "µs for a connection"),
        ("ping500", "pool", "cpu_us", "µs for a request on one of 500"),
        ("idle", "pool", "kib_each", "KiB silent"),
    ],
    "`greenlet`": [
        ("ping500", "greenlet", "cpu_us", "µs for a request on one of 500"),
        ("idle", "greenlet", "kib_each", "KiB silent"),
    ],
    "`fork`": [("connect", "fork", "cpu_us", "µs for a connection")],
    "worker processes": [("cpu", "prefork-pool", "per_second", "computed answers a second on two processors")],
}
"""Of each model, what the page about choosing one says: work, server, figure, words."""

ONE_PROCESS = Figure("cpu", "pool-2", "per_second")
"""Beside which the worker processes' figure stands."""

WHERE_ALL_STAND = {
    "a C program": "floor",
    "`socketserver`, threads": "stdlib-thread",
    "gevent": "gevent",
    "asyncio": "asyncio",
    "asyncio on uvloop": "uvloop",
    "trio": "trio",
    "sockserve, `inline`": "inline",
    "sockserve, `thread`": "thread",
    "sockserve, `pool`": "pool",
    "sockserve, `greenlet`": "greenlet",
}
"""The rows of the table in README.md."""

AT_A_GLANCE = {
    "a connection per request, 50 at once": ("connect", "cpu_us"),
    "a request on one of 500 kept connections": ("ping500", "cpu_us"),
    "a datagram": ("udp", "cpu_us"),
    "KiB for a silent connection": ("idle", "kib_each"),
}
"""Its columns."""

FIRST_SCREEN = {
    "a C program": ("connect", "floor"),
    "sockserve, pool": ("connect-stream", "pool"),
    "sockserve, greenlets": ("connect-stream", "greenlet"),
    "sockserve, threads": ("connect-stream", "thread"),
    "socketserver, threads": ("connect-stream", "stdlib-thread"),
    "asyncio on uvloop": ("connect", "uvloop"),
    "gevent": ("connect", "gevent"),
    "asyncio": ("connect", "asyncio"),
    "trio": ("connect", "trio"),
}
"""The bars of the one plot there: of each library what its first page teaches, of us and socketserver
``StreamRequestHandler``."""

PLOT_SHOWS = {
    "ping500": "a request on one of 500 kept connections",
    "connect": "a connection and its answer",
    "udp": "a datagram",
    "http": "a page of http.server",
    "idle": "memory of an idle connection",
}
"""Words for readers that do not see the plots."""

Runs = Sequence[Rounds]


def merged(runs: Runs) -> dict[str, dict[str, list[Mapping[str, float]]]]:
    """All rounds of all runs."""
    together: dict[str, dict[str, list[Mapping[str, float]]]] = {}
    for run in runs:
        for work, rows in run.items():
            for server, rounds in rows.items():
                together.setdefault(work, {}).setdefault(server, []).extend(rounds)
    return together


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of one in Markdown, and an empty one."""
    yield f"| {' | '.join(heading)} |"
    yield f"|{'---|' * len(heading)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def of_each_run(runs: Runs, figure: Figure) -> str:
    """The median of each; nothing if no run measured it. Zero is a figure."""
    found = [figure.median(run) for run in runs]
    if all(each is None for each in found):
        return ""
    return BETWEEN_RUNS.join("-" if each is None else number(each) for each in found)


def performance(documents: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The lines for the page about performance."""
    runs = [document["rounds"] for document in documents]
    yield from _about(documents)
    yield from _verdicts(runs)
    yield "### What a request costs"
    yield ""
    yield f"Microseconds of processor time per request{_medians(runs)}; less is better."
    yield ""
    for works in (KEPT, OPENED):
        yield from _matrix(runs, works, lambda work, server: of_each_run(runs, Figure(work, server)))
    yield "As multiples of the floor, medians over all rounds, with how far they spread from round to round:"
    yield ""
    together = merged(runs)
    for works in (KEPT, OPENED):
        yield from _matrix(
            runs,
            [work for work in works if "floor" in together.get(work, {})],
            lambda w, s: _over_floor(together, w, s),
        )
    yield _picture("cost-against-connections", "Lines: what a request costs against the number of kept connections")
    yield ""
    for work in PLOTS:
        if work in together:
            yield _picture(work, f"Bars: {PLOT_SHOWS[work]}, {_in_words(together[work], UNITS[work])}")
            yield ""
    yield "### How fast, and how long a client waits"
    yield ""
    yield f"Requests a second and milliseconds{_medians(runs)}: of the pair of server and client, on a core each."
    yield ""
    for work in ("ping500", "connect"):
        yield from _figures(runs, work, ("per_second", "p50_ms", "p99_ms"))
    yield "### Idle connections, computing, stopping, waking"
    yield ""
    for work in ("idle", "cpu", "shutdown", "wakeups"):
        yield from _figures(runs, work)


def _picture(name: str, words: str, folder: str = "../pictures") -> str:
    return f"![{words}]({folder}/measured/{name}.svg)"


def _in_words(rows: Mapping[str, Sequence[Mapping[str, float]]], unit: str) -> str:
    found = {server: value for server, each in rows.items() if (value := medians(each).get(unit)) is not None}
    return ", ".join(f"{server} {number(found[server])}" for server in sorted(found, key=found.__getitem__))


def first_screen(runs: Runs) -> dict[str, tuple[str, float]]:
    """The bars of its plot: words, contender, and the median of the runs' medians."""
    bars = {}
    for words, (work, server) in FIRST_SCREEN.items():
        found = [value for run in runs if (value := Figure(work, server).median(run)) is not None]
        if found:
            bars[words] = server, statistics.median(found)
    return bars


def glance(documents: Sequence[Mapping[str, Any]], folder: str) -> Iterator[str]:
    """The plot of the first screen, whose words have its figures, and what was measured on what."""
    bars = first_screen([document["rounds"] for document in documents])
    ordered = sorted(bars.items(), key=lambda each: each[1][1])
    words = "; ".join(f"{name} {number(value)}" for name, (_, value) in ordered)
    yield _picture("at-a-glance", f"Bars of µs for a connection and its answer: {words}", folder)
    yield ""
    first = documents[0]
    yield "Microseconds of processor time of the server, user and system, for a connection and its answer, 50 at once;"
    yield "sockserve and socketserver with a `StreamRequestHandler`, the others as their documents teach it."
    yield f"{len(documents)} run{'s' * (len(documents) > 1)} of `make bench` on {first['cores']} cores of"
    yield f"{first['processor']}, Python {first['python'].split()[0]}."
    yield ""


def _medians(runs: Runs) -> str:
    return f", medians of each of {len(runs)} runs" if len(runs) > 1 else ", medians"


def _about(documents: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    first = documents[0]
    versions = [f"Python {first['python'].split()[0]}"]
    versions += [f"{name} {version}" for name, version in first["packages"].items() if name != "sockserve"]
    yield f"Measured on {first['cores']} cores of {first['processor']}, {first['system']}, with {', '.join(versions)};"
    yield "; ".join(f"{each['begun']}, sockserve at {each['commit']}" for each in documents) + "."
    yield ""
    for caveat in dict.fromkeys(caveat for each in documents for caveat in each["caveats"]):
        yield f"Note: {caveat}."
        yield ""
    for reason in dict.fromkeys(reason for each in documents for reason in each["left_out"].values()):
        left_out = dict.fromkeys(what for each in documents for what, why in each["left_out"].items() if why == reason)
        yield f"Left out: {', '.join(left_out)}: {reason}."
        yield ""


def _verdicts(runs: Runs) -> Iterator[str]:
    """A row for each target, one for each miss, and one for each limit."""
    judged = [targets.judge(run) for run in runs]
    names = [f"run {each}" for each in range(1, len(runs) + 1)]
    yield "### Verdicts"
    yield ""
    rows = []
    for target in targets.TARGETS:
        own = [[verdict for verdict in run if verdict.limit.target == target] for run in judged]
        rows.append([target, *(_word(verdicts) for verdicts in own), _tightest(list(zip(*own, strict=True)))])
    yield from table(["target", *names, "the tightest of its limits, medians of the runs"], rows)
    limits = list(zip(*judged, strict=True))
    missed = [each for each in limits if any(verdict.holds is False for verdict in each)]
    yield "### What is missed" if missed else "No limit is missed."
    yield ""
    heading = ["target", "figure", "limit", *names]
    if missed:
        yield from table(heading, map(_limit_row, missed))
    yield "### All limits"
    yield ""
    yield "A ratio, or a figure, with how far it spreads from round to round where there are three of them."
    yield ""
    yield from table(
        heading, (_limit_row(each) for each in limits if any(verdict.holds is not None for verdict in each))
    )


def _word(verdicts: Sequence[Verdict]) -> str:
    missed = sum(verdict.holds is False for verdict in verdicts)
    word = targets.word_of(verdicts)
    return f"**missed**: {missed} of {len(verdicts)} limits" if missed else word


def _tightest(limits: Sequence[Sequence[Verdict]]) -> str:
    """The one that came nearest to being missed, or was missed most."""
    found = []
    for verdicts in limits:
        values = [verdict.found for verdict in verdicts if verdict.found is not None]
        if values:
            limit, value = verdicts[0].limit, statistics.median(values)
            share = (
                (limit.factor / value if limit.at_least else value / limit.factor) if limit.factor and value else value
            )
            found.append((share, f"{_what(limit)}: {value:.2f}, limit {limit.factor:g}"))
    return max(found)[1] if found else ""


def _what(limit: Limit) -> str:
    name = "" if limit.figure.name == "cpu_us" else f" {limit.figure.name}"
    what = f"`{limit.figure.work}` {limit.figure.server}{name}"
    if limit.other is None:
        return what
    other = limit.other
    if other.work != limit.figure.work:
        return f"{what} / `{other.work}` {other.server}"
    return f"{what} / {other.server if other.server != limit.figure.server else other.name}"


def _limit_row(verdicts: Sequence[Verdict]) -> list[str]:
    limit = verdicts[0].limit
    return [limit.target, _what(limit), f"{'≥' if limit.at_least else '≤'} {limit.factor:g}", *map(_found, verdicts)]


def _found(verdict: Verdict) -> str:
    if verdict.found is None:
        return "not measured"
    percent = spread(verdict.rounds)
    found = f"{verdict.found:.2f}" + (f" ± {percent} %" if percent != "-" else "")
    return found if verdict.holds else f"**{found}**"


def _matrix(runs: Runs, works: Collection[str], cell: Any) -> Iterator[str]:
    """Servers down, works across; nothing if none of the works was measured."""
    works = [work for work in works if any(work in run for run in runs)]
    servers = list(dict.fromkeys(server for run in runs for work in works for server in run.get(work, ())))
    if works:
        rows = ([server, *(cell(work, server) for work in works)] for server in servers)
        yield from table(["server", *(f"`{work}`" for work in works)], rows)


def _over_floor(together: Rounds, work: str, server: str) -> str:
    verdict = Limit("", Figure(work, server), 1.0, Figure(work, "floor")).judge(together)
    if verdict.found is None:
        return ""
    percent = spread(verdict.rounds)
    return f"{verdict.found:.2f}" + (f" ± {percent} %" if percent != "-" and server != "floor" else "")


def _figures(runs: Runs, work: str, names: Collection[str] = ()) -> Iterator[str]:
    """One work: servers down, figures across."""
    together = merged(runs).get(work, {})
    names = names or list(dict.fromkeys(name for rows in together.values() for name in medians(rows)))
    if together:
        rows = ([server, *(of_each_run(runs, Figure(work, server, name)) for name in names)] for server in together)
        yield from table([f"`{work}`", *names], rows)


def choice(documents: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The lines for the page about choosing a model."""
    together = merged([document["rounds"] for document in documents])
    rows = []
    for model, figures in MODELS.items():
        words = []
        for work, server, name, unit in figures:
            value = Figure(work, server, name).median(together)
            if value is not None:
                words.append(f"{number(value)} {unit}")
        one = ONE_PROCESS.median(together)
        if model == "worker processes" and words and one is not None:
            words.append(f"{number(one)} with one process")
        rows.append([model, ", ".join(words) or "not measured"])
    yield from table(["model", "what was measured of it"], rows)


def summary(documents: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The lines for README.md: one figure for each, the median over all rounds."""
    together = merged([document["rounds"] for document in documents])
    rows = []
    for words, server in WHERE_ALL_STAND.items():
        found = [Figure(work, server, name).median(together) for work, name in AT_A_GLANCE.values()]
        if any(each is not None for each in found):
            rows.append([words, *("" if each is None else number(each) for each in found)])
    yield from table(["", *AT_A_GLANCE], rows)


def replace(path: pathlib.Path, lines: Iterable[str], marker: str = BEGIN, last_marker: str = END) -> None:
    """What stands between the markers of a document. Raises ValueError without them."""
    before, begin, rest = path.read_text("utf-8").partition(marker)
    _, end, after = rest.partition(last_marker)
    if not end:
        raise ValueError(f"{path} has no markers {marker} and {last_marker}")
    text = "\n".join(lines).strip()
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", "utf-8")


def write(documents: Sequence[Mapping[str, Any]], folder: pathlib.Path) -> None:
    """The pages, and the plots."""
    replace(folder / RESULTS_PAGE, performance(documents))
    replace(folder / "explanation/performance.md", [*glance(documents, "../pictures"), *summary(documents)])
    replace(folder / "how-to/choose-a-model.md", choice(documents))
    replace(folder / "index.md", glance(documents, "pictures"))
    replace(folder.parent / "README.md", [*glance(documents, "docs/pictures"), *summary(documents)])
    runs = [document["rounds"] for document in documents]
    plots.draw(merged(runs), UNITS, folder / "pictures/measured", PLOTS)
    plots.draw_glance(first_screen(runs), folder / "pictures/measured")


def main() -> None:
    """Write what the files of the command line say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("results", nargs="+", type=pathlib.Path, help="results.json of a run")
    parser.add_argument("--documents", type=pathlib.Path, default=DOCUMENTS, help="the folder docs")
    asked = parser.parse_args()
    write([json.loads(path.read_text("utf-8")) for path in asked.results], asked.documents)


if __name__ == "__main__":
    sys.exit(main())
