"""``deadlines``: a peer that is too slow is cut, in each model; one that is merely slow, or waits for us, is not."""

from __future__ import annotations

import logging
import pickle
import select
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest
from support.log_watch import ExpectLog
from support.models import MODELS, counted_server
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.core import deadlines as deadlines_module
from sockserve.core.deadlines import Watch
from sockserve.core.serving import table_of
from sockserve.net.tcp_info import progress_of
from sockserve.pytest_plugin import Running
from sockserve.testing import Stall, Trickle, ask

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO")

Deadlines = sockserve.Deadlines
SOON = 0.15
"""Seconds after which the peers of these tests are too slow."""


class Lines(sockserve.StreamRequestHandler):
    """Answers each line until end-of-file."""

    def handle(self) -> None:
        """Until end-of-file."""
        for line in self.rfile:
            self.wfile.write(line)


class OneLine(sockserve.StreamRequestHandler):
    """Answers one line for each call, and keeps the connection."""

    def handle(self) -> None:
        """Once for each message."""
        line = self.rfile.readline(100)
        if line:
            self.wfile.write(line)
            self.keep_open()


class Raw(sockserve.BaseRequestHandler):
    """Sends back what comes, without files."""

    def handle(self) -> None:
        """Until end-of-file."""
        while data := self.request.recv(100):
            self.request.sendall(data)


class Flood(sockserve.StreamRequestHandler):
    """Sends more than the buffers of both ends take together."""

    def handle(self) -> None:
        """Once the client has asked."""
        self.rfile.readline(100)
        for _ in range(1000):
            self.wfile.write(bytes(100_000))


def is_cut(client: socket.socket) -> bool:
    """Wait until the connection has ended, in whichever way."""
    client.settimeout(LIMIT)
    try:
        while client.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def count_cuts(server: Any, expected: dict[str, int]) -> None:
    """Wait until so many were cut for these reasons, and the table is empty."""
    wait_until(lambda: server.counters.cut_by == expected, tell=lambda: (server.counters.cut_by, vars(server.counters)))
    wait_until(lambda: not server.active_requests)
    assert server.counters.cut == sum(expected.values())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("handler", [Lines, Raw])
def test_y12_silent_clients_are_cut_in_each_model(running: Running, model: str, handler: Any) -> None:
    """A client that never says a word is cut, whatever reads from it, and another one is served."""
    server = running(counted_server(model, handler, deadlines=Deadlines(first_byte=SOON)))
    with Stall(server) as silent:
        assert is_cut(silent.connection)
    assert ask(server, b"hello\n") == b"hello\n"
    count_cuts(server, {"first_byte": 1})


@pytest.mark.parametrize("model", MODELS)
def test_y12_a_trickle_is_cut_in_each_model(running: Running, model: str) -> None:
    """A byte now and then lets no time-out of one recv() run out; the rate is too low all the same."""
    server = running(counted_server(model, Lines, deadlines=Deadlines(min_rate=1000, grace=SOON)))
    with Trickle(server, b"x" * 1000, interval=0.01) as slow:
        assert is_cut(slow.connection)
    count_cuts(server, {"min_rate": 1})


@pytest.mark.parametrize("model", MODELS)
def test_y14_a_client_that_does_not_read_is_cut_in_each_model(running: Running, model: str) -> None:
    """A window of zero stalls the answer for ever: the peer acknowledges nothing more."""
    server = counted_server(model, Flood, deadlines=Deadlines(stall=SOON))
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    running(server)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(server.server_address)
        client.sendall(b"\n")
        count_cuts(server, {"stall": 1})


