"""A server that runs for the length of a block, ours and the stdlib's, and what can go wrong with it."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import socketserver
import threading
from typing import Any

import pytest
from support.handlers import Boom, handlers
from support.log_watch import ExpectLog
from support.under_test import LIMIT

import sockserve
from sockserve.testing import LeakError, ask, call_within, connect, leaks, running

LOOPBACK = ("127.0.0.1", 0)

both = pytest.mark.parametrize("module", [sockserve, socketserver], ids=["sockserve", "socketserver"])


@both
def test_running_serves_in_the_body_and_not_after(module: Any) -> None:
    """The body has a server that answers; afterwards nobody listens there."""
    with running(module.TCPServer(LOOPBACK, handlers(module).Echo)) as server:
        assert ask(server, b"hello") == b"hello"
        address = server.server_address
    with pytest.raises(ConnectionRefusedError):
        connect(address)


@both
def test_running_begins_before_the_body(module: Any) -> None:
    """A body that does nothing, so that shutdown() comes at once, ends every time."""
    for _ in range(20):
        with running(module.TCPServer(LOOPBACK, handlers(module).Echo), timeout=LIMIT, poll_interval=0.001):
            pass


@both
def test_running_leaves_the_server_as_it_was(module: Any) -> None:
    """Whatever it does in order to see the loop begin is undone: a fileno() of the object's own is there again."""
    server = module.TCPServer(LOOPBACK, handlers(module).Echo)
    with running(server, poll_interval=0.001):
        assert "fileno" not in vars(server)
    server = module.TCPServer(LOOPBACK, handlers(module).Echo)
    server.fileno = own = server.socket.fileno
    with running(server, poll_interval=0.001):
        assert vars(server)["fileno"] is own


@both
@pytest.mark.parametrize("model", ["", "Threading", "Forking"])
def test_running_in_every_model(module: Any, model: str, tmp_path: pathlib.Path) -> None:
    """Streams and datagrams, inline, in threads and in children, over IP and Unix sockets, leave nothing behind."""
    echo, echo_datagram = handlers(module).EchoStream, handlers(module).EchoDatagram
    with (
        running(_make(module, f"{model}TCPServer")(LOOPBACK, echo), poll_interval=0.01) as tcp,
        running(_make(module, f"{model}UDPServer")(LOOPBACK, echo_datagram), poll_interval=0.01) as udp,
        running(_make(module, f"{model}UnixStreamServer")(f"{tmp_path}/s", echo), poll_interval=0.01) as stream,
        running(
            _make(module, f"{model}UnixDatagramServer")(f"{tmp_path}/d", echo_datagram), poll_interval=0.01
        ) as dgram,
    ):
        assert [ask(server, b"hello") for server in (tcp, udp, stream, dgram)] == [b"hello"] * 4


def _make(module: Any, name: str) -> Any:
    # CPython has the forking Unix servers since 3.12.
    mixed = getattr(module, name, None)
    return mixed or type(name, (module.ForkingMixIn, getattr(module, name.removeprefix("Forking"))), {})


def failing_in_the_loop(module: Any) -> Any:
    """A server whose loop fails when it is told to, and which says so just before."""

    class Server(module.TCPServer):
        fail = threading.Event()
        fails = threading.Event()

        def service_actions(self) -> None:
            if self.fail.is_set():
                self.fails.set()
                raise Boom("in the loop")

    return Server(LOOPBACK, handlers(module).Echo)


@both
def test_running_raises_what_serve_forever_raised(module: Any) -> None:
    """An error that ended the loop is not lost with its thread."""
    with (  # noqa: PT012 - the block is what is tested
        pytest.raises(Boom, match="in the loop"),
        running(failing_in_the_loop(module), poll_interval=0.001) as server,
    ):
        server.fail.set()
        assert server.fails.wait(LIMIT)


@both
def test_running_raises_at_once_what_keeps_the_server_from_serving(module: Any) -> None:
    """A server that cannot begin raises before the body."""
    server = module.TCPServer(LOOPBACK, handlers(module).Echo)
    server.server_close()
    with pytest.raises(ValueError, match=r"closed|descriptor"), running(server):
        pytest.fail("the body ran")


def test_running_does_not_stop_what_has_ended() -> None:
    """After a loop that never began, shutdown() is not called: the stdlib's would wait for ever."""

    class Server(socketserver.TCPServer):
        calls: tuple[str, ...] = ()

        def serve_forever(self, poll_interval: float = 0.5) -> None:
            raise Boom

        def shutdown(self) -> None:
            self.calls += ("shutdown",)

        def server_close(self) -> None:
            self.calls += ("server_close",)
            super().server_close()

    server = Server(LOOPBACK, handlers(socketserver).Echo)
    with pytest.raises(Boom), running(server, timeout=LIMIT):
        pytest.fail("the body ran")
    assert server.calls == ("server_close",)


