"""The time between SIGTERM and the end of accepting, in which load balancers are told; and SIGQUIT. Trap O16."""

from __future__ import annotations

import logging
import pathlib
import re
import select
import signal

import pytest
from support.log_watch import ExpectLog
from support.models import HERE
from support.programs import Program
from support.serving import Operator, serve_with
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve import testing
from sockserve.net.connecting import connect
from sockserve.run.echo import Echo

TCP = "tcp://127.0.0.1:0"

in_both_ways = pytest.mark.parametrize("processes", [None, 1])


class Tell(sockserve.StreamRequestHandler):
    """Tells what handlers are told."""

    def handle(self) -> None:
        """Once."""
        self.wfile.write(str(self.server.draining).encode())


@in_both_ways
@pytest.mark.parametrize("model", HERE)
def test_o16_after_sigterm_it_serves_on(model: str, processes: int | None) -> None:
    """Handlers hear that a drain will come, new clients are served, and a second SIGTERM begins it."""

    def script(operator: Operator) -> None:
        assert testing.ask(operator.server, b"") == b"False"
        operator.signal()
        wait_until(lambda: testing.ask(operator.server, b"") == b"True")
        operator.signal()

    assert serve_with(script, Tell, TCP, model=model, processes=processes, lame_duck=None).failed == 0


@in_both_ways
@pytest.mark.parametrize("model", HERE)
def test_its_time_ends_by_itself(model: str, processes: int | None) -> None:
    """Then it drains as without it."""
    serve_with(Operator.signal, Echo, TCP, model=model, processes=processes, lame_duck=0.02)


@in_both_ways
def test_sigint_waits_for_no_balancer(processes: int | None) -> None:
    """Ctrl-C is for people."""
    serve_with(lambda operator: operator.signal(signal.SIGINT), Echo, TCP, processes=processes, lame_duck=None)


@in_both_ways
def test_the_third_sigterm_cuts(processes: int | None, expect_log: ExpectLog) -> None:
    """The second one lets requests end, without limit here."""
    expect_log(logging.WARNING, "cut .*, in progress for")

    class UntilCut(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"begun")
            poll = select.poll()
            # POLLHUP is always told.
            poll.register(self.connection, 0)
            poll.poll(LIMIT * 1000)

    def script(operator: Operator) -> None:
        with connect(operator.server) as client:
            assert client.recv(5) == b"begun"
            operator.signal()
            operator.signal()
            operator.wait_until_asked()
            operator.signal()
            assert client.recv(1) == b""

    serve_with(script, UntilCut, TCP, processes=processes, lame_duck=None, drain_timeout=None)


def test_an_inline_handler_does_not_keep_it_from_draining() -> None:
    """It keeps the loop; the end of its input comes all the same."""

    class UntilTheEnd(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"begun")
            self.wfile.write(self.rfile.read())

    def script(operator: Operator) -> None:
        with connect(operator.server) as client:
            assert client.recv(5) == b"begun"
            operator.signal()
            assert client.recv(1) == b""

    serve_with(script, UntilTheEnd, TCP, model="inline", lame_duck=0.02, drain_timeout=None)


def test_ready_says_so(tmp_path: pathlib.Path) -> None:
    """A worker that becomes ready meanwhile does not make it ready again."""
    health, agent = f"unix:{tmp_path}/h", f"unix:{tmp_path}/a"

    def script(operator: Operator) -> None:
        operator.signal()
        wait_until(lambda: b"503" in testing.ask(health, b"GET /ready HTTP/1.0\r\n\r\n"))
        assert testing.ask(health, b"GET /ready HTTP/1.0\r\n\r\n").endswith(b"lame\n")
        assert testing.ask(agent, b"") == b"drain\n"
        operator.signal(signal.SIGHUP)
        wait_until(
            lambda: b'worker_ends_total{outcome="expected"} 1' in testing.ask(health, b"GET /metrics HTTP/1.0\n\n")
        )
        assert testing.ask(agent, b"") == b"drain\n"
        wait_until(lambda: testing.ask(operator.server, b"") == b"True")
        operator.signal()

    serve_with(script, Tell, TCP, lame_duck=None, health=health, agent=agent)


def test_it_is_a_time() -> None:
    """Never negative."""
    with pytest.raises(ValueError, match="lame_duck must be"):
        sockserve.serve(Echo, TCP, lame_duck=-1.0)


class Waits(sockserve.StreamRequestHandler):
    """Waits for its client at a line that a stack shows."""

    def handle(self) -> None:
        """Say that it does."""
        self.wfile.write(b"begun")
        self.wait_for_the_client()

    def wait_for_the_client(self) -> None:
        """By reading."""
        self.rfile.read()


def test_sigquit_tells_the_stacks_of_workers(expect_log: ExpectLog) -> None:
    """The line at which each handler is."""
    told = expect_log(logging.WARNING, r"(?s)the stacks of worker 0 \(process \d+\):\n.*wait_for_the_client")

    def script(operator: Operator) -> None:
        with connect(operator.server) as client:
            assert client.recv(5) == b"begun"
            operator.signal(signal.SIGQUIT)
            told.wait()
        operator.signal()

    serve_with(script, Waits, TCP, processes=1)
    assert signal.getsignal(signal.SIGQUIT) == signal.SIG_DFL


def test_sigquit_tells_the_stacks_of_a_program() -> None:
    """It serves on; afterwards the signal means what it did."""
    program = f"""
        import os, signal, sockserve
        sockserve.serve(sockserve.StreamRequestHandler, "{TCP}", ready=lambda _: print("ready"))
        print("over")
        os.kill(os.getpid(), signal.SIGQUIT)
    """
    with Program(program) as process:
        assert process.line() == "ready"
        process.send(signal.SIGQUIT)
        wait_until(lambda: re.search(r"File .*serve\.py.* in serve", process.errors()))
        process.send(signal.SIGTERM)
        assert process.line() == "over"
        assert process.status(LIMIT) == -signal.SIGQUIT
