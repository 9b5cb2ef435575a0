"""How ``serve()`` stops: ports first, then the requests in progress, which are cut if they take too long."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest
from support import handlers
from support.models import BESIDE_THE_LOOP, MODELS
from support.serving import Operator, serve_with
from support.stepping import steps
from support.under_test import LIMIT
from support.waiting import wait_until, wait_until_blocked

import sockserve
from sockserve import greenlets, testing
from sockserve.run.signals import STOP_SIGNALS, handling

TCP = "tcp://127.0.0.1:0"


def until_end() -> Any:
    """A handler class with a signal of its own."""

    class UntilEnd(sockserve.BaseRequestHandler):
        """Reads to end-of-file, and answers then."""

        begun = handlers.Signal()

        def handle(self) -> None:
            self.begun.set()
            while self.request.recv(100):
                pass
            self.request.sendall(b"bye")

    return UntilEnd


class Flood(sockserve.BaseRequestHandler):
    """Sends without end."""

    def handle(self) -> None:
        """Flood."""
        while True:
            self.request.sendall(bytes(65536))


class Deaf(sockserve.BaseRequestHandler):
    """Says that it has begun, then waits for what has nothing to do with its connection."""

    released: threading.Event

    def handle(self) -> None:
        """Wait."""
        self.request.sendall(b"!")
        self.released.wait()


def wait_until_closed(server: Any) -> None:
    """Return when nobody listens any more for a server, neither itself nor a child of it."""
    # Not by connecting: as long as it listens it may serve who asks.
    wait_until(lambda: server.fileno() < 0)
    wait_until_refused(server.server_address)


def wait_until_refused(address: Any) -> None:
    """Return when nobody listens on a TCP address, without having been a client of who does."""
    wait_until(lambda: is_free(address))
    with socket.socket() as client:
        client.settimeout(LIMIT)
        assert client.connect_ex(address) == errno.ECONNREFUSED


def is_free(address: Any) -> bool:
    """Say whether somebody else could listen on a TCP address now."""
    with socket.socket() as other:
        # Connections of the server's may still be there.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


@pytest.mark.parametrize("model", MODELS)
def test_the_ports_are_free_while_requests_end(model: str, tmp_path: pathlib.Path) -> None:
    """After the signal connects are refused and paths are gone, while what is in progress is answered."""
    gate = handlers.handlers(sockserve).Gate
    path = tmp_path / "s"

    def script(operator: Operator) -> None:
        with testing.Stall(operator.server) as client:
            assert gate.begun.wait()
            operator.signal()
            for server in operator.servers[:2]:
                wait_until_closed(server)
            wait_until(lambda: not path.exists())
            gate.opened.set()
            assert client.read() == b"open"

    counters = serve_with(script, gate, TCP, TCP, f"unix:{path}", model=model)
    assert (counters.accepted, counters.handled) == (1, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_keeps_no_port_of_the_others() -> None:
    """A child that serves one address holds none of the other listeners."""
    gate = handlers.handlers(sockserve).Gate

    def script(operator: Operator) -> None:
        with testing.Stall(operator.server) as client:
            assert gate.begun.wait()
            other = operator.servers[1]
            other.shutdown()
            other.server_close()
            wait_until_closed(other)
            gate.opened.set()
            assert client.read() == b"open"
        operator.signal()

    serve_with(script, gate, TCP, TCP, model="fork")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scheme", ["tcp", "unix"])
def test_a_handler_that_waits_for_input_sees_the_end_of_it(model: str, scheme: str, tmp_path: pathlib.Path) -> None:
    """It reads end-of-file and can still answer, though its client says nothing more."""
    handler = until_end()

    def script(operator: Operator) -> None:
        with testing.Stall(operator.server, b"hello") as client:
            assert handler.begun.wait()
            operator.signal()
            assert client.read() == b"bye"

    address = TCP if scheme == "tcp" else f"unix:{tmp_path}/s"
    assert serve_with(script, handler, address, model=model, drain_timeout=None).handled == 1


@pytest.mark.parametrize("model", BESIDE_THE_LOOP)
def test_all_servers_drain_at_the_same_time(model: str) -> None:
    """Requests of two servers that can only end together do so: neither drain waits for the other."""
    both = handlers.Signal()
    ended = handlers.Signal()

    class Together(until_end()):  # type: ignore[misc]
        def handle(self) -> None:
            super().handle()
            ended.set()
            # What blocks belongs there, in a greenlet; anywhere else it makes no difference.
            greenlets.run_in_thread(both.wait)

    def script(operator: Operator) -> None:
        with testing.Stall(operator.servers[0]) as one, testing.Stall(operator.servers[1]) as other:
            assert Together.begun.take()
            assert Together.begun.take()
            operator.signal()
            assert ended.take()
            assert ended.take()
            both.set()
            assert (one.read(), other.read()) == (b"bye", b"bye")

    assert serve_with(script, Together, TCP, TCP, model=model).handled == 2


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("how", ["time", "signal"])
def test_what_does_not_end_is_cut(model: str, how: str, expect_log: Any) -> None:
    """A handler that writes without end to a client that does not read is cut: after a time, or by a second signal."""
    if model != "inline":
        expect_log(logging.WARNING, r"cut \('127.0.0.1', \d+\), in progress for")
    if model == "fork":
        expect_log(logging.WARNING, "was killed by signal 9")

    def script(operator: Operator) -> None:
        with testing.Stall(operator.server) as client:
            assert client.connection.recv(1)
            operator.signal()
            wait_until_closed(operator.server)
            if how == "signal":
                operator.signal()
            # What was on its way, then the end or a reset.
            with contextlib.suppress(ConnectionError):
                client.read()

    counters = serve_with(script, Flood, TCP, model=model, drain_timeout=0.1 if how == "time" else None)
    assert counters.active == 0


@pytest.mark.parametrize("how", ["time", "signal"])
def test_an_inline_handler_is_ended_whatever_it_waits_for(how: str) -> None:
    """One that neither reads nor writes is ended by an exception, through its ``finish()``."""
    finished = []

    class Tidy(Deaf):
        released = threading.Event()

        def finish(self) -> None:
            finished.append(sys.exception())

    def script(operator: Operator) -> None:
        with testing.Stall(operator.server) as client:
            assert client.connection.recv(1)
            operator.signal()
            wait_until_closed(operator.server)
            if how == "signal":
                operator.signal()
            assert client.read() == b""

    counters = serve_with(script, Tidy, TCP, model="inline", drain_timeout=0.1 if how == "time" else None)
    assert (counters.failed, len(finished)) == (1, 1)
    assert not isinstance(finished[0], Exception)


@pytest.mark.usefixtures("short_grace")
def test_a_thread_that_ignores_being_cut_is_left_behind(expect_log: Any) -> None:
    """serve() returns without it, and as a daemon it does not keep the process."""
    expect_log(logging.WARNING, "cut")
    threads: list[threading.Thread] = []

    class Noted(Deaf):
        released = threading.Event()

        def setup(self) -> None:
            threads.append(threading.current_thread())

    def script(operator: Operator) -> None:
        with testing.Stall(operator.server) as client:
            assert client.connection.recv(1)
            operator.signal()
            wait_until_closed(operator.server)
            operator.signal()

    counters = serve_with(script, Noted, TCP, drain_timeout=None)
    assert (counters.accepted, counters.active) == (1, 1)
    assert threads[0].daemon
    Noted.released.set()
    threads[0].join(LIMIT)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_ctrl_c_reaches_the_children_and_they_finish() -> None:
    """SIGINT to the whole process group, as a terminal sends it, lets a child's request end; the program then does."""
    program = """
import os, sockserve

class Handler(sockserve.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"%d\\n" % os.getpid())
        for line in self.rfile:
            pass
        self.wfile.write(b"answer\\n")

def ready(servers):
    print(servers[0].server_address[1], flush=True)

sockserve.serve(Handler, "tcp://127.0.0.1:0", model="fork", ready=ready)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        assert process.stdout is not None
        address = "127.0.0.1", int(process.stdout.readline())
        with socket.create_connection(address, LIMIT) as client, client.makefile("rb") as file:
            wait_until_blocked(int(file.readline()))
            os.killpg(process.pid, signal.SIGINT)
            assert file.read() == b"answer\n"
        output = process.communicate(timeout=LIMIT)
    assert (process.returncode, *output) == (0, "", "")


def test_a_request_that_comes_with_the_signal_is_drained_too() -> None:
    """One that is accepted in the very moment of the signal does not hold up an inline server."""
    handler = until_end()

    class Moment(sockserve.Observer):
        def on_accept(self, server: Any, request: Any) -> None:
            signal.raise_signal(signal.SIGTERM)

    def script(operator: Operator) -> None:
        with testing.Stall(operator.server) as client:
            assert client.read() == b"bye"

    observers = [Moment()]
    assert serve_with(script, handler, TCP, model="inline", drain_timeout=None, observers=observers).handled == 1


@pytest.mark.parametrize("model", MODELS)
def test_datagrams_that_are_being_served_are_answered(model: str) -> None:
    """A datagram server's socket stays open until the last answer was sent on it."""
    gate = handlers.handlers(sockserve).Gate

    def script(operator: Operator) -> None:
        with testing.connect(operator.server, timeout=LIMIT) as client:
            client.send(b"?")
            assert gate.begun.wait()
            operator.signal()
            operator.wait_until_asked()
            gate.opened.set()
            assert client.recv(100) == b"open"

    assert serve_with(script, gate, "udp://127.0.0.1:0", model=model).handled == 1


