"""The stacks of all workers in the log, whenever they are asked for: what each of their threads does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from sockserve.concurrency.prefork.crew import Crew
from sockserve.concurrency.prefork.worker_handle import WorkerHandle
from sockserve.log import Lines, log

__all__ = ["ask_for_stacks"]

TIME = 0.5
"""Seconds that a worker has: writing is done by a signal's handler in C, at once unless the process is stopped."""


def ask_for_stacks(crew: Crew, tell: Callable[[str], object] | None) -> None:
    """Let each worker tell its stacks, and ``tell`` them after ``TIME``; None: log them.

    In the supervisor's thread, while a loop runs.
    """
    workers = list(crew.workers.values())
    for worker in workers:
        worker.take_text()
        worker.ask_for_stacks()
    crew.loop.call_later(TIME, functools.partial(_show, crew, workers, tell))


def _show(crew: Crew, workers: Sequence[WorkerHandle], tell: Callable[[str], object] | None) -> None:
    texts: list[str] = []
    for worker in workers:
        if worker.child.pid in crew.workers:
            crew.hear(worker)
            stacks = worker.take_text() or "It does not answer."
            texts.append(f"{worker}:\n{stacks}")
    if tell is not None:
        tell("\n\n".join(texts) or "There is no worker.")
        return
    for text in texts:
        log.warning("%s: the stacks of %s", crew.name, Lines(text))
