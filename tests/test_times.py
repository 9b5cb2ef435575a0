"""Times mean what they say, at every verb and attribute: infinite, longer than the system counts, negative, NaN."""

from __future__ import annotations

import logging
import math
import socket
import threading
from typing import Any

import pytest
from support.handlers import handlers
from support.log_watch import ExpectLog
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.core.loop import Loop
from sockserve.core.one_shot import OneShot
from sockserve.core.poller import wait_readable
from sockserve.pytest_plugin import Running
from sockserve.run.command_line import read_arguments
from sockserve.seconds import LONGEST_WAIT, limit_of, socket_limit_of
from sockserve.testing import ask, call_within, connect

H = handlers(sockserve)

FOREVER = [math.inf, 1e10, threading.TIMEOUT_MAX, LONGEST_WAIT + 1]
LOOPBACK = ("127.0.0.1", 0)
SERVERS = {
    "inline": sockserve.TCPServer,
    "thread": sockserve.ThreadingTCPServer,
    "pool": sockserve.ThreadPoolTCPServer,
    "fork": sockserve.ForkingTCPServer,
    "greenlet": sockserve.GreenletTCPServer,
}


class PreForked(sockserve.PreForkMixIn, sockserve.ThreadingTCPServer):
    """One worker process."""

    processes = 1


@pytest.mark.parametrize("seconds", FOREVER)
@pytest.mark.parametrize("model", [*SERVERS, "prefork"])
def test_each_verb_takes_a_time_without_end(model: str, seconds: float, running: Running) -> None:
    """What would end at once ends at once, and nothing overflows."""
    server: Any = running({**SERVERS, "prefork": PreForked}[model](LOOPBACK, H.Echo))
    assert server.wait_until_serving(seconds)
    assert ask(server, b"hello") == b"hello"
    assert call_within(LIMIT, server.wait_idle, seconds)
    assert call_within(LIMIT, server.drain, seconds).cut == 0
    call_within(LIMIT, server.shutdown, seconds)


@pytest.mark.parametrize("model", [*SERVERS, "prefork"])
def test_nan_is_refused_before_anything_happens(model: str, running: Running) -> None:
    """A verb that is given NaN raises ValueError and leaves the server as it was."""
    server: Any = running({**SERVERS, "prefork": PreForked}[model](LOOPBACK, H.Echo))
    for verb in (server.wait_until_serving, server.wait_idle, server.drain, server.shutdown):
        with pytest.raises(ValueError, match="timeout"):
            verb(math.nan)
    assert not server.draining
    assert ask(server, b"hello") == b"hello"


@pytest.mark.parametrize("seconds", [-1.0, -math.inf, 0.0])
def test_a_negative_time_is_over_already(seconds: float, running: Running, expect_log: ExpectLog) -> None:
    """A verb with one looks once and returns."""
    expect_log(logging.WARNING, "cut", at_least=0)
    server = sockserve.ThreadingTCPServer(LOOPBACK, H.Echo)
    assert not server.wait_until_serving(seconds)
    running(server)
    with connect(server) as client:
        client.sendall(b"x")
        client.recv(1)
        assert not server.wait_idle(seconds)
        assert sum(server.drain(seconds)) == 1


@pytest.mark.parametrize("interval", [-1, -math.inf, 0])
@pytest.mark.parametrize("model", SERVERS)
def test_a_negative_poll_interval_polls_without_a_pause(model: str, interval: float, running: Running) -> None:
    """As with the standard library, whose selectors take it for no wait at all."""
    turns = []

    class Server(SERVERS[model]):  # type: ignore[misc,valid-type]
        def service_actions(self) -> None:
            super().service_actions()
            turns.append(1)

    running(Server(LOOPBACK, H.Echo), poll_interval=interval)
    wait_until(lambda: len(turns) > 3)


@pytest.mark.parametrize("interval", FOREVER)
def test_a_poll_interval_without_end_is_none(interval: float, running: Running) -> None:
    """Then ``service_actions()`` is called after requests only."""

    class Server(sockserve.ThreadingTCPServer):
        def service_actions(self) -> None:
            """Overridden."""

    server = running(Server(LOOPBACK, H.Echo), poll_interval=interval)
    assert ask(server, b"hello") == b"hello"


