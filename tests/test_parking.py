"""Parked connections: they hold no thread, and nothing that happens to them meanwhile is lost or done twice."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import math
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.log_watch import ExpectLog
from support.parked import Steps, pool, with_own_steps
from support.programs import Program
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.core.serving import serving_of, table_of
from sockserve.pytest_plugin import Running
from sockserve.testing import call_within, connect

LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture(params=["epoll", "selector"])
def poller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the workers wait on: the platform's shared poller, or a selector with a leader."""
    if request.param == "selector":
        monkeypatch.delattr(select, "epoll")


class Echo(Steps, sockserve.BaseRequestHandler[Any, Any, Any]):
    """Sends back what comes, and waits for more; b"wait" waits for ``opened`` first."""

    def handle(self) -> None:
        """Answer."""
        self.keep_open()
        data = self.request.recv(100)
        if data == b"wait":
            self.begun.release()
            assert self.opened.wait(LIMIT)
        self.request.sendall(data)

    def finish(self) -> None:
        """Count."""
        self.finished.release()


@pytest.fixture
def echo() -> Iterator[type[Echo]]:
    """One with events of its own; opened at the end, whatever happened."""
    own = with_own_steps(Echo)
    yield own
    own.opened.set()


def exchange(client: socket.socket, data: bytes) -> None:
    """Say something and get it back."""
    client.sendall(data)
    assert client.recv(100) == data


def states(server: Any) -> list[str]:
    """The states of the requests in progress."""
    return [request.state for request in server.active_requests]


def wait_until_parked(server: Any, count: int) -> None:
    """Return as soon as so many requests are in progress, all of them parked."""
    wait_until(lambda: states(server) == ["parked"] * count)


@contextlib.contextmanager
def crowd(server: Any, count: int) -> Iterator[list[socket.socket]]:
    """So many clients that have been answered once."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            # One by one: no worker has to wait for the first word of one who came before.
            clients.append(stack.enter_context(connect(server, timeout=LIMIT)))
            exchange(clients[-1], b"hello")
        yield clients


@pytest.mark.usefixtures("poller")
def test_many_clients_need_a_few_threads(running: Running, echo: type[Echo]) -> None:
    """They are parked while they are silent, each is answered whenever it speaks, and a drain is quick."""
    server = running(pool(echo, max_workers=4))
    before = threading.active_count()
    with crowd(server, 300) as clients:
        wait_until_parked(server, 300)
        assert threading.active_count() <= before + 3
        for client in clients[::3]:
            client.sendall(b"again")
        for client in clients[::3]:
            assert client.recv(100) == b"again"
        wait_until_parked(server, 300)
        begun = time.monotonic()
        assert server.drain(LIMIT) == (300, 0)
        assert time.monotonic() - begun < LIMIT / 2
        assert [client.recv(100) for client in clients] == [b""] * 300


@pytest.mark.usefixtures("poller")
def test_parked_clients_hold_up_nobody(running: Running, echo: type[Echo]) -> None:
    """With a single thread, others connect and are served while a hundred are parked."""
    server = running(pool(echo, max_workers=1))
    with crowd(server, 100) as clients, crowd(server, 5) as others:
        for client in clients[:5] + others:
            exchange(client, b"again")


def test_a_drain_closes_the_parked_though_all_workers_are_busy(running: Running, echo: type[Echo]) -> None:
    """They need not wait for a worker; the busy ones then end by themselves."""
    server = running(pool(echo, max_workers=2))
    with crowd(server, 20) as clients:
        for client in clients[:2]:
            client.sendall(b"wait")
            assert echo.begun.acquire(timeout=LIMIT)
        drained: list[Any] = []
        drain = threading.Thread(target=lambda: drained.append(server.drain(LIMIT)))
        drain.start()
        assert [client.recv(100) for client in clients[2:]] == [b""] * 18
        wait_until(lambda: states(server) == ["handle", "handle"])
        echo.opened.set()
        assert [client.recv(100) for client in clients[:2]] == [b"wait"] * 2
        drain.join(LIMIT)
        assert drained == [(20, 0)]


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.usefixtures("poller")
def test_when_the_loop_ends_the_parked_end(running: Running, echo: type[Echo], busy: bool) -> None:
    """Nobody will hear them any more: ``finish()`` runs for each and its client sees the end, workers or not."""
    server = running(pool(echo, max_workers=1))
    with crowd(server, 10) as clients:
        wait_until_parked(server, 10)
        if busy:
            clients[0].sendall(b"wait")
            assert echo.begun.acquire(timeout=LIMIT)
        call_within(LIMIT, server.shutdown)
        for client in clients[busy:]:
            assert client.recv(100) == b""
            assert echo.finished.acquire(timeout=LIMIT)
        echo.opened.set()
        if busy:
            # It asks to be kept open, and is not.
            assert (clients[0].recv(100), clients[0].recv(100)) == (b"wait", b"")
    wait_until(lambda: states(server) == [])


@pytest.mark.usefixtures("poller")
def test_a_parked_client_that_leaves_is_let_go(running: Running, echo: type[Echo]) -> None:
    """Closed, half-closed or reset: ``finish()`` runs once, ``handle()`` is not called again, nothing is left."""
    server = running(pool(echo))
    with crowd(server, 3) as clients:
        wait_until_parked(server, 3)
        clients[0].close()
        clients[1].shutdown(socket.SHUT_WR)
        clients[2].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        clients[2].close()
        assert clients[1].recv(100) == b""
        wait_until(lambda: states(server) == [])
    assert [echo.finished.acquire(blocking=False) for _ in range(4)] == [True, True, True, False]


def test_what_a_client_says_before_it_leaves_is_heard(running: Running, echo: type[Echo]) -> None:
    """Input and its end that come together are a call and the end."""
    server = running(pool(echo))
    for _ in range(50):
        with crowd(server, 1) as (client,):
            client.sendall(b"last")
            client.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b"last"
            assert client.recv(100) == b""


@pytest.mark.usefixtures("poller")
def test_silence_has_a_limit_for_the_parked(running: Running, echo: type[Echo]) -> None:
    """A connection's time-out ends it, the sooner the shorter it is; without one it stays."""

    class Handler(echo):  # type: ignore[misc,valid-type]
        limits = iter([None, 1000.0, 0.3, 0.05])
        limit = False

        def handle(self) -> None:
            # In time for its first word, however late that comes.
            if self.limit is False:
                self.limit = next(self.limits)
            super().handle()
            self.request.settimeout(self.limit)

    server = running(pool(Handler, max_workers=1))
    with crowd(server, 4) as clients:
        assert clients[3].recv(100) == b""
        assert clients[2].recv(100) == b""
        for client in clients[:2]:
            exchange(client, b"still here")
        wait_until_parked(server, 2)