def test_a_signal_during_ready_stops_it_at_once() -> None:
    """A program that is told to stop before it has served anybody returns, and all is closed."""
    addresses: list[Any] = []

    def ready(servers: tuple[Any, ...]) -> None:
        addresses.append(servers[0].server_address)
        signal.raise_signal(signal.SIGTERM)

    counters = sockserve.serve(handlers.handlers(sockserve).Echo, TCP, ready=ready)
    assert counters.accepted == 0
    wait_until_refused(addresses[0])


@pytest.mark.parametrize("processes", [None, 2])
def test_a_signal_before_anybody_could_be_stopped_is_not_forgotten(
    tmp_path: pathlib.Path, expect_log: Any, processes: int | None
) -> None:
    """A program that is told to stop while it opens its addresses returns, and leaves none of them behind."""
    expect_log(logging.INFO, "listening on", at_least=2)
    logger = logging.getLogger("sockserve")

    def stop(record: logging.LogRecord) -> bool:
        if "listening on" in record.msg:
            signal.raise_signal(signal.SIGTERM)
        return True

    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("nobody hears it"))
    logger.addFilter(stop)
    try:
        counters = sockserve.serve(
            handlers.handlers(sockserve).Echo, f"unix:{tmp_path}/a", f"unix:{tmp_path}/b", processes=processes
        )
    finally:
        logger.removeFilter(stop)
        signal.signal(signal.SIGTERM, before)
    assert counters.accepted == 0
    assert not list(tmp_path.iterdir())


