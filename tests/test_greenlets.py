"""Servers whose handlers run in greenlets: what such a handler may do, and how the server ends."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import pathlib
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest
from support.handlers import Boom
from support.log_watch import ExpectLog
from support.programs import Program
from support.under_test import LIMIT

import sockserve
from sockserve import greenlets
from sockserve.pytest_plugin import Running
from sockserve.testing import Stall, ask, call_within, connect

LOOPBACK = ("127.0.0.1", 0)


class Echo(sockserve.BaseRequestHandler[Any, Any, Any]):
    """Sends back what it gets."""

    def handle(self) -> None:
        """Until end-of-file."""
        while data := self.request.recv(1000):
            self.request.sendall(data)


def handling(function: Any) -> Any:
    """A handler class whose ``handle()`` is a function of the handler."""
    return type("Handler", (sockserve.BaseRequestHandler,), {"handle": function})


# what a handler uses


@pytest.mark.usefixtures("short_grace")
def test_handlers_take_turns_in_one_thread(running: Running, expect_log: ExpectLog) -> None:
    """A handler that sleeps, or waits for its client, holds up no other; all are in the loop's thread."""
    expect_log(logging.WARNING, "cut .*in progress", at_least=1)
    threads = set()

    def handle(self: Any) -> None:
        threads.add(threading.get_ident())
        greenlets.sleep(3600 if self.request.recv(1) == b"s" else 0)
        self.request.sendall(b"awake")

    server = running(sockserve.GreenletTCPServer(LOOPBACK, handling(handle)))
    server.drain_timeout = 0
    with connect(server) as sleeper, connect(server), contextlib.ExitStack() as stack:
        sleeper.sendall(b"s")
        for _ in range(20):
            client = stack.enter_context(connect(server, timeout=LIMIT))
            client.sendall(b"x")
            assert client.recv(5) == b"awake"
        assert len(threads) == 1
        assert len(server.active_requests) >= 2
        # The sleeper does not notice that it is cut: it is ended.
        server.shutdown()


