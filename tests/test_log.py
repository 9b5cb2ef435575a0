"""The package's logger: heard whatever the program configures, and written by no peer."""

from __future__ import annotations

import io
import logging
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from support.handlers import handlers
from support.log_watch import ExpectLog
from support.programs import START_LIMIT, Program
from support.waiting import wait_until

import sockserve
from sockserve.log import Lines, Seldom, log, printable
from sockserve.pytest_plugin import Running

H = handlers(sockserve)

HOSTILE = "x\nCRITICAL root: disk failure\x1b[2J\x9b\u2028\udcff"
SHOWN = r"x\nCRITICAL root: disk failure\x1b[2J\x9b\u2028\udcff"

CONFIGURE = """
import io, json, logging.config, sys
INI = '''[loggers]
keys=root
[handlers]
keys=all
[formatters]
keys=
[logger_root]
level=DEBUG
handlers=all
[handler_all]
class=StreamHandler
args=(sys.stderr,)
'''
DICT = {"version": 1, "handlers": {"all": {"class": "logging.StreamHandler"}}, "root": {"handlers": ["all"]}}
"""
REPORT = """
log = logging.getLogger("sockserve")
log.error("it is told")
log.warning("so is this %s", "peer")
"""


def errors_of(script: str) -> str:
    """What a program writes to stderr until its end."""
    with Program(script) as program:
        assert program.status(START_LIMIT) == 0
        return program.errors()


@pytest.fixture
def lines(expect_log: ExpectLog) -> Iterator[io.StringIO]:
    """What a program's ordinary handler writes."""
    for level in (logging.WARNING, logging.ERROR):
        expect_log(level, "", at_least=0)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    log.addHandler(handler)
    yield stream
    log.removeHandler(handler)


@pytest.mark.parametrize(
    "configuration",
    [
        "",
        "logging.config.fileConfig(io.StringIO(INI))",
        "logging.config.dictConfig(DICT)",
        # Twice: the second one finds what the first has disabled.
        "logging.config.dictConfig(DICT); logging.config.dictConfig(DICT)",
    ],
)
@pytest.mark.parametrize(
    "imported", ["import sockserve", "import logging; logging.getLogger('sockserve'); import sockserve"]
)
def test_a_configuration_that_does_not_name_it_leaves_it_heard(configuration: str, imported: str) -> None:
    """fileConfig() and dictConfig() disable the loggers that exist, but not this one."""
    told = errors_of(f"{imported}\n{CONFIGURE}\n{configuration}\n{REPORT}")
    assert told.splitlines() == ["it is told", "so is this peer"]


@pytest.mark.parametrize(
    "silence",
    [
        "logging.getLogger('sockserve').disabled = True",
        "logging.getLogger('sockserve').setLevel(logging.CRITICAL + 1)",
        "logging.disable(logging.CRITICAL)",
    ],
)
def test_a_program_that_means_it_is_obeyed(silence: str) -> None:
    """Whatever switches off this logger itself, or all logging, does."""
    assert errors_of(f"import sockserve\n{CONFIGURE}\n{silence}\n{REPORT}") == ""


def test_a_class_of_the_program_stays_the_loggers() -> None:
    """A logger class that the program chose before keeps its methods."""
    told = errors_of(
        "import logging\n"
        "class Own(logging.Logger):\n    def shout(self): self.error('LOUD')\n"
        "logging.setLoggerClass(Own)\nimport sockserve\nlogging.getLogger('sockserve').shout()\n"
    )
    assert told.splitlines() == ["LOUD"]


def test_what_a_peer_chose_is_one_printable_line(lines: io.StringIO) -> None:
    """An argument, an exception as an argument, and what str() gives of any object are escaped."""
    for each in (HOSTILE, OSError(HOSTILE), sockserve.SockserveError(HOSTILE)):
        log.warning("from %s", each)
    assert lines.getvalue().splitlines() == [f"WARNING from {SHOWN}"] * 3


