"""What observers hear, in which order, and what they cannot do; the counters and the log."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import signal
import socket
import threading
from typing import Any

import pytest
from support.handlers import Boom, handlers
from support.log_watch import ExpectLog
from support.stepping import steps
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.concurrency.prefork.protocol import ACCEPTED, ACTIVE, HANDLED, Orders, Page
from sockserve.concurrency.prefork.worker_commands import Duties
from sockserve.concurrency.prefork.worker_link import Link
from sockserve.core.events import Events
from sockserve.core.serving import events_of
from sockserve.pytest_plugin import Running
from sockserve.testing import Reset, ask, call_within, connect

LOOPBACK = ("127.0.0.1", 0)
ECHO = handlers(sockserve).Echo
WORDS = ("wait", "accept", "verify", "dispatch", "prepare", "handle", "error", "shutdown", "tick")

models = pytest.mark.parametrize(
    "server_class",
    [sockserve.TCPServer, sockserve.ThreadingTCPServer, sockserve.ForkingTCPServer, sockserve.GreenletTCPServer],
    ids=["inline", "thread", "fork", "greenlet"],
)


class Recorder(sockserve.Observer):
    """Keeps the words it hears, with the state of the request; its loop's turns it does not."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.errors: list[BaseException] = []

    def on_wait(self, server: Any, reason: str | None) -> None:
        """Keep the reason."""
        self.words.append(f"wait {reason}")

    def on_accept(self, server: Any, request: sockserve.LiveRequest) -> None:
        """Keep it."""
        self.words.append("accept")

    def on_verify(self, server: Any, request: sockserve.LiveRequest, accepted: bool) -> None:
        """Keep the decision."""
        self.words.append(f"verify {accepted}")

    def on_dispatch(self, server: Any, request: sockserve.LiveRequest) -> None:
        """Keep it."""
        self.words.append("dispatch")

    def on_prepare(self, server: Any, request: sockserve.LiveRequest) -> None:
        """Keep it."""
        self.words.append("prepare")

    def on_handle(self, server: Any, request: sockserve.LiveRequest) -> None:
        """Keep it."""
        self.words.append("handle")

    def on_error(self, server: Any, request: sockserve.LiveRequest | None, error: BaseException) -> None:
        """Keep the error too."""
        self.words.append("error")
        self.errors.append(error)

    def on_shutdown(self, server: Any, request: sockserve.LiveRequest) -> None:
        """Keep what became of it."""
        self.words.append(f"shutdown {request.outcome}")


def observed(server: Any) -> tuple[Recorder, sockserve.Counters]:
    """Let a recorder and counters observe the server."""
    recorder, counters = Recorder(), sockserve.Counters()
    server.add_observer(recorder)
    server.add_observer(counters)
    return recorder, counters


def tally(counters: sockserve.Counters) -> tuple[int, int, int, int, int]:
    """What they count, in the order of their docstring."""
    return counters.accepted, counters.refused, counters.active, counters.handled, counters.failed


# the order of events


@models
def test_the_words_of_a_request_that_goes_well(running: Running, server_class: Any) -> None:
    """In the order of its life, whoever serves it; a child's own steps are not heard here but for their result."""
    server = server_class(LOOPBACK, ECHO)
    recorder, counters = observed(server)
    running(server)
    assert ask(server, b"well") == b"well"
    wait_until(lambda: counters.active == 0)
    expected = ["accept", "verify True", "dispatch", "prepare", "handle", "shutdown handled"]
    if server_class is sockserve.TCPServer:
        expected.remove("dispatch")
    if server_class is sockserve.ForkingTCPServer:
        expected.remove("prepare")
    assert recorder.words == expected
    assert tally(counters) == (1, 0, 0, 1, 0)


@models
def test_the_words_of_a_request_that_fails(running: Running, expect_log: ExpectLog, server_class: Any) -> None:
    """The error comes once, before the end."""
    expect_log(logging.ERROR, "Boom: the handler raised")
    server = server_class(LOOPBACK, handlers(sockserve).Crash)
    recorder, counters = observed(server)
    running(server)
    assert ask(server, b"?") == b""
    wait_until(lambda: counters.active == 0)
    assert recorder.words[-2:] == ["error", "shutdown failed"]
    assert recorder.words.count("error") == 1
    assert "handle" not in recorder.words
    assert tally(counters) == (1, 0, 0, 0, 1)
    expected = ChildProcessError if server_class is sockserve.ForkingTCPServer else Boom
    assert [type(error) for error in recorder.errors] == [expected]