def test_the_limit_begins_anew_with_each_message(running: Running, echo: type[Echo]) -> None:
    """Who speaks in time goes on, whenever it connected."""

    class Handler(echo):  # type: ignore[misc,valid-type]
        def setup(self) -> None:
            self.request.settimeout(1000)

    server = running(pool(Handler))
    table = table_of(server)
    parking: Any = table.parking
    with crowd(server, 2) as (client, silent):
        wait_until_parked(server, 2)
        for live in table.all():
            live.parking_record.parked_at -= 999.9
        exchange(client, b"again")
        parking.wants_look = True
        serving_of(server).lifecycle.wake()
        assert silent.recv(100) == b""
        exchange(client, b"again")


def test_context_variables_stay_with_their_connection(running: Running) -> None:
    """What a handler set is there in its next call, in whichever thread that is, and in no other connection's."""
    variable: contextvars.ContextVar[bytes] = contextvars.ContextVar("variable", default=b"unset")

    class Handler(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            self.keep_open()
            data = self.request.recv(100)
            self.request.sendall(variable.get())
            variable.set(data)

    server = running(pool(Handler, max_workers=4))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server, timeout=LIMIT)) for _ in range(20)]
        expected = [b"unset"] * 20
        for _ in range(3):
            for number, client in enumerate(clients):
                client.sendall(b"%d" % number)
            assert [client.recv(100) for client in clients] == expected
            expected = [b"%d" % number for number in range(20)]


