"""The pictures: a bar for each server of a work, from zero; and the cost of a request against the connections kept."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Collection, Mapping, Sequence

from benchmarks.contenders import BY_NAME, OURS
from benchmarks.report import medians, number
from benchmarks.targets import Rounds

WORDS = {
    "cpu_us": "µs of processor time per request (less is better)",
    "kib_each": "KiB per idle connection (less is better)",
    "per_second": "requests per second (more is better)",
    "busy_p99_ms": "ms that shutdown() takes under load, 99th percentile (less is better)",
    "per_minute": "wake-ups per minute while idle (less is better)",
}
FLOOR, OUR, OTHER = "#888888", "#1f77b4", "#d9a441"


def draw(
    rounds: Rounds, units: Mapping[str, str], directory: pathlib.Path, bars: Collection[str] = ()
) -> list[pathlib.Path]:
    """Write the pictures as SVG, of some works or of all; return their paths.

    Raises ImportError without matplotlib (the extra ``bench``).
    """
    import matplotlib  # noqa: ICN001, PLC0415 - an extra, and half a second

    matplotlib.use("svg")
    # Words stay words, a tenth of the size; and the same figures give the same file.
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "sockserve"}
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for work, rows in rounds.items():
        unit = units[work]
        values = {name: value for name, each in rows.items() if (value := medians(each).get(unit)) is not None}
        if values and (not bars or work in bars):
            paths.append(
                _bars(work, unit, values, {name: [row[unit] for row in rows[name]] for name in values}, directory)
            )
    curves = _curves(rounds)
    if any(len(points) > 1 for points in curves.values()):
        paths.append(_lines(curves, directory))
    return paths


def _bars(
    work: str, unit: str, values: Mapping[str, float], spans: Mapping[str, Sequence[float]], directory: pathlib.Path
) -> pathlib.Path:
    from matplotlib import pyplot as plt  # noqa: PLC0415

    # A child for each request costs so much more that beside it all others would look alike.
    apart = [name for name in values if BY_NAME[name].forks]
    names = sorted((name for name in values if name not in apart or len(apart) == len(values)), key=values.__getitem__)
    names.reverse()
    figure, axes = plt.subplots(figsize=(8, 1 + 0.32 * len(names)), layout="constrained")
    # From the lowest round to the highest.
    reach = (
        [max(0.0, values[name] - min(spans[name])) for name in names],
        [max(0.0, max(spans[name]) - values[name]) for name in names],
    )
    bars = axes.barh(names, [values[name] for name in names], xerr=reach, color=[_colour(name) for name in names])
    axes.bar_label(bars, fmt=number, padding=4)
    axes.set_xlim(0, 1.15 * max(max(spans[name]) for name in names) or 1.0)
    axes.set_xlabel(WORDS[unit])
    beyond = ", ".join(f"{name} {number(values[name])}" for name in apart if name not in names)
    axes.set_title(f"{work}\n(beyond the scale: {beyond})" if beyond else work)
    path = directory / f"{work}.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def _curves(rounds: Rounds) -> dict[str, list[tuple[int, float]]]:
    """Of each server, what a request costs at each number of kept connections."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for work, rows in rounds.items():
        if number := re.fullmatch(r"ping(\d+)", work):
            for name, each in rows.items():
                if BY_NAME[name].forks:
                    continue
                curves.setdefault(name, []).append((int(number[1]), medians(each)["cpu_us"]))
    return {name: sorted(points) for name, points in curves.items()}


def _lines(curves: Mapping[str, list[tuple[int, float]]], directory: pathlib.Path) -> pathlib.Path:
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, points in curves.items():
        if len(points) > 1:
            style = "-" if name in OURS else ":" if name == "floor" else "--"
            axes.plot(*zip(*points, strict=True), style, marker="o", label=name)
    axes.set_xscale("log")
    counts = sorted({count for points in curves.values() for count, _ in points})
    axes.set_xticks(counts, labels=[str(count) for count in counts])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("kept connections")
    axes.set_ylabel(WORDS["cpu_us"])
    axes.legend(ncols=2)
    path = directory / "cost-against-connections.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def _colour(name: str) -> str:
    if BY_NAME[name].group == "floor":
        return FLOOR
    return OUR if name in OURS else OTHER