def test_a_refused_request_is_counted_as_refused(running: Running, expect_log: ExpectLog) -> None:
    """It goes to nobody; the log says so in a DEBUG line."""

    class Picky(sockserve.ThreadingTCPServer):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            return False

    refused = expect_log(logging.DEBUG, r"refused \('127.0.0.1', \d+\)")
    server = Picky(LOOPBACK, ECHO)
    recorder, counters = observed(server)
    running(server)
    with connect(server) as client:
        assert client.recv(1) == b""
    wait_until(lambda: counters.active == 0)
    assert recorder.words == ["accept", "verify False", "shutdown refused"]
    assert tally(counters) == (1, 1, 0, 0, 0)
    assert len(refused.wait()) == 1


def test_a_peer_that_left_is_no_failure(running: Running) -> None:
    """A reset in the middle counts as handled."""
    server = sockserve.ThreadingTCPServer(LOOPBACK, ECHO)
    recorder, counters = observed(server)
    running(server)
    with Reset(server, b"and gone") as client:
        assert client.connection.recv(3) == b"and"
    wait_until(lambda: counters.accepted == 1 and counters.active == 0)
    assert recorder.words[-2:] == ["error", "shutdown left"]
    assert isinstance(recorder.errors[0], ConnectionError)
    assert tally(counters) == (1, 0, 0, 1, 0)


def test_pauses_are_told(running: Running, expect_log: ExpectLog) -> None:
    """Their reason, and their end; in the log as DEBUG."""
    lines = expect_log(logging.DEBUG, "accepting (pauses: suspended|goes on)", at_least=2)
    server = sockserve.TCPServer(LOOPBACK, ECHO)
    recorder, _ = observed(server)
    running(server)
    server.suspend()
    wait_until(lambda: recorder.words == ["wait suspended"])
    server.resume()
    wait_until(lambda: recorder.words == ["wait suspended", "wait None"])
    lines.wait(2)


# observers


def test_an_observer_that_raises_harms_nobody(running: Running, expect_log: ExpectLog) -> None:
    """Neither the request, nor the loop, nor the observers after it; each time the log has its traceback."""

    class Broken(sockserve.Observer):
        pass

    def fail(*_: Any) -> None:
        raise Boom("an observer raised")

    for word in WORDS:
        setattr(Broken, f"on_{word}", fail)
    complaints = expect_log(logging.ERROR, "(?s)an observer failed.*Broken.*Boom: an observer raised")
    server = sockserve.ThreadingTCPServer(LOOPBACK, ECHO)
    server.observers = (Broken(), *server.observers)
    recorder, counters = observed(server)
    running(server)
    assert ask(server, b"unharmed") == b"unharmed"
    wait_until(lambda: counters.active == 0)
    assert recorder.words == ["accept", "verify True", "dispatch", "prepare", "handle", "shutdown handled"]
    # The six above, and a tick for each turn.
    assert len(complaints.wait(7)) >= 7


def test_observers_come_and_go(running: Running) -> None:
    """One that was removed hears nothing of the next request; one that was never there cannot be removed."""
    server = sockserve.TCPServer(LOOPBACK, ECHO)
    recorder, counters = observed(server)
    running(server)
    ask(server, b"one")
    wait_until(lambda: counters.active == 0)
    heard = list(recorder.words)
    server.remove_observer(recorder)
    ask(server, b"two")
    wait_until(lambda: counters.handled == 2)
    assert recorder.words == heard
    with pytest.raises(ValueError, match="not in list"):
        server.remove_observer(recorder)
    server.add_observer(recorder)
    ask(server, b"three")
    wait_until(lambda: counters.handled == 3)
    assert recorder.words == heard * 2


def test_one_that_comes_in_the_middle_of_a_request_hears_of_the_next(running: Running) -> None:
    """So that no observer sees an end without a beginning."""
    server = sockserve.ThreadingTCPServer(LOOPBACK, ECHO)
    running(server)
    with connect(server) as client:
        wait_until(lambda: server.active_requests)
        recorder, counters = observed(server)
        client.sendall(b"!")
        assert client.recv(1) == b"!"
    assert server.wait_idle(LIMIT)
    assert recorder.words == []
    assert tally(counters) == (0, 0, 0, 0, 0)


