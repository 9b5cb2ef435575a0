"""What was measured, as tables for people and as JSON for programs."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import targets
from benchmarks.targets import Figure, Limit, Rounds, Verdict

MIN_ROUNDS = 3
"""From which on rounds differ in a way that can be said in a figure."""

PACKAGES = ("sockserve", "gevent", "greenlet", "trio", "uvloop")
PROGRAMS = {
    "ab": ("ab", "-V"),
    "redis-benchmark": ("redis-benchmark", "--version"),
    "dnsperf": ("dnsperf", "-h"),
    "wrk": ("wrk", "-v"),
    "cc": ("cc", "--version"),
}


def medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure, over the rounds."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: statistics.median(row[name] for row in rows if name in row) for name in names}


def work_table(work: str, unit: str, rows: Mapping[str, Sequence[Mapping[str, float]]]) -> Iterator[str]:
    """The lines of one work: each server with the medians of its figures, and its ratio to the floor."""
    figures = {server: medians(each) for server, each in rows.items()}
    names = list(dict.fromkeys(name for each in figures.values() for name in each))
    names.sort(key=lambda name: name != unit)
    base = figures.get("floor", {}).get(unit) if unit == "cpu_us" else None
    widths = [max(10, len(name) + 1) for name in names]
    heading = "".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    yield f"{work:22}{heading}   {'/ floor  +-%' if base else ''}   {unit}: lowest-highest"
    for server, each in figures.items():
        cells = (_cell(each.get(name), width) for name, width in zip(names, widths, strict=True))
        ratio = ""
        if base and unit in each:
            found = Limit("", Figure(work, server, unit), 1.0, Figure(work, "floor", unit)).of_each_round({work: rows})
            ratio = f"{each[unit] / base:7.2f} {spread(found):>4}"
        values = [row[unit] for row in rows[server] if unit in row]
        span = f"{number(min(values))}-{number(max(values))}" if values else ""
        yield f"  {server:20}{''.join(cells)}   {ratio}   {span}"


def spread(values: Sequence[float]) -> str:
    """Half of what lies between the first and the last quarter of the rounds, in percent of their median."""
    if len(values) < MIN_ROUNDS:
        return "-"
    first, middle, last = statistics.quantiles(values, n=4, method="inclusive")
    return f"{50 * (last - first) / middle:.1f}" if middle else "-"


def _cell(value: float | None, width: int) -> str:
    return f"{'' if value is None else number(value):>{width}}"


def number(value: float) -> str:
    """With about three digits, whatever its size."""
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"


def verdict_table(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """The lines of the verdicts: each target with those of its limits that were measured."""
    for target, group in itertools.groupby(verdicts, lambda verdict: verdict.limit.target):
        limits = list(group)
        shown = [each for each in limits if each.holds is not None]
        if not shown:
            continue
        yield f"{target:4} {targets.word_of(limits)}"
        yield from (f"       {line}" for line in map(_verdict_line, shown))


def _verdict_line(verdict: Verdict) -> str:
    limit = verdict.limit
    sign = ">=" if limit.at_least else "<="
    found = "-" if verdict.found is None else f"{verdict.found:.3f}"
    unit = f" x {limit.other.work} {limit.other.server}" if limit.other is not None else ""
    if limit.other is not None and limit.other.name != limit.figure.name:
        unit += f" {limit.other.name}"
    return (
        f"{verdict.word:12} {found:>9} +-{spread(verdict.rounds):>4} % {sign} {limit.factor:g}{unit:34} {limit.figure}"
    )


def machine() -> dict[str, Any]:
    """What it was measured on, and with."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": sys.version,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "programs": {name: version for name, command in PROGRAMS.items() if (version := _first_line(command))},
        "commit": _first_line(("git", "describe", "--always", "--dirty")),
    }


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(command: Sequence[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=30, cwd=pathlib.Path(__file__).parent
    )
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if any(map(str.isdigit, line))]
    return lines[0] if lines else None


def write_json(path: pathlib.Path, about: Mapping[str, Any], rounds: Rounds, left_out: Mapping[str, str]) -> None:
    """Everything: the machine, each round, the medians, the verdicts."""
    verdicts = targets.judge(rounds)
    document = {
        **about,
        "caveats": targets.caveats(rounds),
        "left_out": left_out,
        "medians": {work: {server: medians(each) for server, each in rows.items()} for work, rows in rounds.items()},
        "verdicts": [
            {
                "target": each.limit.target,
                "figure": each.limit.figure._asdict(),
                "over": None if each.limit.other is None else each.limit.other._asdict(),
                "limit": each.limit.factor,
                "at_least": each.limit.at_least,
                "found": each.found,
                "verdict": each.word,
            }
            for each in verdicts
        ],
        "rounds": rounds,
    }
    path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
