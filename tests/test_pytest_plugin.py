"""The pytest plugin, in pytest sessions of its own."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator

import pytest

import sockserve
from sockserve.testing import leaks

ROOT = pathlib.Path(sockserve.__file__).parents[1]

# Whether sockserve is installed or not: never by its entry point, always by its module.
PLUGIN = ("-p", "no:sockserve", "-p", "sockserve.pytest_plugin")

PREAMBLE = """
    import os, socket, socketserver
    import sockserve
    from sockserve.testing import ask, connect

    class Echo(sockserve.StreamRequestHandler):
        def handle(self):
            self.wfile.write(self.rfile.read())

    def make(handler=Echo, base=sockserve.TCPServer):
        return base(("127.0.0.1", 0), handler)
"""


def run(pytester: pytest.Pytester, test: str) -> pytest.RunResult:
    """Run tests in a session that has the plugin."""
    pytester.makepyfile(PREAMBLE + test)
    return pytester.runpytest(*PLUGIN)


def test_a_server_serves_until_the_test_ends(pytester: pytest.Pytester) -> None:
    """It answers in the test, and nobody listens in the next one; the stdlib's too."""
    result = run(
        pytester,
        """
    import pytest
    addresses = []

    @pytest.mark.parametrize("base", [sockserve.ThreadingTCPServer, socketserver.ThreadingTCPServer])
    def test_first(running, base):
        server = running(make(base=base), poll_interval=0.01)
        assert ask(server, b"hello") == b"hello"
        addresses.append(server.server_address)

    def test_second():
        for address in addresses:
            with pytest.raises(ConnectionRefusedError):
                connect(address)
        assert len(addresses) == 2
    """,
    )
    result.assert_outcomes(passed=3)


def test_several_servers_are_checked_together(pytester: pytest.Pytester) -> None:
    """A connection to the first that is older than the second, or younger, is no leak while the first still runs."""
    result = run(
        pytester,
        """
    import pytest

    @pytest.fixture
    def first(running):
        server = running(make(base=sockserve.ThreadingTCPServer))
        with connect(server) as client:
            yield client

    def test_both(first, running):
        second = running(make())
        first.sendall(b"hello")
        first.shutdown(socket.SHUT_WR)
        assert ask(second, b"there") == b"there"
        assert first.recv(10) == b"hello"
    """,
    )
    result.assert_outcomes(passed=1)


def test_what_serve_forever_raised_is_an_error_of_the_test(pytester: pytest.Pytester) -> None:
    """The loop's exception is reported when the test ends."""
    result = run(
        pytester,
        """
    import threading

    class Server(sockserve.TCPServer):
        fail = threading.Event()
        fails = threading.Event()

        def service_actions(self):
            if self.fail.is_set():
                self.fails.set()
                raise LookupError("in the loop")

    def test_it(running):
        server = running(make(base=Server), poll_interval=0.001)
        server.fail.set()
        assert server.fails.wait(20)
    """,
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*LookupError: in the loop*"])


LEAKING = """
    class Leaks(sockserve.BaseRequestHandler):
        def handle(self):
            os.dup(self.request.fileno())

    def test_it(running):
        assert ask(running(make(Leaks)), b"") == b""
"""


@pytest.fixture
def _leaking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the inner session find leaks without a delay, and close what it left open in this process."""
    check_leaks = leaks.check_leaks
    monkeypatch.setattr(leaks, "check_leaks", lambda before, **_: check_leaks(before, timeout=0))
    before = leaks.take_inventory().descriptors
    yield
    for fd in leaks.take_inventory().descriptors.keys() - before.keys():
        os.close(fd)


@pytest.mark.usefixtures("_leaking")
def test_a_leak_is_an_error_of_the_test(pytester: pytest.Pytester) -> None:
    """What is left behind is named when the test ends."""
    result = run(pytester, LEAKING)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*LeakError: left behind: descriptor *, socket:*"])


@pytest.mark.usefixtures("_leaking")
def test_a_test_that_failed_is_not_told_of_leaks(pytester: pytest.Pytester) -> None:
    """There its own failure is the news."""
    result = run(pytester, LEAKING + "        raise LookupError\n")
    result.assert_outcomes(failed=1)


def test_installing_is_enough(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry point that the package declares gives a session the fixture; one that does not use it does not pay."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    entry_points = project["entry-points"]["pytest11"]
    metadata = pytester.mkdir(f"{project['name']}-{sockserve.__version__}.dist-info")
    (metadata / "METADATA").write_text(f"Name: {project['name']}\nVersion: {sockserve.__version__}\n")
    declared = [f"{name} = {module}" for name, module in entry_points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[pytest11]", *declared]))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile(
        """
        import sys

        def test_unused():
            assert "sockserve.pytest_plugin" in sys.modules
            assert "sockserve.testing" not in sys.modules
            assert "sockserve.core" not in sys.modules

        def test_used(running):
            assert "sockserve.testing" in sys.modules
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=2)


def test_an_older_pytest_imports_it(tmp_path: pathlib.Path) -> None:
    """The plugin imports with what pytest 6.2 has: no ``StashKey``, no ``wrapper``; and no server comes with it."""
    (tmp_path / "pytest.py").write_text(
        "def fixture(function=None, scope=None): return function or (lambda function: function)\n"
    )
    program = """
        import sys
        import sockserve.pytest_plugin as plugin
        assert plugin.pytest.__file__.startswith(sys.argv[1])
        print(*sorted(name for name in sys.modules if name.startswith("sockserve")))
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    command = [sys.executable, "-S", "-c", textwrap.dedent(program), str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    ours = ["sockserve", "sockserve.errors", "sockserve.log", "sockserve.pytest_plugin"]
    assert run.stdout.split() == ours, run.stderr