def test_y13_a_steady_slow_reader_lives(running: Running) -> None:
    """An answer may take much longer than ``stall`` as long as its client goes on reading."""

    class Answer(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(bytes(300_000))

    server = counted_server("thread", Answer, deadlines=Deadlines(stall=SOON))
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    running(server)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.connect(server.server_address)
        size = 0
        while data := client.recv(10_000):
            size += len(data)
            threading.Event().wait(0.01)
    assert size == 300_000
    wait_until(lambda: not server.active_requests)
    assert not server.counters.cut


@pytest.mark.parametrize("model", MODELS)
def test_y15_a_handler_that_computes_is_not_blamed_on_its_client(running: Running, model: str) -> None:
    """Neither rate nor silence counts while the server does not read."""
    grace = 0.05

    class Slow(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.read(1)
            threading.Event().wait(3 * grace)
            self.wfile.write(self.rfile.readline(10))

    server = running(
        counted_server(model, Slow, deadlines=Deadlines(first_byte=grace, idle=grace, min_rate=1000, grace=grace))
    )
    assert ask(server, b"-abc\n") == b"abc\n"
    wait_until(lambda: not server.active_requests)
    assert not server.counters.cut


@pytest.mark.parametrize("model", MODELS)
def test_y16_silence_between_two_messages_is_not_the_wait_for_a_first_byte(running: Running, model: str) -> None:
    """A connection that is kept open may be silent for longer than all that is about one message; then it is idle."""
    limits = Deadlines(first_byte=0.05, request=0.05, min_rate=100, grace=0.05, idle=0.6)
    if model == "fork":
        # There the whole connection is one request to the parent.
        limits = Deadlines(first_byte=0.05, min_rate=100, grace=0.05, idle=0.6)
    server = running(counted_server(model, OneLine, deadlines=limits))
    with Stall(server, b"one\n") as client:
        assert client.connection.recv(100) == b"one\n"
        threading.Event().wait(0.2)
        client.connection.sendall(b"two\n")
        assert client.connection.recv(100) == b"two\n"
        assert is_cut(client.connection)
    count_cuts(server, {"idle": 1})


@pytest.mark.parametrize("wbufsize", [0, -1])
@pytest.mark.parametrize("rbufsize", [0, -1])
def test_y17_a_cut_is_no_end_of_file(running: Running, rbufsize: int, wbufsize: int) -> None:
    """Half a message raises SlowPeerError in the handler, which is a PeerTimeoutError, and so does an answer."""
    errors: list[BaseException] = []

    class Half(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            try:
                self.rfile.readline()
            except TimeoutError as error:
                errors.append(error)
            try:
                self.wfile.write(b"late")
                self.wfile.flush()
            except TimeoutError as error:
                errors.append(error)

    Half.rbufsize, Half.wbufsize = rbufsize, wbufsize
    server = running(counted_server("thread", Half, deadlines=Deadlines(idle=SOON)))
    with Stall(server, b"half") as client:
        assert is_cut(client.connection)
    # It returned as if nothing had happened, and is "cut" all the same.
    count_cuts(server, {"idle": 1})
    assert [type(error) for error in errors] == [sockserve.SlowPeerError] * 2
    assert "idle" in str(errors[0])


def test_y17_a_raw_handler_sees_an_end_and_its_outcome_is_a_cut(running: Running) -> None:
    """Without files there is nothing that could raise: the counters tell."""
    seen: list[bytes] = []

    class RawHalf(sockserve.BaseRequestHandler):
        def handle(self) -> None:
            seen.append(self.request.recv(10))
            seen.append(self.request.recv(10))

    server = running(counted_server("thread", RawHalf, deadlines=Deadlines(idle=SOON)))
    with Stall(server, b"half") as client:
        assert is_cut(client.connection)
    count_cuts(server, {"idle": 1})
    assert seen == [b"half", b""]


@pytest.mark.parametrize("model", ["inline", "pool"])
def test_y18_a_cut_leaves_nothing_in_fin_wait(running: Running, model: str) -> None:
    """The client gets a reset, and the kernel keeps nothing of the connection."""
    server = running(counted_server(model, Lines, deadlines=Deadlines(first_byte=SOON)))
    with Stall(server) as silent:
        name = silent.connection.getsockname()
        count_cuts(server, {"first_byte": 1})
        port = f"{server.server_address[1]:04X}"
        peer = f"{name[1]:04X}"

        def states() -> list[str]:
            with open("/proc/net/tcp", encoding="ascii") as table:
                rows = [line.split() for line in table]
            return [row[3] for row in rows[1:] if row[1].endswith(f":{port}") and row[2].endswith(f":{peer}")]

        wait_until(lambda: not states(), tell=states)


def test_y20_an_error_in_the_sweep_ends_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    """It is logged, once a minute, and the loop goes on with this server and all others."""
    reported = expect_log(logging.ERROR, "(?s)a look at the deadlines failed.*what the kernel never says")

    def fail(_: object) -> None:
        raise ZeroDivisionError("what the kernel never says")

    monkeypatch.setattr(deadlines_module, "progress_of", fail)
    server = running(counted_server("thread", Lines, deadlines=Deadlines(first_byte=0.04)))
    with Stall(server) as silent:
        reported.wait()
        silent.connection.sendall(b"hello\n")
        assert silent.connection.recv(10) == b"hello\n"
    assert ask(server, b"again\n") == b"again\n"
    wait_until(lambda: not server.active_requests)
    assert not server.counters.cut


def test_y21_a_message_that_begins_during_the_look_is_not_cut(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was judged of one message holds for no other, nor for another request."""
    server = running(counted_server("thread", Lines))
    with Stall(server) as client:
        wait_until(lambda: [each.handler for each in server.active_requests if each.state == "handle"])
        (live,) = table_of(server).all()
        watch = Watch(live)
        judge = Watch._judge

        def judge_and_go_on(*args: Any, **kwargs: Any) -> str | None:
            reason = judge(*args, **kwargs)
            live.handler._serving_turns = getattr(live.handler, "_serving_turns", 0) + 1
            return reason

        with monkeypatch.context() as patched:
            patched.setattr(Watch, "_judge", judge_and_go_on)
            watch.look(live, Deadlines(request=1), live.since + 10)
        client.connection.sendall(b"x\n")
        assert client.connection.recv(10) == b"x\n"
        # Of the message that has begun since it is true as well, in its own time.
        watch.look(live, Deadlines(request=1), live.since + 20)
        assert live.outcome == "handled"
        watch.look(live, Deadlines(request=1), live.since + 30)
        assert is_cut(client.connection)
    count_cuts(server, {"request": 1})


@pytest.mark.parametrize("model", MODELS)
def test_a_request_has_its_time(running: Running, model: str) -> None:
    """``request`` is for the handler's own time as well; a child that does not end is killed."""

    class Endless(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"begun")
            while select.select([self.connection], [], [], LIMIT)[0] and self.connection.recv(10):
                pass

    server = running(counted_server(model, Endless, deadlines=Deadlines(request=SOON)))
    if model == "greenlet":
        server.RequestHandlerClass = Raw
    with Stall(server, b"" if model != "greenlet" else b"begun") as client:
        assert client.connection.recv(10) == b"begun"
        assert is_cut(client.connection)
    count_cuts(server, {"request": 1})


def test_a_handler_has_deadlines_of_its_own(running: Running) -> None:
    """Those of its class, and those that it gives itself in ``handle()``, take the place of the server's."""

    class Own(Lines):
        deadlines = Deadlines(first_byte=SOON)

    server = running(counted_server("thread", Own))
    with Stall(server) as silent:
        assert is_cut(silent.connection)
    count_cuts(server, {"first_byte": 1})


@pytest.mark.parametrize("model", ["inline", "thread", "pool", "greenlet"])
def test_a_handler_may_assign_deadlines(running: Running, model: str) -> None:
    """On a server that had none until then."""

    class Assigns(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            assert self.deadlines is None
            self.rfile.readline(100)
            self.deadlines = Deadlines(idle=SOON)
            self.rfile.readline(100)

    assert Assigns.deadlines is None
    server = running(counted_server(model, Assigns))
    with Stall(server, b"one\n") as client:
        assert is_cut(client.connection)
    count_cuts(server, {"idle": 1})


def test_handle_request_cuts_too() -> None:
    """A call without a loop is looked after by a thread, which is gone when the server is closed."""
    server = counted_server("inline", Lines, deadlines=Deadlines(first_byte=SOON))
    with server, Stall(server) as silent:
        server.handle_request()
        assert is_cut(silent.connection)
        assert server.counters.cut_by == {"first_byte": 1}


def test_without_deadlines_no_reader_keeps_a_mark() -> None:
    """A program that has none does not pay for them: nothing is exchanged before the first server that has some."""
    code = (
        "import sockserve, sockserve.core.streams as streams\n"
        "import sockserve.core.server\n"
        "assert streams.SocketReader.readinto is streams._read_unmarked\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_kernel_tells_nothing_of_what_is_no_tcp_connection() -> None:
    """Unix sockets, closed ones, and no socket at all."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert progress_of(ours) is None
    assert progress_of(object()) is None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        peer = listener.accept()[0]
        with peer, client:
            client.sendall(b"12345")
            assert peer.recv(5) == b"12345"
            progress = progress_of(peer)
            assert progress is not None
            assert progress.received == 5
            assert not progress.is_sending
        assert progress_of(peer) is None


@pytest.mark.parametrize("wrong", [{"idle": 0}, {"stall": -1}, {"grace": float("nan")}, {"min_rate": 0}])
def test_deadlines_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    """When they are made, not in a sweep."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Deadlines(**wrong)  # type: ignore[arg-type]


def test_deadlines_are_a_value() -> None:
    """Equal if the same, and never changed."""
    one = Deadlines(idle=75, min_rate=240)
    assert one == Deadlines(min_rate=240, idle=75)
    assert hash(one) == hash(Deadlines(min_rate=240, idle=75))
    assert one != Deadlines(idle=75)
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301 - our own
    assert repr(one) == "Deadlines(idle=75, min_rate=240, grace=5)"
    with pytest.raises(AttributeError):
        one.idle = 3  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del one.idle