def test_running_gives_up_on_a_server_that_does_not_begin() -> None:
    """A serve_forever() that never looks at its socket is an error that shows where it hangs."""
    let_go = threading.Event()

    class Server(socketserver.TCPServer):
        def serve_forever(self, poll_interval: float = 0.5) -> None:
            let_go.wait()

        def shutdown(self) -> None:
            let_go.set()

    with (
        pytest.raises(TimeoutError, match=r"serve_forever\(\) has not begun") as caught,
        running(Server(LOOPBACK, handlers(socketserver).Echo), timeout=0.5),
    ):
        pytest.fail("the body ran")
    assert "let_go.wait()" in "".join(caught.value.__notes__)


@both
def test_running_does_not_mask_an_error_of_the_body(module: Any) -> None:
    """The body's own exception comes out, with the loop's as a note; a leak is then no news."""
    with (  # noqa: PT012 - the block is what is tested
        contextlib.ExitStack() as until_checked,
        pytest.raises(LookupError) as caught,
        running(failing_in_the_loop(module), timeout=LIMIT, poll_interval=0.001) as server,
    ):
        server.fail.set()
        assert server.fails.wait(LIMIT)
        until_checked.enter_context(pathlib.Path(__file__).open())
        raise LookupError("in the body")
    assert "Boom: in the loop" in "".join(caught.value.__notes__)


@both
def test_running_lets_the_body_stop_the_server(module: Any) -> None:
    """A body may shut down and close by itself."""
    with running(module.TCPServer(LOOPBACK, handlers(module).Echo), poll_interval=0.001) as server:
        server.shutdown()
        server.server_close()


def test_running_takes_a_server_that_was_stopped_before() -> None:
    """A serve_forever() that returns at once, because shutdown() came earlier, is no error."""
    server = sockserve.TCPServer(LOOPBACK, handlers(sockserve).Echo)
    server.shutdown()
    with running(server, timeout=LIMIT):
        assert server.fileno() >= 0
    assert server.fileno() == -1


def test_running_shows_where_a_server_hangs(expect_log: ExpectLog) -> None:
    """A shutdown() that never returns ends in an error with its stack; the server is closed all the same."""
    expect_log(logging.WARNING, r"server_close\(\) came before shutdown", at_least=0)
    let_go = threading.Event()

    class Server(sockserve.TCPServer):
        def shutdown(self) -> None:
            assert let_go.wait(LIMIT)
            super().shutdown()

        def server_close(self) -> None:
            super().server_close()
            let_go.set()

    with pytest.raises(TimeoutError) as caught, running(Server(LOOPBACK, handlers(sockserve).Echo), timeout=1.0):
        pass
    # The steps that came after may have been late, too.
    first = caught.value
    while isinstance(first.__context__, TimeoutError):
        first = first.__context__
    assert "shutdown() has not ended" in str(first)
    assert "let_go.wait(LIMIT)" in "".join(first.__notes__)
    assert let_go.wait(LIMIT)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find leaks without a delay."""
    check_leaks = leaks.check_leaks
    monkeypatch.setattr(leaks, "check_leaks", lambda before, **_: check_leaks(before, timeout=0))


@both
@pytest.mark.usefixtures("_impatient")
def test_running_finds_what_a_handler_left_behind(module: Any) -> None:
    """A descriptor that a handler opened and did not close is reported, unless nobody wants to know."""

    class Handler(module.BaseRequestHandler):
        left: Any

        def handle(self) -> None:
            type(self).left = os.dup(self.request.fileno())

    for check_leaks, outcome in (
        (True, pytest.raises(LeakError, match="descriptor")),
        (False, contextlib.nullcontext()),
    ):
        server = module.TCPServer(LOOPBACK, Handler)
        with outcome, running(server, poll_interval=0.001, check_leaks=check_leaks):
            assert ask(server, b"") == b""
        os.close(Handler.left)


@both
@pytest.mark.usefixtures("_impatient")
def test_running_finds_a_listener_that_was_not_closed(module: Any) -> None:
    """The server's own socket, although older than the block, has to be closed at its end."""

    class Server(module.TCPServer):
        def server_close(self) -> None:
            """Forgets to."""

    server = Server(LOOPBACK, handlers(module).Echo)
    with pytest.raises(LeakError, match=str(server.server_address[1])), running(server, poll_interval=0.001):
        pass
    super(Server, server).server_close()


def test_call_within_has_three_ends() -> None:
    """It returns the result, raises the error, or gives up and shows where the call hangs."""
    assert call_within(LIMIT, divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        call_within(LIMIT, divmod, 7, 0)
    let_go = threading.Event()
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.05 seconds") as caught:
        call_within(0.05, let_go.wait)
    assert "in _bootstrap" in "".join(caught.value.__notes__)
    let_go.set()