def test_a_handler_can_be_a_proxy(running: Running) -> None:
    """It connects to another server by name, and two greenlets carry bytes both ways; one closes after the other."""

    def carry(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    backend = running(sockserve.GreenletTCPServer(LOOPBACK, Echo))

    def handle(self: Any) -> None:
        with greenlets.create_connection(("localhost", backend.server_address[1]), LIMIT) as upstream:
            back = greenlets.spawn(carry, upstream, self.request)
            carry(self.request, upstream)
            assert back.wait(LIMIT)

    proxy = running(sockserve.GreenletTCPServer(LOOPBACK, handling(handle)))
    data = bytes(range(256)) * 10_000
    assert ask(proxy, data, timeout=LIMIT) == data


def test_what_cannot_be_connected_to_raises(running: Running) -> None:
    """``create_connection()`` raises the system's error, with a source address and a time-out as well."""

    def handle(self: Any) -> None:
        with socket.socket() as closed:
            closed.bind(LOOPBACK)
            address = closed.getsockname()
            with pytest.raises(ConnectionRefusedError):
                greenlets.create_connection(address, LIMIT, LOOPBACK)
        with pytest.raises(socket.gaierror):
            greenlets.create_connection(("no-such-host.invalid", 1))
        self.request.sendall(b"refused")

    assert ask(running(sockserve.GreenletTCPServer(LOOPBACK, handling(handle))), b"") == b"refused"


def test_what_blocks_runs_in_a_thread(running: Running) -> None:
    """A function that blocks its thread holds up no other handler; its result, error and context are the caller's."""
    variable = contextvars.ContextVar("variable", default="unset")
    blocked, released = threading.Event(), threading.Event()

    def block() -> str:
        blocked.set()
        assert released.wait(LIMIT)
        return f"{variable.get()} in {threading.current_thread().name[:9]}"

    def fail() -> None:
        raise Boom("in a thread")

    def handle(self: Any) -> None:
        if self.request.recv(1) == b"b":
            variable.set("set")
            with pytest.raises(Boom, match="in a thread"):
                greenlets.run_in_thread(fail)
            self.request.sendall(greenlets.run_in_thread(block).encode())
        else:
            self.request.sendall(variable.get().encode())

    server = running(sockserve.GreenletTCPServer(LOOPBACK, handling(handle)))
    with connect(server, timeout=LIMIT) as client:
        client.sendall(b"b")
        assert blocked.wait(LIMIT)
        assert ask(server, b"x") == b"unset"
        released.set()
        assert client.recv(100) == b"set in sockserve"


def test_context_variables_are_those_of_whoever_serves(running: Running) -> None:
    """A handler sees what ``serve_forever()``'s caller had set, and what it sets itself no other sees."""
    variable = contextvars.ContextVar[str]("variable")

    class Server(sockserve.GreenletTCPServer):
        def serve_forever(self, poll_interval: float = 0.5) -> None:
            variable.set("from the server")
            super().serve_forever(poll_interval)

    def handle(self: Any) -> None:
        seen = variable.get()
        variable.set("changed")
        greenlets.sleep(0)
        assert variable.get() == "changed"
        self.request.sendall(seen.encode())

    server = running(Server(LOOPBACK, handling(handle)))
    assert [ask(server, b""), ask(server, b"")] == [b"from the server"] * 2


def test_what_a_spawned_function_raises_is_logged(running: Running, expect_log: ExpectLog) -> None:
    """It ends nobody else."""
    expected = expect_log(logging.ERROR, "(?s)what a handler has spawned failed.*Boom: spawned")

    def fail() -> None:
        raise Boom("spawned")

    def handle(self: Any) -> None:
        assert greenlets.spawn(fail).wait(LIMIT)
        self.request.sendall(b"went on")

    assert ask(running(sockserve.GreenletTCPServer(LOOPBACK, handling(handle))), b"") == b"went on"
    assert len(expected.wait()) == 1


def test_outside_of_handlers_the_functions_do_the_same() -> None:
    """``sleep()`` and ``run_in_thread()`` work in any thread; ``spawn()`` says that it does not."""
    greenlets.sleep(0)
    assert greenlets.run_in_thread(threading.get_ident) == threading.get_ident()
    with pytest.raises(RuntimeError, match="handlers"):
        greenlets.spawn(print)
    with socket.create_server(LOOPBACK) as listener, greenlets.create_connection(listener.getsockname()) as client:
        connection, _ = listener.accept()
        with connection:
            client.sendall(b"x")
            assert connection.recv(1) == b"x"


# stopping


@pytest.mark.parametrize("verb", ["shutdown", "drain", "server_close", "wait_idle"])
def test_a_handler_may_stop_its_server(running: Running, expect_log: ExpectLog, verb: str) -> None:
    """Each verb, called in a handler, waits for the others and not for itself, and these go on meanwhile."""
    if verb == "server_close":
        expect_log(logging.WARNING, "came before shutdown")
    others, called = threading.Event(), threading.Event()

    def handle(self: Any) -> None:
        if self.request.recv(1) == b"o":
            others.set()
            # A drain may end the input before it comes.
            assert self.request.recv(1) in (b"n", b"")
            self.request.sendall(b"other")
            return
        arguments = {"drain": [None], "wait_idle": [LIMIT]}.get(verb, [])
        called.set()
        if verb == "wait_idle":
            self.server.suspend()
        getattr(self.server, verb)(*arguments)
        self.request.sendall(b"stopped")

    server = running(sockserve.GreenletTCPServer(LOOPBACK, handling(handle)))
    with connect(server, timeout=LIMIT) as other, connect(server, timeout=LIMIT) as client:
        other.sendall(b"o")
        assert others.wait(LIMIT)
        client.sendall(b"x")
        assert called.wait(LIMIT)
        other.sendall(b"n")
        assert other.recv(10) == b"other"
        assert client.recv(10) == b"stopped"


def test_requests_in_progress_go_on_after_shutdown() -> None:
    """``shutdown()`` returns at once; ``serve_forever()`` returns when the last handler has ended by itself."""
    server = sockserve.GreenletTCPServer(LOOPBACK, Echo)
    loop = threading.Thread(target=server.serve_forever)
    loop.start()
    with connect(server, timeout=LIMIT) as client:
        client.sendall(b"1")
        assert client.recv(1) == b"1"
        call_within(LIMIT, server.shutdown)
        assert loop.is_alive()
        client.sendall(b"2")
        assert client.recv(1) == b"2"
    loop.join(LIMIT)
    assert not loop.is_alive()
    assert server.active_requests == ()
    server.server_close()


@pytest.mark.usefixtures("short_grace")
def test_what_does_not_end_is_ended(expect_log: ExpectLog) -> None:
    """After ``drain_timeout`` connections are cut; a handler that does not notice ends by an exception in its wait."""
    expect_log(logging.WARNING, "cut .*in progress", at_least=2)
    ended: list[str] = []
    begun = threading.Semaphore(0)

    def handle(self: Any) -> None:
        kind = self.request.recv(1)
        begun.release()
        try:
            if kind == b"s":
                greenlets.sleep(3600)
            else:
                self.request.recv(1)
        finally:
            ended.append(type(sys.exception()).__name__)

    server = sockserve.GreenletTCPServer(LOOPBACK, handling(handle))
    server.drain_timeout = 0.05
    loop = threading.Thread(target=server.serve_forever)
    loop.start()
    with connect(server) as sleeper, connect(server) as reader:
        sleeper.sendall(b"s")
        reader.sendall(b"r")
        assert begun.acquire(timeout=LIMIT)
        assert begun.acquire(timeout=LIMIT)
        server.shutdown()
        loop.join(LIMIT)
    assert not loop.is_alive()
    assert ended == ["NoneType", "GreenletExit"]
    assert server.active_requests == ()
    server.server_close()


def test_ctrl_c_lets_handlers_finish() -> None:
    """The exception leaves ``serve_forever()`` at once, and ``server_close()`` then runs the handlers to their end."""
    script = """
    import sys, threading, sockserve
    from test_greenlets import Echo
    from support.waiting import is_asleep, wait_until
    server = sockserve.GreenletTCPServer(("127.0.0.1", 0), Echo)
    print(server.server_address[1], flush=True)
    me = threading.get_ident()

    def tell():
        # Not while the handler is at work: it would be the one who is interrupted.
        wait_until(lambda: server.active_requests and is_asleep(sys._current_frames()[me]))
        print("asleep", flush=True)

    threading.Thread(target=tell).start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("interrupted", len(server.active_requests), flush=True)
    server.server_close()
    print("closed", len(server.active_requests), flush=True)
    """
    with Program(script) as program, connect(("127.0.0.1", int(program.line())), timeout=LIMIT) as client:
        assert program.line() == "asleep"
        program.send(signal.SIGINT)
        assert program.line() == "interrupted 1"
        client.sendall(b"2")
        assert client.recv(1) == b"2"
        client.shutdown(socket.SHUT_WR)
        assert program.line() == "closed 0"
        assert program.status(LIMIT) == 0


# slow handlers


def test_a_handler_that_keeps_the_others_waiting_is_reported_once(running: Running, expect_log: ExpectLog) -> None:
    """The log says where it is; one that merely waits, for however long, is not meant."""
    expected = expect_log(logging.WARNING, "(?s)let no other go on for more than 0.25 s.*in hog\n")
    # Of any other if the machine is so busy.
    expect_log(logging.WARNING, "let no other go on", at_least=0)
    released = threading.Event()

    def hog() -> None:
        assert released.wait(LIMIT)

    def handle(self: Any) -> None:
        if self.request.recv(1) == b"h":
            hog()
        self.request.sendall(b"x")

    server = sockserve.GreenletTCPServer(LOOPBACK, handling(handle))
    server.slow_handler_warning = 0.25
    running(server)
    with Stall(server), connect(server, timeout=LIMIT) as client:
        assert ask(server, b"y") == b"x"
        assert not threading.Event().wait(0.3)
        client.sendall(b"h")
        assert len(expected.wait()) == 1
        assert not threading.Event().wait(0.3)
        released.set()
        assert client.recv(1) == b"x"
    assert len(expected.wait()) == 1


# other mix-ins


@pytest.mark.parametrize("mix_in", ["ThreadingMixIn", "ForkingMixIn", "ThreadPoolMixIn"])
def test_a_request_cannot_run_in_two_places(mix_in: str) -> None:
    """Greenlets mixed with another way to run a handler, in either order, are refused when the class is made."""
    other = getattr(sockserve, mix_in)
    for bases in ((sockserve.GreenletMixIn, other), (other, sockserve.GreenletMixIn)):
        with pytest.raises(TypeError, match="take one of the two"):
            type("Server", (*bases, sockserve.TCPServer), {})


# without the extra


@pytest.fixture
def without_greenlet(tmp_path: pathlib.Path) -> dict[str, str]:
    """The environment of a Python in which the library is not installed."""
    (tmp_path / "greenlet.py").write_text("raise ModuleNotFoundError('no greenlet here', name='greenlet')\n")
    package = pathlib.Path(sockserve.__file__).parent.parent
    return {"PYTHONPATH": f"{tmp_path}:{package}", "PATH": ""}


@pytest.mark.parametrize("name", ["GreenletMixIn", "GreenletTCPServer", "GreenletUnixStreamServer"])
def test_without_the_library_the_error_names_the_extra(without_greenlet: dict[str, str], name: str) -> None:
    """The package imports, with everything else in it; to ask for a name in greenlets is an ImportError that helps."""
    program = f"""
import sockserve
from sockserve import *
assert TCPServer is sockserve.TCPServer
try:
    sockserve.{name}
except ImportError as error:
    print(error)
"""
    output = subprocess.run(
        [sys.executable, "-c", program], env=without_greenlet, check=True, capture_output=True, text=True, timeout=30
    ).stdout
    assert "pip install 'sockserve[greenlet]'" in output


def test_without_the_library_the_command_names_the_extra(without_greenlet: dict[str, str]) -> None:
    """``--model greenlet`` ends with that line and status 1, not with a traceback."""
    command = [sys.executable, "-m", "sockserve", "--model", "greenlet"]
    ended = subprocess.run(command, env=without_greenlet, check=False, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    assert "pip install 'sockserve[greenlet]'" in ended.stderr
    assert "Traceback" not in ended.stderr
