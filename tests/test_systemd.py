"""What systemd gives to a service: sockets, and a socket for reports. Traps O3, O4, O6 and O7."""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.programs import SEARCH_PATH
from support.serving import Operator, serve_with
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve import testing
from sockserve.net import systemd
from sockserve.net.systemd import Inherited, Notifier, inherited
from sockserve.run.echo import Echo


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """Two listeners at neighbouring descriptors, as systemd passes them, and the variables that say so."""
    first = 200
    listeners: list[socket.socket] = []
    for fd in (first, first + 1):
        with socket.create_server(("127.0.0.1", 0), backlog=7) as listener:
            os.dup2(listener.fileno(), fd)
        listeners.append(socket.socket(fileno=fd))
    monkeypatch.setattr(systemd, "FIRST_FD", first)
    monkeypatch.setattr(systemd, "_found", systemd._found)
    for name, value in {"PID": os.getpid(), "FDS": 2, "FDNAMES": "web:admin", "PIDFDID": 1}.items():
        monkeypatch.setenv(f"LISTEN_{name}", str(value))
    yield listeners
    for listener in listeners:
        listener.close()


def test_the_sockets_that_were_passed_have_names(passed: list[socket.socket]) -> None:
    """All of them, or those of one name; asked again it is the same."""
    both = (Inherited(passed[0].fileno(), "web"), Inherited(passed[1].fileno(), "admin"))
    assert inherited() == both
    assert inherited("admin") == both[1:]
    assert inherited() == both
    with pytest.raises(sockserve.AddressError, match="no socket of that name was passed on; there are: admin, web"):
        inherited("mail")


def test_o4_no_program_that_is_started_inherits_them(passed: list[socket.socket]) -> None:
    """The variables are gone, and the descriptors are closed by exec."""
    assert all(os.get_inheritable(each.fileno()) for each in passed)
    inherited()
    assert not [name for name in os.environ if name.startswith("LISTEN_")]
    assert not any(os.get_inheritable(each.fileno()) for each in passed)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("LISTEN_PID", "1", "LISTEN_PID is '1', and this is process"),
        ("LISTEN_FDS", "-1", "LISTEN_FDS is '-1'"),
        ("LISTEN_FDS", "9" * 9, "no number of sockets"),
        ("LISTEN_FDS", "", "no number of sockets"),
    ],
)
@pytest.mark.usefixtures("passed")
def test_o7_a_refusal_says_why_there_are_none(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    """An init program in between has the sockets for itself; the variables are taken away all the same."""
    monkeypatch.setenv(name, value)
    for _ in range(2):
        with pytest.raises(sockserve.AddressError, match=reason):
            sockserve.serve(Echo, "systemd:")
    assert name not in os.environ


def test_without_names_they_are_unknown(passed: list[socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """As systemd itself calls them."""
    monkeypatch.delenv("LISTEN_FDNAMES")
    assert [each.name for each in inherited()] == ["unknown", "unknown"]
    assert inherited("unknown")[1].fd == passed[1].fileno()


def backlog_of(listener: socket.socket) -> int:
    """The largest length of its queue: of a listener that is tcpi_sacked of struct tcp_info (linux/tcp.h)."""
    return int(struct.unpack_from("=8x6I", listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32))[5])


@pytest.mark.parametrize(("options", "backlog"), [({}, 7), ({"backlog": 3}, 3)])
def test_o6_what_listens_keeps_its_backlog(passed: list[socket.socket], options: dict[str, int], backlog: int) -> None:
    """listen(2) is not called again, unless another backlog was asked for."""
    found = []

    def script(operator: Operator) -> None:
        found.extend(backlog_of(server.socket) for server in operator.servers)
        assert [testing.ask(server, b"ping") for server in operator.servers] == [b"ping", b"ping"]
        operator.signal()

    serve_with(script, Echo, "systemd:web", "systemd:admin", **options)
    assert found == [backlog, backlog]
    for each in passed:
        # It was the server's, and is closed.
        each.detach()


@pytest.mark.parametrize("is_abstract", [False, True])
def test_a_report_is_one_message(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, is_abstract: bool) -> None:
    """A field for each line; a line break in a value makes no other field. Afterwards the variables are back."""
    name = f"@sockserve-{os.getpid()}" if is_abstract else f"{tmp_path}/n"
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        manager.settimeout(LIMIT)
        with Notifier() as notifier:
            assert "NOTIFY_SOCKET" not in os.environ
            assert notifier.tell(READY=1, STATUS="a\nSTOPPING=1")
            assert manager.recv(4096) == b"READY=1\nSTATUS=a STOPPING=1"
    assert os.environ["NOTIFY_SOCKET"] == name


def test_a_report_never_blocks(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service manager that does not read, or is gone, costs no time."""
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, Notifier() as notifier:
        assert not notifier.tell(READY=1)
        manager.bind(f"{tmp_path}/n")
        # net.unix.max_dgram_qlen messages have room.
        assert not all(notifier.tell(READY=1) for _ in range(10_000))
        manager.recv(10)
        assert notifier.tell(READY=1)


def test_without_a_service_manager_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor to an address that is no Unix socket's."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with Notifier() as notifier:
        assert notifier.tell(READY=1)
    monkeypatch.setenv("NOTIFY_SOCKET", "vsock:2:1234")
    with Notifier() as notifier:
        assert notifier.tell(READY=1)
        assert notifier.watchdog is None


@pytest.mark.parametrize(("pid", "watchdog"), [(None, 2.5), (os.getpid(), 2.5), (1, None)])
def test_o4_a_watchdog_is_for_one_process(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, pid: int | None, watchdog: float | None
) -> None:
    """WATCHDOG_PID names it; without it, it is this one."""
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/n")
    monkeypatch.setenv("WATCHDOG_USEC", "2500000")
    if pid is None:
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
    else:
        monkeypatch.setenv("WATCHDOG_PID", str(pid))
    with Notifier() as notifier:
        assert notifier.watchdog == watchdog


def listens(path: str) -> bool:
    """Whether a server accepts at a path."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def test_the_command_serves_what_systemd_has_bound(tmp_path: pathlib.Path) -> None:
    """With systemd's own tool, by the name of the socket."""
    tool = shutil.which("systemd-socket-activate")
    assert tool is not None, "it is of Debian's package systemd"
    path = f"{tmp_path}/s"
    command = [tool, "-l", path, "--fdname=web", "-E", "PYTHONPATH"]
    with subprocess.Popen(
        [*command, sys.executable, "-m", "sockserve", "systemd:web"],
        env={**os.environ, "PYTHONPATH": SEARCH_PATH},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            # The path is there a moment before the tool listens.
            wait_until(lambda: listens(path))
            assert testing.ask(f"unix:{path}", b"hello") == b"hello"
            process.terminate()
            assert process.wait(LIMIT) == 0
        finally:
            process.kill()
