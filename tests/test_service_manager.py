"""What ``serve()`` reports to systemd: its states, and that it lives. Traps O1 to O5."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import signal
import socket
import struct
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from support import handlers
from support.log_watch import ExpectLog
from support.serving import Operator, serve_with
from support.under_test import LIMIT

import sockserve
from sockserve import testing
from sockserve.core.loop import Loop, Source
from sockserve.run import processes as processes_module
from sockserve.run.echo import Echo
from sockserve.run.service_manager import notifying
from sockserve.run.states import STATES, State, States

TCP = "tcp://127.0.0.1:0"

in_both_ways = pytest.mark.parametrize("processes", [None, 1])


class Manager:
    """A service manager: it notes each report, and the process that sent it."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind(path)
        self.socket.settimeout(LIMIT)
        self.pids: set[int] = set()

    def hear(self) -> dict[str, str]:
        """The fields of the next report."""
        data, ancillary, _, _ = self.socket.recvmsg(4096, socket.CMSG_SPACE(12))
        self.pids.add(struct.unpack("=iII", ancillary[0][2])[0])
        return dict(line.split("=", 1) for line in data.decode().splitlines())

    def hear_until(self, status: str) -> dict[str, str]:
        """The fields of the next report that says so; what came before it were other signs of life."""
        while (fields := self.hear()).get("STATUS") != status:
            assert fields == {"WATCHDOG": "1"}
        return fields


@pytest.fixture
def manager(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """The one that has started this process."""
    manager = Manager(f"{tmp_path}/notify")
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/notify")
    yield manager
    manager.socket.close()


@in_both_ways
def test_o1_each_state_is_reported(manager: Manager, processes: int | None, expect_log: ExpectLog) -> None:
    """A reload says when it began by the monotonic clock, and ends with READY, as systemd waits for it.

    O3: all reports come from the process that systemd has started.
    """
    if processes is None:
        expect_log(logging.WARNING, "SIGHUP has no effect")

    def script(operator: Operator) -> None:
        assert manager.hear() == {"READY": "1", "STATUS": "ready"}
        for _ in range(2):
            before = time.monotonic_ns() // 1000
            operator.signal(signal.SIGHUP)
            report = manager.hear()
            assert (report["RELOADING"], report["STATUS"]) == ("1", "reloading")
            assert before <= int(report["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
            assert manager.hear() == {"READY": "1", "STATUS": "ready"}
        operator.signal()

    serve_with(script, Echo, TCP, processes=processes)
    assert manager.hear() == {"STOPPING": "1", "STATUS": "draining"}
    assert manager.hear() == {"STATUS": "stopped"}
    assert manager.pids == {os.getpid()}


def test_o2_a_reload_that_fails_ends_with_ready(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    """The old workers go on, and systemd is not left waiting."""

    def fail(_servers: object) -> None:
        raise RuntimeError("a mistake in the program")

    expect_log(logging.ERROR, "a mistake in the program")

    def script(operator: Operator) -> None:
        manager.hear_until("ready")
        monkeypatch.setattr(processes_module, "reload_tls", fail)
        operator.signal(signal.SIGHUP)
        manager.hear_until("reloading")
        assert manager.hear() == {"READY": "1", "STATUS": "ready"}
        assert testing.ask(operator.server, b"ping") == b"ping"
        operator.signal()

    serve_with(script, Echo, TCP, processes=1)


@in_both_ways
def test_o4_handlers_have_nothing_of_it_in_their_environment(manager: Manager, processes: int | None) -> None:
    """A program that a handler starts must not report for this one. Afterwards the variables are back."""

    class Tell(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(str([name for name in os.environ if name.startswith(("NOTIFY", "WATCHDOG"))]).encode())

    def script(operator: Operator) -> None:
        assert testing.ask(operator.server, b"") == b"[]"
        operator.signal()

    serve_with(script, Tell, TCP, processes=processes)
    manager.hear_until("ready")
    assert "NOTIFY_SOCKET" in os.environ


@in_both_ways
def test_o5_it_shows_that_it_lives(manager: Manager, monkeypatch: pytest.MonkeyPatch, processes: int | None) -> None:
    """At the start, twice in the time of the watchdog, and while it drains."""
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    gate = handlers.handlers(sockserve).Gate

    def script(operator: Operator) -> None:
        manager.hear_until("ready")
        with testing.Stall(operator.server) as client:
            assert gate.begun.wait()
            operator.signal()
            manager.hear_until("draining")
            assert manager.hear() == {"WATCHDOG": "1"}
            assert manager.hear() == {"WATCHDOG": "1"}
            gate.opened.set()
            assert client.read() == b"open"

    serve_with(script, gate, TCP, processes=processes)


def test_o5_the_first_sign_of_life_is_at_the_start(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is ready, however long that takes."""
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    with Loop() as loop, notifying(States(), loop):
        assert manager.hear() == {"WATCHDOG": "1"}


def test_a_part_of_a_program_reports_nothing(manager: Manager) -> None:
    """Without the signals it does not speak for the process."""
    listening = threading.Event()
    servers: list[Any] = []

    def ready(opened: tuple[Any, ...]) -> None:
        servers.extend(opened)
        listening.set()

    thread = threading.Thread(target=sockserve.serve, args=(Echo, TCP), kwargs={"ready": ready})
    thread.start()
    assert listening.wait(LIMIT)
    servers[0].shutdown()
    thread.join(LIMIT)
    manager.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.hear()


@contextlib.contextmanager
def full(manager: Manager) -> Generator[None]:
    """Its queue has no room in this block."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"X=1", manager.socket.getsockname())
                sent += 1
        yield
        for _ in range(sent):
            assert manager.hear() == {"X": "1"}


def test_what_found_no_room_is_reported_later(manager: Manager) -> None:
    """In its order: systemd waits for both ends of a reload."""
    states = States()
    with Loop() as loop, notifying(states, loop):
        with full(manager):
            states.change(State.READY)
            with states.reloading():
                pass
        told: list[str] = []

        def look() -> None:
            told.append(manager.hear()["STATUS"])
            if len(told) == 3:
                loop.unwatch(manager.socket.fileno())
                loop.remove(source)

        source = _Stays()
        loop.add(source)
        loop.watch(manager.socket.fileno(), look)
        loop.run()
    assert told == ["ready", "reloading", "ready"]


class _Stays(Source):
    """Keeps a loop running."""

    max_wait = None


def test_each_state_has_its_row() -> None:
    """What ends serves no more, whatever is asked for then."""
    assert set(STATES) == set(State)
    states = States()
    heard: list[State] = []
    states.hears.append(heard.append)
    assert not states.change(State.RELOADING)
    assert states.change(State.READY)
    with states.reloading():
        assert states.change(State.DRAINING)
    assert not states.change(State.READY)
    assert heard == [State.READY, State.RELOADING, State.DRAINING]
