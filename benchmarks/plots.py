"""The pictures: a bar for each server of a work, from zero; and the cost of a request against the connections kept.

Each is one SVG file for light and dark pages: it has a background of its own, and follows the reader's
``prefers-color-scheme``. The colours are those of Okabe and Ito, which colour-blind readers tell apart.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from benchmarks.contenders import BY_NAME, OURS
from benchmarks.report import medians, number
from benchmarks.targets import Rounds

WORDS = {
    "cpu_us": "µs of processor time per request (less is better)",
    "kib_each": "KiB per idle connection (less is better)",
    "per_second": "requests per second (more is better)",
    "p99_ms": "ms until an answer, 99th percentile (less is better)",
    "busy_p99_ms": "ms that shutdown() takes under load, 99th percentile (less is better)",
    "per_minute": "wake-ups per minute while idle (less is better)",
}

WIDTH = 5.0
"""Inches. Drawn for a phone: there the words are still large enough, and elsewhere the whole grows."""

INK, PAPER = "#1f2933", "#fffffe"
OUR, OTHER, STDLIB, FLOOR = "#0072b2", "#e69f00", "#cc79a7", "#8a8f94"
DARK = {INK: "#e4e7eb", PAPER: "#131416", OUR: "#56b4e9", FLOOR: "#a0a6ac"}
"""What stands for a colour on a dark page; those that are not here look well on both."""

KEY = {"sockserve": OUR, "socketserver": STDLIB, "other libraries": OTHER, "a C program": FLOOR}
LINES = {
    "floor": (FLOOR, ":", "s"),
    "stdlib-thread": (STDLIB, "--", "s"),
    "gevent": (OTHER, "--", "o"),
    "asyncio": ("#d55e00", "--", "^"),
    "uvloop": ("#b3a000", "--", "D"),
    "trio": (INK, "--", "v"),
    "thread": (STDLIB, "-", "s"),
    "pool": (OUR, "-", "o"),
    "greenlet": ("#009e73", "-", "^"),
    "prefork-pool": ("#6a5acd", "-", "D"),
}
"""Of each server in the picture of many connections: colour, style of the line, mark. Ours are not dashed."""


def draw(
    rounds: Rounds, units: Mapping[str, str], directory: pathlib.Path, bars: Collection[str] = ()
) -> list[pathlib.Path]:
    """Write the pictures as SVG, of some works or of all; return their paths.

    Raises ImportError without matplotlib (the extra ``bench``).
    """
    _prepare(directory)
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


def draw_glance(bars: Mapping[str, tuple[str, float]], directory: pathlib.Path) -> pathlib.Path:
    """The picture of the first screen: of each bar its words, the contender whose colour it has, and its length."""
    _prepare(directory)
    from matplotlib import pyplot as plt  # noqa: PLC0415

    names = sorted(bars, key=lambda each: bars[each][1], reverse=True)
    figure, axes = plt.subplots(figsize=(WIDTH, 0.7 + 0.32 * len(names)), layout="constrained")
    drawn = axes.barh(names, [bars[name][1] for name in names], color=[_colour(bars[name][0]) for name in names])
    axes.bar_label(drawn, fmt=number, padding=4)
    axes.set_xlim(0, 1.2 * max(value for _, value in bars.values()) or 1.0)
    axes.set_xlabel("µs of processor time (less is better)")
    for name, label in zip(names, axes.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if bars[name][0] in OURS else "normal")
    return _saved(figure, directory / "at-a-glance.svg")


def _prepare(directory: pathlib.Path) -> None:
    import matplotlib  # noqa: ICN001, PLC0415 - an extra, and half a second

    matplotlib.use("svg")
    # Words stay words, a tenth of the size; and the same figures give the same file.
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "sockserve", "font.size": 10}
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    matplotlib.rcParams |= dict.fromkeys(inked, INK)
    matplotlib.rcParams |= {"axes.facecolor": PAPER, "figure.facecolor": PAPER, "savefig.facecolor": PAPER}
    matplotlib.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    directory.mkdir(parents=True, exist_ok=True)


def _saved(figure: Any, path: pathlib.Path) -> pathlib.Path:
    """Write the picture, with each colour as one that the reader's scheme decides."""
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    text = path.read_text("utf-8")
    rules = []
    for count, (light, dark) in enumerate(DARK.items()):
        text = text.replace(light, f"var(--c{count}, {light})")
        rules.append(f"--c{count}: {dark}")
    # The words' own font is not on every machine; any without serifs will do.
    text = re.sub(r"font-family: '[^;\"]*(?=[;\"])", "font-family: system-ui, sans-serif", text)
    text = text.replace(
        "<defs>", f"<style>@media (prefers-color-scheme: dark) {{ svg {{ {'; '.join(rules)} }} }}</style>\n <defs>", 1
    )
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", "utf-8")
    return path


