"""The command ``sockserve``: what it accepts, what it says about the rest, and that it serves."""

from __future__ import annotations

import importlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.under_test import LIMIT

import sockserve
from sockserve import testing
from sockserve.run import command_line

ROOT = pathlib.Path(sockserve.__file__).parent.parent
MODULE = """
import sockserve, http.server

class Upper(sockserve.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().upper())

class Outer:
    class Inner(sockserve.DatagramRequestHandler):
        def handle(self):
            self.wfile.write(self.packet.upper())

    Twin = Inner

class NotOne:
    pass

Old = http.server.SimpleHTTPRequestHandler
"""


def command(*arguments: str) -> list[str]:
    """The command line that runs it."""
    return [sys.executable, "-m", "sockserve", *arguments]


@pytest.fixture
def program_directory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The current directory, with a module ``mine`` in it; the package is found by PYTHONPATH."""
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


class Running:
    """A program that serves: its output so far, and its end."""

    def __init__(self, *arguments: str, **options: Any) -> None:
        self.process = subprocess.Popen(
            command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def addresses(self, count: int = 1) -> list[str]:
        """Where it says that it listens."""
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline() for _ in range(count)]
        return [line.removeprefix("Listening on ").strip() for line in lines]

    def end(self, signum: int = signal.SIGTERM) -> tuple[int, str]:
        """Its exit status and what it wrote to stderr, after a signal."""
        self.process.send_signal(signum)
        _, errors = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, errors


def refused(*arguments: str) -> tuple[int, str]:
    """The exit status and the message of a command that serves nothing."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


# that it serves


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_alone_it_echoes_on_a_free_port_and_says_how_to_talk_to_it(signum: int) -> None:
    """The printed line, typed as it is, answers and ends by itself; the exit status after a signal is 0."""
    if shutil.which("nc") is None and os.environ.get("CI") != "true":
        pytest.skip("nc is not installed")
    with Running() as program:
        (address,) = program.addresses()
        assert address.startswith("tcp://127.0.0.1:")
        assert program.process.stdout is not None
        assert program.process.stdout.readline() == "Talk to it from another terminal:\n"
        line = program.process.stdout.readline().strip()
        talk = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, timeout=LIMIT, check=True)
        assert (talk.stdout, talk.stderr) == ("hello\n", "")
        assert program.end(signum) == (0, "")


def test_it_echoes_on_every_kind_of_address(tmp_path: pathlib.Path) -> None:
    """Addresses alone serve the echo handler there."""
    given = ["tcp://[::1]:0", "udp://127.0.0.1:0", f"unix:{tmp_path}/a b", f"unix-dgram:{tmp_path}/d"]
    if sys.platform == "linux":
        given.append(f"unix:@sockserve-{os.getpid()}")
    with Running(*given) as program:
        addresses = program.addresses(len(given))
        assert addresses[2:] == given[2:]
        assert [testing.ask(address, b"ping") for address in addresses] == [b"ping"] * len(given)
        assert program.end() == (0, "")


@pytest.mark.parametrize(
    "model", [model for model in ("inline", "thread", "fork") if hasattr(os, "fork") or model != "fork"]
)
@pytest.mark.usefixtures("program_directory")
def test_a_handler_of_the_current_directory_is_served(model: str) -> None:
    """A class is found by its name, nested ones too, and served as the options say."""
    options = ["--model", model, "--drain-timeout", "5", "--backlog=9", "--log-level", "INFO"]
    with Running("mine:Upper", *options, "tcp://127.0.0.1:0") as program:
        (address,) = program.addresses()
        assert testing.ask(address, b"hello\n") == b"HELLO\n"
        status, log = program.end()
    assert status == 0
    assert "INFO sockserve: listening on tcp://127.0.0.1:" in log
    assert "1 request accepted, 1 handled" in log
    with Running("mine:Outer.Inner", "udp://127.0.0.1:0") as program:
        (address,) = program.addresses()
        assert testing.ask(address, b"hello") == b"HELLO"


@pytest.mark.usefixtures("program_directory")
def test_a_handler_of_the_standard_library_is_served() -> None:
    """http.server's, which knows nothing of sockserve, on a free port because no address is given."""
    with Running("http.server:SimpleHTTPRequestHandler") as program:
        (address,) = program.addresses()
        answer = testing.ask(address, b"GET /mine.py HTTP/1.0\r\n\r\n")
        assert answer.endswith(MODULE.encode())
        assert program.end()[0] == 0


def test_the_installed_command_is_this_one() -> None:
    """The entry point in pyproject.toml names ``main``."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["sockserve"].partition(":")
    assert getattr(importlib.import_module(module), name) is command_line.main


def test_an_inherited_descriptor_is_served() -> None:
    """fd:N, as a supervisor passes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        with Running(f"fd:{fd}", pass_fds=[fd]) as program:
            assert program.addresses() == [f"tcp://127.0.0.1:{listener.getsockname()[1]}"]
            assert testing.ask(listener.getsockname(), b"ping") == b"ping"
            assert program.end() == (0, "")


# what it refuses


