"""Tries injections: ``python tests/injection/run.py --model pool --kind interrupt --all``.

Without ``--all`` a sample, which another seed moves. What is printed of a finding are the options that repeat it.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import random
import resource
import sys

if __name__ == "__main__":
    sys.path[0] = str(pathlib.Path(__file__).parent.parent)

from injection.lives import LIVES
from injection.trials import KINDS, Outcome, Trial, kinds_of, models, try_out

__all__ = ["main"]


class Run:
    """Trials one after the other, and what they found."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.tried = 0
        self.bad = 0
        self._began = _cpu()

    def is_over(self) -> bool:
        """Whether the time is up."""
        return self.options.seconds is not None and _cpu() - self._began > self.options.seconds

    def try_out(self, trial: Trial) -> Outcome:
        """Run one, and print what it found."""
        outcome = try_out(trial, self.options.limit)
        self.tried += 1
        if self.options.verbose:
            print(f"{trial}: {outcome.count}, {outcome.place}", flush=True)
        if outcome.findings:
            self.bad += 1
            found = "\n".join(outcome.findings).replace("\n", "\n    ")
            print(f"{trial}\n  at {outcome.place or 'no place'}:\n    {found}", flush=True)
        return outcome

    def all(self, group: Trial) -> None:
        """Try every place of a group, or every n-th."""
        for number in itertools.count(self.options.number or 1, self.options.step):
            if self.is_over() or not self.try_out(group._replace(number=number)).place:
                return

    def sample(self, groups: list[Trial], source: random.Random) -> None:
        """Try a place of each group, another one of each, and so on."""
        counts: dict[Trial, int] = {}
        while self.tried < self.options.tries:
            for group in groups:
                if self.is_over() or self.tried >= self.options.tries:
                    return
                if group not in counts:
                    counts[group] = self.try_out(group).count
                if counts[group]:
                    self.try_out(group._replace(number=source.randrange(counts[group]) + 1))


def main(arguments: list[str] | None = None) -> int:
    """Return how many trials found something."""
    options = _parse(arguments)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    source = random.Random(seed)  # noqa: S311 - it has to be repeatable, not secret
    groups = [
        Trial(model, life, kind, 0)
        for model in options.model or models()
        for life in options.life or LIVES
        for kind in options.kind or KINDS
        if kind in kinds_of(life)
    ]
    run = Run(options)
    if options.all:
        for group in groups:
            run.all(group)
    elif options.number is not None:
        for group in groups:
            run.try_out(group._replace(number=options.number))
    else:
        source.shuffle(groups)
        run.sample(groups, source)
    print(f"{run.bad} of {run.tried} trials found something; seed {seed}", flush=True)
    return run.bad


def _cpu() -> float:
    """Seconds that this process and those it made have had a processor."""
    used = [resource.getrusage(each) for each in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=models(), help="only this one; may be given again")
    parser.add_argument("--life", action="append", choices=[*LIVES], help="only this one; may be given again")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this one; may be given again")
    parser.add_argument("--seed", type=int, help="repeats a sample")
    parser.add_argument("--number", type=int, help="the one place or call to try; with --all: the first")
    parser.add_argument("--all", action="store_true", help="every place, instead of a sample")
    parser.add_argument("--step", type=int, default=1, metavar="N", help="with --all: every n-th place only")
    parser.add_argument("--tries", type=int, default=200, help="how many a sample has")
    parser.add_argument("--seconds", type=float, help="of processor time, after which no trial begins")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds of one wait, after which it hangs")
    parser.add_argument("--verbose", action="store_true", help="print each trial")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(min(1, main()))