def test_numbers_and_own_lines_stay_as_they_are(lines: io.StringIO) -> None:
    """Formats of numbers work, and text of several lines that is the package's own is shown so."""
    log.warning("%d of %g s:\n%s", 3, 0.5, Lines("one\ntwo"))
    assert lines.getvalue() == "WARNING 3 of 0.5 s:\none\ntwo\n"


def test_a_traceback_has_no_line_of_a_peers(lines: io.StringIO) -> None:
    """Texts of exceptions, of those behind them, of notes and of groups begin no line and move no cursor."""
    error = ValueError(f"bad {HOSTILE}")
    error.add_note(HOSTILE)
    error.__context__ = KeyError(HOSTILE)
    log.error("it failed", exc_info=ExceptionGroup(HOSTILE, [error]))
    told = lines.getvalue()
    assert "ValueError: bad x" in told
    assert not [line for line in told.splitlines() if line.startswith("CRITICAL")]
    assert printable(told, keep="\n") == told


def test_an_ordinary_traceback_is_left_to_the_programs_formatter(expect_log: ExpectLog) -> None:
    """A formatter with a shape of its own for tracebacks is asked for it."""
    expect_log(logging.ERROR, "it failed")

    class OneLine(logging.Formatter):
        def formatException(self, ei: object) -> str:  # noqa: N802 - logging's name
            return "in one line"

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneLine("%(message)s"))
    # First of all: logging keeps what the first handler made of a traceback for the others.
    log.handlers.insert(0, handler)
    log.error("it failed", exc_info=ValueError("plain"))
    log.removeHandler(handler)
    assert stream.getvalue() == "it failed\nin one line\n"


def test_a_value_that_cannot_be_shown_is_the_handlers_business() -> None:
    """An argument whose str() raises breaks nothing but its own record."""
    told = errors_of(
        "import logging, sockserve\nclass Broken:\n    def __str__(self): raise ZeroDivisionError\n"
        "log = logging.getLogger('sockserve')\nlog.warning('%s', Broken())\nlog.warning('and on')\n"
    )
    assert "ZeroDivisionError" in told
    assert told.splitlines()[-1] == "and on"


@pytest.mark.parametrize("kind", ["stream", "datagram"])
def test_the_name_of_a_unix_peer_forges_nothing(kind: str, running: Running, lines: io.StringIO) -> None:
    """A client may bind a name of any bytes; an error of its request is one record, with that name escaped."""
    name = f"\0{os.getpid()}-{kind}-server"
    is_stream = kind == "stream"
    server_class = sockserve.ThreadingUnixStreamServer if is_stream else sockserve.ThreadingUnixDatagramServer
    running(server_class(name, H.Crash))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM if is_stream else socket.SOCK_DGRAM) as client:
        client.bind(b"\0x\nCRITICAL root: disk failure\x1b[2J\xff-%d" % os.getpid())
        client.settimeout(10)
        client.connect(name)
        client.send(b"hello")
        if is_stream:
            assert client.recv(1) == b""
    wait_until(lambda: "Boom" in lines.getvalue())
    told = lines.getvalue()
    assert not [line for line in told.splitlines() if line.startswith("CRITICAL")]
    assert "\x1b" not in told


def test_a_flood_is_counted_and_told_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first event has its line at once; later ones are counted until a minute is over."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    seldom = Seldom()
    assert [seldom.count() for _ in range(5)] == [1, 0, 0, 0, 0]
    now = 59.0
    assert seldom.count() == 0
    now = 60.0
    assert seldom.count() == 6


def test_of_threads_that_count_at_once_one_has_the_line() -> None:
    """However many workers of a pool meet their first bad datagram at the same moment."""
    for _ in range(20):
        seldom = Seldom()
        together = threading.Barrier(8)
        counts: list[int] = []

        def count(seldom: Seldom = seldom, together: threading.Barrier = together, counts: list[int] = counts) -> None:
            together.wait()
            counts.append(seldom.count())

        threads = [threading.Thread(target=count) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len([each for each in counts if each]) == 1