@pytest.mark.usefixtures("program_directory")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "mine:Uper tcp://:0",
            "mine:Uper is not a request handler class; in mine there are: Upper, Outer.Inner, Outer.Twin, Old",
        ),
        ("mine:NotOne tcp://:0", "mine:NotOne is not a request handler class; in mine there are: "),
        ("mine:Upper.handle tcp://:0", "mine:Upper.handle is not a request handler class"),
        ("mine:sockserve.StreamRequestHandler tcp://:0", "is not a request handler class"),
        ("json:x tcp://:0", "in json there are: none"),
        ("mein:Upper tcp://:0", "there is no module 'mein'"),
        ("mine.deep:Upper tcp://:0", "there is no module 'mine.deep'"),
        ("Upper tcp://:0", "neither a handler, package.module:Class, nor an address"),
        ("localhost:80", "neither a handler, package.module:Class, nor an address"),
        ("tcp://localhost", "Accepted are:\n  tcp://127.0.0.1:8000"),
        ("mine:Upper tcp://:0 http://x", "'http://x' is not an address"),
        ("mine:Upper udp://127.0.0.1:0", "takes datagrams, and <class 'mine.Upper'> is a StreamRequestHandler"),
        ("mine:Outer.Inner tcp://127.0.0.1:0", "takes connections"),
        ("fd:9999", "descriptor 9999 is not an open socket"),
        ("fd:0", "descriptor 0 is not an open socket"),
        ("--model tread", "invalid choice: 'tread'"),
        ("--backlog -1", "'-1' is not a whole number"),
        ("--backlog 99999999999", "is not a whole number"),
        ("--drain-timeout soon", "'soon' is not a time in seconds"),
        ("--drain-timeout nan", "'nan' is not a time in seconds"),
        ("--max-children 0 --model fork", "'0' is not a whole number from 1"),
        ("--max-children 3", "--max-children is for --model fork"),
        ("--max-workers 0 --model pool", "'0' is not a whole number from 1"),
        ("--max-workers 3", "--max-workers is for --model pool"),
        ("--log-level loud", "invalid choice: 'loud'"),
        ("--reload", "unrecognized arguments: --reload"),
    ],
)
def test_arguments_that_make_no_sense_are_usage_errors(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, and a message that says what would. In this process: the next tests start the command itself."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    status: object = None
    try:
        status = command_line.main(arguments.split())
    except SystemExit as end:
        status = end.code
    finally:
        # The next test has another one.
        sys.modules.pop("mine", None)
    said, errors = capsys.readouterr()
    assert (status, said) == (2, "")
    assert message in errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 +", "bad cannot be imported: SyntaxError: invalid syntax (bad.py, line 1)"),
        ("import sys\nsys.exit('no')", "bad cannot be imported: SystemExit: no ("),
        ("\n\nimport nowhere.at_all", "bad cannot be imported: ModuleNotFoundError: No module named 'nowhere' ("),
        ("\n{}['x']", "bad.py, line 2)"),
    ],
)
def test_a_module_that_cannot_be_imported_says_where(text: str, message: str, program_directory: pathlib.Path) -> None:
    """What the import raised is told in one line, with the place in the module."""
    (program_directory / "bad.py").write_text(text)
    status, errors = refused("bad:Handler", "tcp://:0")
    assert (status, message in errors) == (2, True), errors


def test_an_address_that_cannot_be_bound_ends_with_status_1() -> None:
    """The address and the reason are told, and nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        expected = f"sockserve: cannot serve on {address}: Address already in use\n"
        assert refused(address) == (1, expected)


def test_help_tells_all() -> None:
    """--help ends well, and has every option, every form of an address and examples."""
    done = subprocess.run(command("--help"), capture_output=True, text=True, timeout=LIMIT, check=True)
    for word in (
        "--model",
        "--backlog",
        "--drain-timeout",
        "--max-children",
        "--log-level",
        "unix-dgram:",
        "examples:",
    ):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


# any arguments at all

WORDS = st.sampled_from(
    [
        "tcp://127.0.0.1:0",
        "udp://[::1]:0",
        "unix:x",
        "fd:3",
        "sockserve.run.echo:Echo",
        "json:x",
        "a:b.c",
        "",
        ":",
        "-",
        "--",
    ]
)
OPTIONS = st.sampled_from(
    ["--model", "--backlog", "--drain-timeout", "--max-children", "--log-level", "--model=", "-h", "-x"]
)
VALUES = st.sampled_from(["fork", "inline", "0", "1", "-1", "1e9", "inf", "nan", "9" * 5000, "٣", "INFO", "debug"])


@settings(deadline=None)
@given(st.lists(WORDS | OPTIONS | VALUES | st.text(st.characters(exclude_categories=()), max_size=8), max_size=6))
def test_any_arguments_are_accepted_or_a_usage_error(arguments: list[str]) -> None:
    """Whatever is typed is read as a handler, addresses and values within their limits, or ends with status 2."""
    status: object = None
    try:
        options = command_line.read_arguments(arguments)
    except SystemExit as end:
        status = end.code
    if status is not None:
        assert status == 2 or (status == 0 and "-h" in arguments)
        return
    assert issubclass(options.handler, sockserve.BaseRequestHandler)
    assert options.addresses
    assert all(sockserve.net.address.parse_address(text) for text in options.addresses)
    assert options.model in ("inline", "thread", "fork")
    assert options.backlog is None or options.backlog >= 0
    assert options.drain_timeout is None or options.drain_timeout >= 0
    assert options.max_children is None or (options.max_children >= 1 and options.model == "fork")


def test_it_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    """``--version`` prints the package's and ends with 0."""
    with pytest.raises(SystemExit) as caught:
        command_line.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"sockserve {sockserve.__version__}\n"
