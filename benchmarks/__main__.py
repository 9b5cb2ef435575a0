"""The rounds, and the command line: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import pathlib
import resource
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence

import benchmarks
from benchmarks import contenders, plots, report, targets
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.loads import LoadError
from benchmarks.processes import ControlGroup, ServerDiedError, ServerProcess, control_groups
from benchmarks.works import FULL, SMOKE, WORKS, Effort, Figures, Places, Rate, Work


class Bench:
    """A run of some works on some servers."""

    def __init__(
        self, works: Sequence[Work], models: Sequence[str], effort: Effort, say: Callable[[str], object]
    ) -> None:
        self.works = works
        self.effort = effort
        self.rounds: dict[str, dict[str, list[Figures]]] = {}
        self.left_out: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self._missing: dict[Contender, str | None] = {}
        self._kept: dict[tuple[Contender, str], ServerProcess] = {}
        self.groups = control_groups()
        self._models = models
        self._say = say
        self._numbers = itertools.count(1)
        cores = sorted(os.sched_getaffinity(0))
        self.places = Places(clients=cores[0], server=cores[-1], both=tuple(cores[-2:]))

    def run(self, rounds: int) -> None:
        """Measure, round after round; the works within a round, so that a bad minute meets all alike."""
        for number in range(1, rounds + 1):
            for work in self.works:
                able = [each for each in work.contenders(number) if self._takes_part(each, work)]
                if not able:
                    continue
                if number % 2 == 0:
                    able.reverse()
                begun = time.monotonic()
                for server, each in self._measure(work, able).items():
                    self.rounds.setdefault(work.name, {}).setdefault(server, []).append(each)
                self._say(f"round {number}/{rounds}  {work.name:16} {time.monotonic() - begun:6.1f} s")
            self.stop_kept()

    def _measure(self, work: Work, able: Sequence[Contender]) -> dict[str, Figures]:
        """One work with all that can take part; if that fails, with each alone, so that one does not spoil it.

        It may also have been no server's fault: ``ab`` hangs at times.
        """
        if not isinstance(work, Rate) or any(protocol != work.protocol for _, protocol in self._kept):
            self.stop_kept()
        try:
            return work.measure(able, self._keep if isinstance(work, Rate) else self._start, self.places, self.effort)
        except (ServerDiedError, LoadError, OSError):
            self._say(f"{work.name}: once more, each server for itself")
            self.stop_kept()
        figures: dict[str, Figures] = {}
        for each in able:
            try:
                figures |= work.measure([each], self._start, self.places, self.effort)
            except (ServerDiedError, LoadError, OSError) as error:
                self.failures[f"{work.name} {each.name}"] = str(error)
                self._say(f"FAILED: {work.name} {each.name}: {error}")
        return figures

    def _takes_part(self, each: Contender, work: Work) -> bool:
        if self._models and each.name not in self._models and each.group not in self._models:
            return False
        if each not in self._missing:
            reason = self._missing[each] = each.missing()
            if reason is not None:
                self.left_out[each.name] = reason
                self._say(f"left out: {each.name}: {reason}")
        return self._missing[each] is None

    def _keep(
        self, each: Contender, protocol: str, cores: Collection[int]
    ) -> contextlib.AbstractContextManager[ServerProcess]:
        """Start one, unless the work before in this round did."""
        server = self._kept.get((each, protocol))
        if server is None:
            server = self._kept[each, protocol] = self._start(each, protocol, cores)
        return contextlib.nullcontext(server)

    def stop_kept(self) -> None:
        """End the servers that works of a kind share. Idempotent."""
        for server in self._kept.values():
            server.stop()
        self._kept.clear()

    def _start(self, each: Contender, protocol: str, cores: Collection[int]) -> ServerProcess:
        group = None
        if self.groups is not None:
            group = ControlGroup(self.groups, f"sockserve-bench-{os.getpid()}-{next(self._numbers)}")
        return ServerProcess(each.command(protocol), cores, group)


def arguments() -> argparse.ArgumentParser:
    """What may be asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    works = list(dict.fromkeys(name for work in WORKS for name in (work.name, family_of(work.name))))
    models = sorted({each.name for each in CONTENDERS} | {each.group for each in CONTENDERS})
    parser.add_argument("--work", nargs="*", default=[], choices=works, metavar="WORK", help=f"of {', '.join(works)}")
    parser.add_argument(
        "--model",
        nargs="*",
        default=[],
        choices=models,
        metavar="MODEL",
        help=f"of {', '.join(models)}; the floor joins",
    )
    parser.add_argument("--rounds", type=int, default=5, help="default 5, which the targets are about")
    parser.add_argument("--smoke", action="store_true", help="a few hundred requests for each cell, and no verdicts")
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results"), help="of JSON and plots"
    )
    return parser


def selected(names: Sequence[str]) -> list[Work]:
    """The works of these names; a name that is only a family's means all of the family. No names: all works."""
    families = set(names) - {work.name for work in WORKS}
    return [work for work in WORKS if not names or work.name in names or family_of(work.name) in families]


def family_of(name: str) -> str:
    """A work's name without its number and detail, in which several of one kind differ."""
    return name.rstrip("0123456789").partition("-")[0]


def main() -> int:
    """Measure what the command line asks for; exit status 1 if a server or its clients failed."""
    asked = arguments().parse_args()
    effort = SMOKE if asked.smoke else FULL
    works = [work for work in selected(asked.work) if work.name not in effort.without]
    models = [*asked.model, "floor"] if asked.model else []
    bench = Bench(works, models, effort, _say)
    # As Ctrl-C: what was started is stopped, and what was measured is told.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.environ["PYTHONPATH"] = contenders.python_path()
    os.sched_setaffinity(0, {bench.places.clients})
    about = {
        **report.machine(),
        "processor_time": "cgroup" if bench.groups else "process clocks",
        "begun": time.ctime(),
    }
    if bench.places.clients == bench.places.server:
        _say("one core for server and clients: the figures are about both")
    with contextlib.ExitStack() as last:
        last.callback(contenders.remove_floor)
        last.callback(bench.stop_kept)
        try:
            bench.run(1 if asked.smoke else asked.rounds)
        except KeyboardInterrupt:
            _say("interrupted; what there is:")
    for line in _lines(bench, asked.smoke):
        sys.stdout.write(f"{line}\n")
    if not asked.smoke:
        asked.output.mkdir(parents=True, exist_ok=True)
        path = asked.output / "results.json"
        report.write_json(path, about, bench.rounds, bench.left_out)
        _say(f"written: {path}")
        try:
            for path in plots.draw(bench.rounds, {work.name: work.unit for work in works}, asked.output):
                _say(f"written: {path}")
        except ImportError as error:
            _say(f"no plots: {error}")
    return int(bool(bench.failures))


def _lines(bench: Bench, is_smoke: bool) -> Iterator[str]:
    for work in bench.works:
        if work.name in bench.rounds:
            yield from report.work_table(work.name, work.unit, bench.rounds[work.name])
            yield ""
    if not is_smoke:
        verdicts = targets.judge(bench.rounds)
        yield from report.verdict_table(verdicts)
        yield from (f"note: {caveat}" for caveat in targets.caveats(bench.rounds))
    for reason in dict.fromkeys(bench.left_out.values()):
        yield f"left out: {', '.join(what for what, why in bench.left_out.items() if why == reason)}: {reason}"
    yield from (f"FAILED: {what}: {why}" for what, why in bench.failures.items())


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
