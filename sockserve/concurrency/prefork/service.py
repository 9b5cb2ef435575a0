"""What a supervisor has to be told: what its workers are for, and what it may decide by."""

from __future__ import annotations

from typing import Protocol

from sockserve.concurrency.prefork.phases import Phase
from sockserve.concurrency.prefork.worker_link import Link

__all__ = ["Service", "Settings"]


class Settings(Protocol):
    """What is read when it is needed; explained at ``PreForkMixIn``."""

    @property
    def processes(self) -> int | None: ...  # noqa: D102
    @property
    def max_requests(self) -> int | None: ...  # noqa: D102
    @property
    def max_requests_jitter(self) -> int | None: ...  # noqa: D102
    @property
    def worker_timeout(self) -> float | None: ...  # noqa: D102
    @property
    def drain_timeout(self) -> float | None: ...  # noqa: D102


class Service(Protocol):
    """What the workers are for."""

    def work(self, link: Link) -> None:
        """Serve until told to leave and nothing is in progress. Called in each worker."""

    def open_place(self, place: int) -> None:
        """The worker of this number is about to be made. Raises OSError."""

    def place_is_empty(self, place: int, others_serve: bool) -> None:
        """Its worker could not start; whether workers of other places serve."""

    def close_place(self, place: int) -> None:
        """There shall be no worker of this number any more."""

    def ports(self) -> list[int]:
        """The descriptors of this process's listeners; -1 for one that is closed."""
        ...

    def close_ports(self) -> None:
        """The workers are to end for good, and have closed their copies of the listeners."""

    def serves(self) -> None:
        """A worker is ready."""

    def stands(self, phase: Phase, is_rolling: bool, is_lame: bool) -> None:
        """The supervisor has come to this phase, or a rolling restart has begun, was asked for again, or is over.

        ``is_lame``: a stop was announced.
        """