@pytest.mark.parametrize("name", ["drain_timeout", "handshake_timeout", "timeout"])
def test_a_server_with_nan_for_a_time_does_not_begin(name: str) -> None:
    """serve_forever() says which attribute makes no sense; the server can be put right and served."""
    with sockserve.ThreadingTCPServer(LOOPBACK, H.Echo) as server:
        setattr(server, name, math.nan)
        with pytest.raises(ValueError, match=name):
            server.serve_forever()
        with pytest.raises(ValueError, match="poll_interval"):
            type(server).serve_forever(server, math.nan)
        delattr(server, name)
        threading.Thread(target=server.serve_forever).start()
        assert ask(server, b"hello") == b"hello"
        server.shutdown()


def test_a_workers_time_must_be_positive_and_a_number() -> None:
    """A worker_timeout of 0 would kill each worker at once."""
    for seconds in (0, -1, math.nan):
        with PreForked(LOOPBACK, H.Echo) as server:
            server.worker_timeout = seconds
            with pytest.raises(ValueError, match="worker_timeout"):
                server.serve_forever()


@pytest.mark.parametrize("seconds", FOREVER)
@pytest.mark.parametrize("model", SERVERS)
def test_a_handlers_time_without_end_is_none(model: str, seconds: float, running: Running) -> None:
    """``timeout`` of a StreamRequestHandler may be longer than a socket's can be."""

    class Patient(sockserve.StreamRequestHandler):
        timeout = seconds

        def handle(self) -> None:
            self.wfile.write(self.rfile.readline())

    assert ask(running(SERVERS[model](LOOPBACK, Patient)), b"hello\n") == b"hello\n"


def test_handle_request_takes_any_time(running: Running) -> None:
    """Its time-out may be infinite, and a negative one is over at once."""
    del running
    with sockserve.TCPServer(LOOPBACK, H.Echo) as server:
        server.timeout = -1.0
        call_within(LIMIT, server.handle_request)
        for seconds in FOREVER:
            server.timeout = seconds
            with socket.create_connection(server.server_address) as client:
                client.shutdown(socket.SHUT_WR)
                call_within(LIMIT, server.handle_request)
        server.timeout = math.nan
        with pytest.raises(ValueError, match="number of seconds"):
            server.handle_request()


@pytest.mark.parametrize("seconds", FOREVER)
def test_serve_takes_a_time_without_end(seconds: float) -> None:
    """drain_timeout and worker_timeout may be infinite; what is no time is refused before an address is bound."""
    counters = sockserve.serve(
        H.Echo,
        "tcp://127.0.0.1:0",
        drain_timeout=seconds,
        install_signal_handlers=False,
        ready=lambda servers: servers[0].shutdown(),
    )
    assert counters.accepted == 0
    for bad in ({"drain_timeout": -1}, {"drain_timeout": math.nan}, {"processes": 1, "worker_timeout": 0}):
        with pytest.raises(ValueError, match="timeout"):
            sockserve.serve(H.Echo, "tcp://127.0.0.1:0", **bad)


@pytest.mark.parametrize("option", ["--drain-timeout", "--worker-timeout"])
def test_the_command_takes_a_time_without_end_and_explains_what_is_none(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2 and a line say what is no time."""
    name = option[2:].replace("-", "_")
    for word in ("inf", "1e10", "1e300"):
        assert getattr(read_arguments([option, word]), name) is None
    for word in ("nan", "-1", "soon", *(["0"] if option == "--worker-timeout" else [])):
        with pytest.raises(SystemExit) as ended:
            read_arguments([f"{option}={word}"])
        assert ended.value.code == 2
        assert "time" in capsys.readouterr().err


def test_waits_and_timers_take_any_time() -> None:
    """The pieces beneath the verbs: an event, a descriptor, a timer."""
    is_set = OneShot()
    with pytest.raises(ValueError, match="timeout"):
        is_set.wait(math.nan)
    assert not is_set.wait(-math.inf)
    is_set.set()
    assert all(is_set.wait(seconds) for seconds in FOREVER)
    reader, writer = socket.socketpair()
    with reader, writer, Loop() as loop:
        assert not wait_readable(reader.fileno(), -1)
        writer.send(b"x")
        assert all(wait_readable(reader.fileno(), seconds) for seconds in FOREVER)
        with pytest.raises(ValueError, match="delay"):
            loop.call_later(math.nan, loop.wake)
        timers = [loop.call_later(seconds, loop.wake) for seconds in (*FOREVER, -1)]
        assert timers[-1] < timers[0]
    assert limit_of(None) is limit_of(math.inf) is socket_limit_of(math.inf) is None
    assert limit_of(-1) == 0
    assert socket_limit_of(3.5) == 3.5