def test_keyboard_interrupt_drains_when_signals_are_the_callers() -> None:
    """With install_signal_handlers=False a KeyboardInterrupt ends it, after the requests in progress."""
    handler = until_end()

    def script(operator: Operator) -> None:
        with testing.Stall(operator.server) as client:
            assert handler.begun.wait()
            # Once this is answered the loop is no longer busy with the first.
            assert testing.ask(operator.server, b"?") == b"bye"
            operator.signal(signal.SIGINT)
            assert client.read() == b"bye"

    with pytest.raises(KeyboardInterrupt):
        serve_with(script, handler, TCP, install_signal_handlers=False)


def test_a_second_keyboard_interrupt_cuts(expect_log: Any) -> None:
    """It does not wait for requests, and nothing of them is left."""
    expect_log(logging.WARNING, "cut")

    def script(operator: Operator) -> None:
        with testing.Stall(operator.server) as client:
            assert client.connection.recv(1)
            # Once this is answered the loop is no longer busy with the first.
            with testing.Stall(operator.server) as other:
                assert other.connection.recv(1)
            operator.signal(signal.SIGINT)
            operator.wait_until_asked()
            operator.signal(signal.SIGINT)
            with contextlib.suppress(ConnectionError):
                client.read()

    with pytest.raises(KeyboardInterrupt):
        serve_with(script, Flood, TCP, install_signal_handlers=False, drain_timeout=None)


def test_a_ctrl_c_at_any_step_of_its_end_leaves_no_signal_handler_behind() -> None:
    """It raises KeyboardInterrupt if it comes too late, with all signals meaning again what they did."""
    before = [signal.getsignal(signum) for signum in STOP_SIGNALS]
    for step in steps():
        heard: list[signal.Signals] = []
        block = handling(heard.append)
        block.__enter__()
        with contextlib.suppress(KeyboardInterrupt):
            step.run(lambda: block.__exit__(None, None, None), lambda: signal.raise_signal(signal.SIGINT))  # noqa: B023
        assert [signal.getsignal(signum) for signum in STOP_SIGNALS] == before, step