def test_a_connection_given_away_is_watched_no_more(running: Running) -> None:
    """After ``detach_request()`` the pool does not react to it, and the code that has it gets every byte."""
    given: list[socket.socket] = []

    class Handler(sockserve.BaseRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            if self.request.recv(100) == b"detach":
                given.append(self.detach_request())
            else:
                self.keep_open()
            self.request.sendall(b"ok")

    server = running(pool(Handler))
    with connect(server, timeout=LIMIT) as client:
        for word in (b"stay", b"detach"):
            client.sendall(word)
            assert client.recv(100) == b"ok"
        wait_until(lambda: states(server) == [])
        client.sendall(b"for the new owner")
        with given[0] as connection:
            assert connection.recv(100) == b"for the new owner"


def test_an_event_that_a_claim_overtook_is_not_believed(running: Running, echo: type[Echo]) -> None:
    """It may be about the descriptor's last owner: the worker parks the new one again, and hears it when it speaks."""
    server = running(pool(echo, max_workers=1))
    with crowd(server, 2) as (client, other):
        wait_until_parked(server, 2)
        parking: Any = table_of(server).parking
        # Whenever the worker has an event, a claim was made since it began to wait.
        believed = parking.serve
        served = threading.Semaphore(0)
        parking.serve = lambda live, has_input: (served.release(), believed(live, has_input))
        with parking._claiming:
            parking.claimed_at = math.inf
            client.sendall(b"hello")
            other.sendall(b"hello")
            threading.Event().wait(0.05)
            assert not served.acquire(blocking=False)
            parking.claimed_at = time.monotonic()
        assert (client.recv(100), other.recv(100)) == (b"hello", b"hello")


def test_a_claim_in_the_middle_of_parking_waits(running: Running, echo: type[Echo]) -> None:
    """It ends the connection when it is armed, and not before: or another's descriptor would be."""
    server = running(pool(echo))
    parking: Any = table_of(server).parking
    real = parking.poller
    claimers: list[threading.Thread] = []

    class Slow:
        once, held, mute = real.once, real.held, real.mute
        rearm = real.rearm
        unwatch = real.unwatch

        def arm(self, fd: int, how: int) -> None:
            claimers.append(threading.Thread(target=parking.end_all))
            claimers[-1].start()
            wait_until(lambda: fd not in parking.parked)
            real.arm(fd, how)

    parking.poller = Slow()
    with crowd(server, 3) as clients:
        assert [client.recv(100) for client in clients] == [b""] * 3
    for claimer in claimers:
        claimer.join(LIMIT)
    assert [echo.finished.acquire(blocking=False) for _ in range(4)] == [True, True, True, False]


OUT_OF_DESCRIPTORS = """
    import logging, resource, sys
    import sockserve

    logging.basicConfig(level=logging.WARNING)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    class Echo(sockserve.BaseRequestHandler):
        def handle(self):
            self.keep_open()
            self.request.sendall(self.request.recv(100))

    server = sockserve.ThreadPoolTCPServer(("127.0.0.1", 0), Echo)
    print(server.server_address[1])
    server.serve_forever()
"""


def test_without_descriptors_the_longest_parked_make_room() -> None:
    """Newcomers are served at once, those parked longest are closed for them, and the log says so in one line."""
    with Program(OUT_OF_DESCRIPTORS) as program, contextlib.ExitStack() as stack:
        address = ("127.0.0.1", int(program.line()))
        clients = []
        for _ in range(150):
            client = stack.enter_context(socket.create_connection(address, LIMIT))
            exchange(client, b"hello")
            clients.append(client)
        assert clients[0].recv(100) == b""
        exchange(clients[-1], b"still here")
        # Whoever made room says so after that.
        wait_until(program.errors)
        assert program.errors().count("\n") == 1
        assert "out of descriptors: closing the connections that have been parked longest" in program.errors()
        program.process.kill()


@pytest.mark.usefixtures("poller")
def test_nothing_is_lost_when_everything_happens_at_once(running: Running, echo: type[Echo]) -> None:
    """Clients come, speak, pause and leave while the pool grows and shrinks and time-outs end others: all are exact."""

    class Handler(echo):  # type: ignore[misc,valid-type]
        calls = 0

        def handle(self) -> None:
            super().handle()
            self.calls += 1
            # Nobody on a busy machine is so late that a limit before the last message would be his fault.
            if self.calls == 5:
                self.request.settimeout(0.07)

    counters = sockserve.Counters()
    server = pool(Handler, max_workers=6, idle_timeout=0.001)
    server.add_observer(counters)
    running(server)
    lost = []

    def talk(number: int) -> None:
        for turn in range(15):
            with connect(server, timeout=LIMIT) as client:
                for message in range(5):
                    data = b"%d %d %d" % (number, turn, message)
                    client.sendall(data)
                    if client.recv(100) != data:
                        lost.append(data)
                # Every fifth is silent for longer than it may be.
                if turn % 5 == number % 5 and client.recv(100) != b"":
                    lost.append(b"the end")

    talkers = [threading.Thread(target=talk, args=(number,)) for number in range(8)]
    for talker in talkers:
        talker.start()
    for talker in talkers:
        talker.join(LIMIT)
    assert lost == []
    wait_until(lambda: counters.active == 0)
    assert (counters.accepted, counters.handled, counters.failed) == (120, 120, 0)


def test_an_error_after_parking_is_reported(running: Running, expect_log: ExpectLog) -> None:
    """It ends its connection and nothing else."""
    expected = expect_log(logging.ERROR, "(?s)Exception occurred.*ValueError: no number")

    class Handler(sockserve.StreamRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            self.keep_open()
            line = self.rfile.readline().strip()
            if not line.isdigit():
                raise ValueError("no number")
            self.wfile.write(line)

    server = running(pool(Handler, max_workers=1))
    with connect(server, timeout=LIMIT) as bad, connect(server, timeout=LIMIT) as good:
        for client in (bad, good):
            client.sendall(b"1\n")
            assert client.recv(100) == b"1"
        bad.sendall(b"one\n")
        assert bad.recv(100) == b""
        good.sendall(b"2\n")
        assert good.recv(100) == b"2"
    assert len(expected.wait()) == 1
