"""The pytest fixture ``running``: what ``sockserve.testing.running`` does, for the length of a test."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest

if TYPE_CHECKING:
    from sockserve.testing.servers import Servable

__all__ = ["Running", "has_failed", "pytest_runtest_makereport", "running"]

_FAILED = pytest.StashKey[bool]()

ServerT = TypeVar("ServerT", bound="Servable")


class Running(Protocol):
    """The type of the fixture ``running``."""

    def __call__(self, server: ServerT, *, timeout: float = 10.0, poll_interval: float | None = None) -> ServerT:
        """Serve in a thread until the test ends; see ``sockserve.testing.running``."""
        ...


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Remember that a test failed: what it leaves behind is then no news, and its traceback keeps sockets alive."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


def has_failed(item: pytest.Item) -> bool:
    """Say whether some phase of a test failed, so far."""
    return item.stash.get(_FAILED, False)


@pytest.fixture
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    """Each server that it is called with serves in a thread until the test ends, and is then stopped, last first.

    It returns the server: ``server = running(MyServer(address, MyHandler))``. What ``serve_forever()`` raised is raised
    when the test has ended. One that passed must have left no thread, descriptor or child process behind, the longest
    ``timeout`` given after the last server has stopped (see ``sockserve.testing.running``).
    """
    # Sessions that do not use the fixture shall not pay for it.
    from sockserve.testing import leaks, servers  # noqa: PLC0415

    before = leaks.take_inventory()
    longest = 0.0
    with contextlib.ExitStack() as stack:

        def start(server: ServerT, *, timeout: float = 10.0, poll_interval: float | None = None) -> ServerT:
            nonlocal longest
            longest = max(longest, timeout)
            served = servers.running(server, timeout=timeout, poll_interval=poll_interval, check_leaks=False)
            return stack.enter_context(served)

        yield start
    if not has_failed(request.node):  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        leaks.check_leaks(before, timeout=longest)
