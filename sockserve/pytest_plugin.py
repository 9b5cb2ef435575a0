"""The pytest fixtures ``running``, a server for the length of a test, and ``certificate_authority``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar

import pytest

if TYPE_CHECKING:
    from sockserve.testing.certificates import CertificateAuthority
    from sockserve.testing.servers import Servable

__all__ = ["Running", "certificate_authority", "has_failed", "pytest_runtest_logreport", "running"]

# Every pytest run of an environment in which sockserve is installed imports this module, whatever its pytest: nothing
# here may need a pytest newer than 6.2, or import more of sockserve than the package itself.

_failed: set[str] = set()
"""The ids of the tests that failed."""

ServerT = TypeVar("ServerT", bound="Servable")


class Running(Protocol):
    """The type of the fixture ``running``."""

    def __call__(self, server: ServerT, *, timeout: float = 10.0, poll_interval: float | None = None) -> ServerT:
        """Serve in a thread until the test ends; see ``sockserve.testing.running``."""
        ...


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember that a test failed: its leaks are not reported, because its traceback keeps sockets alive."""
    if report.failed:
        _failed.add(report.nodeid)
    elif report.when == "setup":
        # A plugin runs the failed test again.
        _failed.discard(report.nodeid)


def has_failed(item: pytest.Item) -> bool:
    """Say whether a phase of a test has failed so far."""
    return item.nodeid in _failed


@pytest.fixture(scope="session")
def certificate_authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    """Signs certificates for servers and clients of this session: ``certificate_authority.sign("localhost")``."""
    from sockserve.testing.certificates import CertificateAuthority  # noqa: PLC0415 - as below

    return CertificateAuthority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    """Each server that it is called with serves in a thread until the test ends, and is then stopped, last first.

    It returns the server: ``server = running(MyServer(address, MyHandler))``. What ``serve_forever()`` raised is raised
    when the test has ended. A test that passed must have left no thread, descriptor or child process behind within the
    longest ``timeout`` given, counted from the end of the last server (see ``sockserve.testing.running``).
    """
    # Imported here: sessions without this fixture do not pay for it.
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
