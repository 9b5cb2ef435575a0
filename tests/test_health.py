"""What load balancers and Prometheus are told. Traps O13, O14, O17 and O18."""

from __future__ import annotations

import logging
import os
import pathlib
import re
import signal
import socket
from typing import Any

import pytest
from support import handlers
from support.log_watch import ExpectLog
from support.models import MODELS
from support.serving import Operator, serve_with
from support.waiting import wait_until

import sockserve
from sockserve import testing
from sockserve.concurrency.prefork.outcomes import Outcome
from sockserve.concurrency.prefork.tally import Figures
from sockserve.run.echo import Echo
from sockserve.run.health import Fleet, health, metrics
from sockserve.run.states import STATES, State, States

TCP = "tcp://127.0.0.1:0"


class Watcher:
    """What asks a program how it stands."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.options: dict[str, Any] = {"health": f"unix:{directory}/health", "agent": f"unix:{directory}/agent"}

    def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        """The status and the text."""
        answer = testing.ask(self.options["health"], f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head, _, text = answer.decode().partition("\r\n\r\n")
        return int(head.split()[1]), text

    def word(self) -> str:
        """What HAProxy is told."""
        return testing.ask(self.options["agent"], b"").decode()

    def figure(self, name: str) -> float:
        """One of the metrics."""
        found = re.search(rf"^sockserve_{re.escape(name)} (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        assert found is not None
        return float(found[1])


@pytest.mark.parametrize("model", MODELS)
def test_a_program_in_every_model_says_how_it_stands(model: str, tmp_path: pathlib.Path) -> None:
    """Asked so it has a supervisor and one worker; with "fork", too, whose worker forks."""
    watcher = Watcher(tmp_path)

    def script(operator: Operator) -> None:
        assert testing.ask(operator.server, b"ping") == b"ping"
        assert watcher.get("/live") == (200, "live\n")
        assert watcher.get("/ready?x=1") == (200, "ready\n")
        assert watcher.get("/ready", "HEAD") == (200, "")
        assert watcher.word() == "up ready\n"
        wait_until(lambda: watcher.figure('requests_total{outcome="handled"}') == 1)
        assert watcher.figure("requests_accepted_total") == 1
        assert watcher.figure('workers{state="serving"}') == 1
        operator.signal()

    assert serve_with(script, Echo, TCP, model=model, **watcher.options).handled == 1


def test_o18_ready_is_answered_while_all_workers_are_busy(tmp_path: pathlib.Path) -> None:
    """The supervisor answers: no request is before it in a queue. While it drains it says so."""
    gate = handlers.handlers(sockserve).Gate
    watcher = Watcher(tmp_path)

    def script(operator: Operator) -> None:
        with testing.Stall(operator.server) as client, testing.Stall(operator.server):
            assert gate.begun.wait()
            assert watcher.get("/ready") == (200, "ready\n")
            assert watcher.figure("requests_in_progress") == 1
            operator.signal()
            operator.wait_until_asked()
            wait_until(lambda: watcher.get("/ready") == (503, "draining\n"))
            assert watcher.get("/live") == (200, "live\n")
            assert watcher.word() == "drain\n"
            gate.opened.set()
            assert client.read() == b"open"

    serve_with(script, gate, TCP, model="pool", max_workers=1, **watcher.options)


def test_o14_no_total_becomes_less(tmp_path: pathlib.Path, expect_log: ExpectLog) -> None:
    """O13: what a worker has counted is kept when it is killed, and nothing of it stays as in progress."""
    expect_log(logging.WARNING, "was killed by SIGKILL|early end number 2")

    class Pid(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"%d" % os.getpid())

    watcher = Watcher(tmp_path)
    seen: list[float] = []

    def look() -> float:
        seen.append(watcher.figure("requests_accepted_total"))
        return seen[-1]

    def script(operator: Operator) -> None:
        pid = int(testing.ask(operator.server, b""))
        wait_until(lambda: look() == 1)
        for _ in range(2):
            os.kill(pid, signal.SIGKILL)
            dead = pid
            wait_until(lambda: look() and watcher.figure('workers{state="serving"}') == 1)
            while pid == dead:
                pid = int(testing.ask(operator.server, b""))
            before = seen[-1]
            wait_until(lambda: look() > before)  # noqa: B023
        operator.signal()

    serve_with(script, Pid, TCP, **watcher.options)
    assert seen == sorted(seen)


NOTHING = Figures(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, dict.fromkeys(Outcome, 0), 0, 0)


def answer(fleet: Fleet, question: bytes) -> bytes | None:
    """What is answered to a question; None: it is not whole."""
    replies: list[bytes] = []
    with socket.socket() as client:
        is_whole = health(fleet)(client, question, replies.append)
    assert bool(replies) == is_whole
    return replies[0] if replies else None


@pytest.mark.parametrize(
    ("question", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /ready HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /live HTTP/1.0\n\n", b"200"),
        (b"\r\n\r\n", b"400"),
        (b"GET /ready\r\n\r\n", b"400"),
        (b"\xff\0\x1b[0m / / /\r\n\r\n", b"400"),
        (b"OPTIONS / HTTP/1.0\r\n\r\n", b"405"),
    ],
)
def test_any_request_has_an_answer(question: bytes, status: bytes) -> None:
    """Nothing of it is repeated in the answer."""
    fleet = Fleet.of(States(), lambda: NOTHING)
    found = answer(fleet, question)
    assert found is not None
    assert found.startswith(b"HTTP/1.0 " + status)
    assert b"\x1b" not in found
    assert answer(fleet, question.rstrip(b"\r\n")) is None


def test_o17_without_a_worker_it_is_down() -> None:
    """Whatever the state: only what serves is up."""
    states = States()
    fleet = Fleet.of(states, lambda: NOTHING)
    assert (fleet.agent_word(), fleet.health()) == ("down", (503, "starting"))
    states.change(State.READY)
    assert (fleet.agent_word(), fleet.health()) == ("down", (503, "no worker"))
    fleet = fleet._replace(figures=lambda: NOTHING._replace(serving=1))
    assert (fleet.agent_word(), fleet.health()) == ("up ready", (200, "ready"))
    states.change(State.DRAINING)
    assert (fleet.agent_word(), fleet.health()) == ("drain", (503, "draining"))


def test_the_metrics_are_prometheus_text() -> None:
    """Each family has its help and its type before its values, once; each value is a number."""
    text = metrics(Fleet.of(States(), lambda: NOTHING._replace(accepted=10**15)))
    assert "sockserve_requests_accepted_total 1000000000000000\n" in text
    for family in text.split("# HELP ")[1:]:
        help_line, type_line, *values = family.splitlines()
        name = help_line.split()[0]
        assert type_line in (f"# TYPE {name} counter", f"# TYPE {name} gauge")
        assert values
        assert all(re.fullmatch(rf'{name}({{\w+="\w+"}})? [0-9.e+]+', line) for line in values)
    names = re.findall(r"# TYPE (\w+)", text)
    assert len(names) == len(set(names)) >= 10
    assert all((kind == "counter") == name.endswith("_total") for name, kind in re.findall(r"# TYPE (\w+) (\w+)", text))


def test_an_address_that_is_not_for_it_is_refused() -> None:
    """Before anything is bound."""
    for address in ("udp://127.0.0.1:0", "tls://127.0.0.1:0", "unix-dgram:x"):
        with pytest.raises(ValueError, match=r"^health: .* is not for plain connections"):
            sockserve.serve(Echo, TCP, health=address)
    with pytest.raises(ValueError, match="is not an address"):
        sockserve.serve(Echo, TCP, agent="nothing")
    assert {STATES[state].agent for state in State} == {"up ready", "drain", "down"}