def _bars(
    work: str, unit: str, values: Mapping[str, float], spans: Mapping[str, Sequence[float]], directory: pathlib.Path
) -> pathlib.Path:
    from matplotlib import pyplot as plt  # noqa: PLC0415

    # A child for each request costs so much more that beside it all others would look alike.
    apart = [name for name in values if BY_NAME[name].forks]
    names = sorted((name for name in values if name not in apart or len(apart) == len(values)), key=values.__getitem__)
    names.reverse()
    figure, axes = plt.subplots(figsize=(WIDTH, 1.4 + 0.3 * len(names)), layout="constrained")
    # From the lowest round to the highest.
    reach = (
        [max(0.0, values[name] - min(spans[name])) for name in names],
        [max(0.0, max(spans[name]) - values[name]) for name in names],
    )
    colours = [_colour(name) for name in names]
    bars = axes.barh(names, [values[name] for name in names], xerr=reach, color=colours, ecolor=INK)
    axes.bar_label(bars, fmt=number, padding=4)
    axes.set_xlim(0, 1.2 * max(max(spans[name]) for name in names) or 1.0)
    axes.set_xlabel(WORDS[unit])
    beyond = ", ".join(f"{name} {number(values[name])}" for name in apart if name not in names)
    axes.set_title(f"{work}\n(beyond the scale: {beyond})" if beyond else work)
    shown = {words: colour for words, colour in KEY.items() if colour in colours}
    patches = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in shown.values()]
    figure.legend(patches, list(shown), loc="outside lower center", ncols=2 if len(shown) == 4 else len(shown))
    return _saved(figure, directory / f"{work}.svg")


def _curves(rounds: Rounds) -> dict[str, list[tuple[int, float]]]:
    """Of each server, what a request costs at each number of kept connections."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for work, rows in rounds.items():
        if number := re.fullmatch(r"ping(\d+)", work):
            for name, each in rows.items():
                if name in LINES:
                    curves.setdefault(name, []).append((int(number[1]), medians(each)["cpu_us"]))
    return {name: sorted(points) for name, points in curves.items()}


def _lines(curves: Mapping[str, list[tuple[int, float]]], directory: pathlib.Path) -> pathlib.Path:
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(WIDTH, 5), layout="constrained")
    for name, points in curves.items():
        if len(points) > 1:
            colour, style, mark = LINES[name]
            axes.plot(*zip(*points, strict=True), style, color=colour, marker=mark, label=name)
    axes.set_xscale("log")
    counts = sorted({count for points in curves.values() for count, _ in points})
    axes.set_xticks(counts, labels=[str(count) for count in counts])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("kept connections")
    axes.set_ylabel(WORDS["cpu_us"])
    figure.legend(loc="outside lower center", ncols=3)
    return _saved(figure, directory / "cost-against-connections.svg")


def _colour(name: str) -> str:
    contender = BY_NAME[name]
    if contender.group == "floor":
        return FLOOR
    if contender.group == "stdlib":
        return STDLIB
    return OUR if name in OURS else OTHER
