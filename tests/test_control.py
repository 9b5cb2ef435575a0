"""A program that is told what to do through a Unix socket. Trap O12."""

from __future__ import annotations

import logging
import os
import pathlib
import stat

import pytest
from support.log_watch import ExpectLog
from support.serving import Operator, serve_with
from support.waiting import wait_until

import sockserve
from sockserve import testing
from sockserve.net.connecting import connect
from sockserve.net.peer_credentials import PeerCredentials
from sockserve.run import control, ctl
from sockserve.run.command_line import main
from sockserve.run.echo import Echo

TCP = "tcp://127.0.0.1:0"


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    """Of a control socket."""
    return f"{tmp_path}/control"


def test_o12_it_is_for_its_own_user(path: str, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog) -> None:
    """No other may connect; one that was given the socket is refused, and the log says so."""
    refused = expect_log(logging.WARNING, "control: a client of another user is refused")

    def script(operator: Operator) -> None:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert testing.ask(f"unix:{path}", b"status\n").startswith(b"ready process ")
        monkeypatch.setattr(control, "credentials_of", lambda _: PeerCredentials(1, os.geteuid() + 1, 0, ()))
        assert testing.ask(f"unix:{path}", b"stop\n") == b"error: only the user of the program may ask\n\n"
        refused.wait()
        operator.signal()

    serve_with(script, Echo, TCP, control=f"unix:{path}")
    assert not os.path.lexists(path)


def test_status_tells_what_each_worker_does(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    """How many requests it has in progress."""

    class Waits(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"begun")
            self.rfile.read()

    def script(operator: Operator) -> None:
        with connect(operator.server) as client:
            assert client.recv(5) == b"begun"
            assert main(["ctl", path, "status"]) == 0
            lines = capsys.readouterr().out.splitlines()
            assert lines[0].startswith(f"ready process {os.getpid()}, for ")
            assert len(lines) == 3
            assert sum("1 in progress, 1 accepted" in line for line in lines) == 1
            assert main(["ctl", path, "stacks"]) == 0
            assert "in handle" in capsys.readouterr().out
        operator.signal()

    serve_with(script, Waits, TCP, processes=2, control=f"unix:{path}")


def answer(client_path: str, command: str) -> str:
    """The first line."""
    return testing.ask(f"unix:{client_path}", f"{command}\n".encode()).decode().splitlines()[0]


@pytest.mark.parametrize("verb", ["suspend", "drain"])
def test_it_accepts_no_more_until_resume(path: str, tmp_path: pathlib.Path, verb: str) -> None:
    """Balancers hear that; a client that comes meanwhile waits. After a drain there is no worker."""
    agent = f"unix:{tmp_path}/agent"

    def script(operator: Operator) -> None:
        assert testing.ask(operator.server, b"ping") == b"ping"
        assert answer(path, verb) == {"suspend": "suspended", "drain": "drained"}[verb]
        assert answer(path, "status").startswith("lame ")
        assert testing.ask(agent, b"") == b"drain\n"
        if verb == "drain":
            assert len(testing.ask(f"unix:{path}", b"status\n").splitlines()) == 2
        with connect(operator.server) as client:
            client.sendall(b"ping")
            assert answer(path, "resume") == "resumed"
            assert client.recv(10) == b"ping"
        wait_until(lambda: testing.ask(agent, b"") == b"up ready\n")
        operator.signal()

    serve_with(script, Echo, TCP, control=f"unix:{path}", agent=agent)


def test_roll_and_stop(path: str) -> None:
    """A new worker serves after the one, nothing after the other."""

    class Pid(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"%d" % os.getpid())

    def script(operator: Operator) -> None:
        before = testing.ask(operator.server, b"")
        assert answer(path, "roll") == "begun"
        wait_until(lambda: testing.ask(operator.server, b"") != before)
        assert answer(path, "stop") == "begun"

    serve_with(script, Pid, TCP, control=f"unix:{path}")


def test_what_is_no_command_is_an_error(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It lists those that there are; nothing of the line is repeated."""

    def script(operator: Operator) -> None:
        for line in (b"\n", b"\x1b[0m\xff\n", b"status now\n"):
            found = testing.ask(f"unix:{path}", line)
            assert found.startswith(b"error: there is no such command; there are status, ")
            assert b"\x1b" not in found
        operator.signal()

    serve_with(script, Echo, TCP, control=f"unix:{path}")
    assert ctl.main([path, "status"]) == 1
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "unix:@abstract", "unix-dgram:x", "x"])
def test_it_needs_a_path(address: str) -> None:
    """An abstract name has no permissions."""
    with pytest.raises(ValueError, match=r"control: .*(no path of a Unix socket|is not an address)"):
        sockserve.serve(Echo, TCP, control=address)