def test_a_class_may_name_its_observers(running: Running) -> None:
    """All servers of the class then share them."""
    counters = sockserve.Counters()

    class Counted(sockserve.TCPServer):
        observers = (counters,)

    for _ in range(2):
        ask(running(Counted(LOOPBACK, ECHO)), b"")
    wait_until(lambda: counters.handled == 2)
    assert tally(counters) == (2, 0, 0, 2, 0)


def test_what_is_not_overridden_is_not_called() -> None:
    """An observer that wants to hear one word costs nothing for the others; one need not even be a subclass."""

    class Duck:
        def on_tick(self, server: Any) -> None:
            """Hear it."""

    duck = Duck()
    events = Events((sockserve.Observer(), duck))  # type: ignore[arg-type]
    assert events.tick == (duck.on_tick,)
    assert all(getattr(events, word) == () for word in WORDS if word != "tick")


def test_events_follow_the_observers_of_any_server() -> None:
    """A standard library's server, which has none, gets the log's."""

    class Foreign:
        pass

    server: Any = Foreign()
    assert [type(each) for each in events_of(server).observers] == [sockserve.LogObserver]
    recorder = Recorder()
    server.observers = (recorder,)
    assert events_of(server).accept == (recorder.on_accept,)


# counters


def test_counters_are_exact_under_threads(running: Running, expect_log: ExpectLog) -> None:
    """Of clients that are refused, fail, or are served, eight at a time, none is lost and none counts twice."""
    expect_log(logging.ERROR, "Boom: a handler raised", at_least=50)

    class Mixed(sockserve.BaseRequestHandler):
        def handle(self) -> None:
            if self.request.recv(10) == b"fail":
                raise Boom("a handler raised")

    class Server(sockserve.ThreadingTCPServer):
        number = 0

        def verify_request(self, request: Any, client_address: Any) -> bool:
            self.number += 1
            return self.number % 4 != 0

    server = Server(LOOPBACK, Mixed)
    _, counters = observed(server)
    running(server)

    def client(number: int) -> None:
        # A refused client that has sent something already may be told so by a reset.
        with contextlib.suppress(ConnectionResetError):
            assert ask(server, b"fail" if number % 2 else b"good") == b""

    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        for future in [executor.submit(client, number) for number in range(400)]:
            call_within(LIMIT, future.result)
    assert server.wait_idle(LIMIT)
    wait_until(lambda: counters.active == 0)
    assert (counters.accepted, counters.refused) == (400, 100)
    assert counters.handled + counters.failed == 300
    assert counters.failed >= 50


def test_counters_of_several_servers_add_up() -> None:
    """Two threads on each of ten servers share one: no increment is lost."""
    counters = sockserve.Counters()
    request: Any = type("Request", (), {"outcome": "handled", "exceeded": None})()

    def work() -> None:
        for _ in range(2000):
            counters.on_accept(None, request)
            counters.on_shutdown(None, request)

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tally(counters) == (40_000, 0, 0, 40_000, 0)


def test_whoever_sees_that_nothing_is_active_finds_all_counted() -> None:
    """Counters that are read at any step of a request's end miss none that is not active any more."""
    request: Any = type("Request", (), {"outcome": "handled", "exceeded": None})()
    for step in steps():
        counters = sockserve.Counters()
        counters.on_accept(None, request)
        seen: list[int] = []
        step.run(lambda: counters.on_shutdown(None, request), lambda: seen.append(counters.active + counters.handled))  # noqa: B023
        assert 0 not in seen, step


def test_a_supervisor_that_sees_nothing_active_finds_all_counted() -> None:
    """A worker that is looked at, or killed, at any step of a request has lost it nowhere, and counted it once."""
    request: Any = type("Request", (), {"outcome": "handled", "exceeded": None})()
    ours, theirs = socket.socketpair()
    orders = Orders(0, is_anew=False, worker_timeout=None, max_requests=None, dump_signal=signal.SIGQUIT)
    with ours, theirs:
        for step in steps():
            page = Page()
            duties = Duties(Link(ours, page, orders), [])
            counters = sockserve.Counters()

            def look() -> None:
                numbers = page.numbers  # noqa: B023
                assert numbers[ACTIVE] + numbers[HANDLED] >= numbers[ACCEPTED]
                page.add_to(counters)  # noqa: B023

            def serve() -> None:
                duties.on_accept(None, request)  # noqa: B023
                duties.on_shutdown(None, request)  # noqa: B023

            step.run(serve, look)
            assert counters.accepted == counters.handled + counters.failed, step
