"""What is no Exception ends one greenlet, a signal handler's exception the server, and nothing crashes at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from typing import Any

import pytest
from support.handlers import Boom
from support.log_watch import ExpectLog
from support.programs import Program
from support.under_test import LIMIT
from support.waiting import wait_until_blocked
from test_greenlets import LOOPBACK, Echo, handling

import sockserve
from sockserve import greenlets
from sockserve.concurrency.cooperative.own_thread import OwnThread
from sockserve.core.serving import table_of
from sockserve.pytest_plugin import Running
from sockserve.testing import ask, connect

NO_EXCEPTIONS = [
    SystemExit(3),
    GeneratorExit(),
    asyncio.CancelledError(),
    KeyboardInterrupt(),
    BaseExceptionGroup("several", [KeyboardInterrupt(), SystemExit()]),
]


def claim(expect_log: ExpectLog, error: BaseException) -> None:
    """Expect what the log says of it: as in a thread nothing about SystemExit."""
    if not isinstance(error, SystemExit):
        expect_log(logging.ERROR, f"(?s)Exception ended the greenlet.*{type(error).__name__}")


@pytest.mark.parametrize("error", NO_EXCEPTIONS, ids=repr)
@pytest.mark.parametrize("where", ["handle", "spawn"])
def test_what_is_no_exception_ends_one_greenlet(
    running: Running, expect_log: ExpectLog, error: BaseException, where: str
) -> None:
    """Its own client's connection is closed; one that is being served is answered, and so is a new one."""
    claim(expect_log, error)

    def fail() -> None:
        raise error

    def handle(self: Any) -> None:
        while data := self.request.recv(1):
            if data == b"f":
                if where == "handle":
                    fail()
                assert greenlets.spawn(fail).wait(LIMIT)
                return
            self.request.sendall(data)

    server = running(sockserve.GreenletTCPServer(LOOPBACK, handling(handle)))
    with connect(server, timeout=LIMIT) as other:
        other.sendall(b"1")
        assert other.recv(1) == b"1"
        assert ask(server, b"f") == b""
        other.sendall(b"2")
        assert other.recv(1) == b"2"
    assert ask(server, b"3") == b"3"


def test_what_handle_error_raises_ends_one_greenlet(running: Running, expect_log: ExpectLog) -> None:
    """As it ends one thread."""
    expect_log(logging.ERROR, "(?s)Exception ended the greenlet.*Boom: again")

    class Server(sockserve.GreenletTCPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            raise Boom("again")

    def handle(self: Any) -> None:
        if self.request.recv(1) == b"f":
            raise Boom("first")
        self.request.sendall(b"x")

    server = running(Server(LOOPBACK, handling(handle)))
    assert ask(server, b"f") == b""
    assert ask(server, b"g") == b"x"


SIGNAL_HANDLERS = {
    "a function": "def stop(signum, frame): raise SystemExit(7)",
    "a lambda": "stop = lambda *_: sys.exit(7)",
    "a method": "class Stop:\n    def now(self, signum, frame): helper()\nstop = Stop().now",
    "a partial": "stop = functools.partial(lambda code, signum, frame=None: sys.exit(code), 7)",
    "an exception group": "def stop(*args): raise BaseExceptionGroup('all', [SystemExit(7)])",
    "Ctrl-C": "stop = signal.default_int_handler",
    "Ctrl-C, and another exception": "stop = signal.default_int_handler\ndef busy(): \n"
    "    try: spin()\n    except KeyboardInterrupt: sys.exit(7)",
}


@pytest.mark.parametrize("handler", SIGNAL_HANDLERS.values(), ids=SIGNAL_HANDLERS)
def test_what_a_signal_handler_raises_in_a_greenlet_ends_the_server(handler: str) -> None:
    """However the handler is written; the signal comes while a request's greenlet is at work."""
    script = f"""
import functools, signal, sys, sockserve
from sockserve import greenlets
def helper(): sys.exit(7)
def spin():
    print("busy", flush=True)
    while True: pass
def busy(): spin()
{handler}
signal.signal(signal.SIGTERM, stop)
class Handler(sockserve.BaseRequestHandler):
    def handle(self):
        self.request.recv(1)
        busy()
server = sockserve.GreenletTCPServer(("127.0.0.1", 0), Handler)
server.slow_handler_warning = None
print(server.server_address[1], flush=True)
try: server.serve_forever()
except BaseException as error: print("ended by", type(error).__name__, flush=True)
server.server_close()
print("closed", flush=True)
"""
    with Program(script) as program, connect(("127.0.0.1", int(program.line())), timeout=LIMIT) as client:
        client.sendall(b"x")
        assert program.line() == "busy"
        program.send(signal.SIGTERM)
        assert program.line().startswith("ended by")
        assert program.line() == "closed"
        assert program.status(LIMIT) == 0


def test_a_thread_with_the_number_of_another_serves(expect_log: ExpectLog) -> None:
    """A server whose thread has ended, with a greenlet left behind there, serves in later ones, whatever their number.

    The system gives the number again soon, though not always to the next thread.
    """
    expect_log(logging.WARNING, "cut .*in progress|while workers still run", at_least=0)

    class Server(sockserve.GreenletTCPServer):
        fails = False

        def service_actions(self) -> None:
            if self.fails:
                raise Boom("in the loop")

    server = Server(LOOPBACK, Echo)
    numbers: set[int] = set()

    def serve() -> None:
        numbers.add(threading.get_ident())
        with contextlib.suppress(Boom):
            server.serve_forever(0.01)

    first = threading.Thread(target=serve)
    first.start()
    with connect(server, timeout=LIMIT) as client:
        client.sendall(b"1")
        assert client.recv(1) == b"1"
        server.fails = True
        first.join(LIMIT)
        left = table_of(server).all()
        assert len(left) == 1
        server.fails = False
        for served in range(1, 10):
            later = threading.Thread(target=serve)
            later.start()
            assert server.wait_until_serving(LIMIT)
            assert ask(server, b"2") == b"2"
            server.shutdown()
            later.join(LIMIT)
            if len(numbers) <= served:
                break
        server.server_close()
        left[0].request.close()


def test_a_thread_that_has_ended_is_no_later_one() -> None:
    """What belonged to it belongs to none, also if the system gives its number to another thread."""
    owns: list[OwnThread] = []
    here: list[bool] = []

    def look() -> None:
        owns.append(OwnThread())
        here.extend(own.is_here() for own in owns[:-1])
        assert owns[-1].is_here()

    for _ in range(10):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(LIMIT)
    assert here == [False] * 45
    assert all(own.has_ended() for own in owns)


AT_THE_END = {
    "at work": "sum(range(20000)); greenlets.sleep(0)",
    "after shutdown()": "sum(range(20000)); greenlets.sleep(0)\nserver.drain_timeout = 0.01\nserver.shutdown()",
    "in its last moments": "greenlets.sleep(0)",
}


@pytest.mark.parametrize("end", AT_THE_END)
def test_a_program_ends_well_while_a_daemon_thread_serves(end: str) -> None:
    """Whatever the greenlets are at: the interpreter ends that thread, which must not be in one of them then."""
    script = f"""
import sys, threading, sockserve
from sockserve import greenlets
begun = threading.Event()
class Handler(sockserve.BaseRequestHandler):
    def handle(self):
        begun.set()
        while {end!r} != "in its last moments" or self.request.recv(1):
            sum(range(20000)); greenlets.sleep(0)
server = sockserve.GreenletTCPServer(("127.0.0.1", 0), Handler)
server.slow_handler_warning = None
threading.Thread(target=server.serve_forever, daemon=True).start()
server.wait_until_serving(20)
import socket
with socket.create_connection(server.server_address, 20) as client:
    client.sendall(b"x")
    begun.wait(20)
    if {end!r} == "after shutdown()":
        server.shutdown()
if {end!r} == "in its last moments":
    server.shutdown()
    server.server_close()
"""
    for _ in range(5):
        with Program(script) as program:
            assert program.status(LIMIT) == 0, program.errors()


def test_a_stop_that_comes_at_the_interpreters_end_is_heard() -> None:
    """What a program has registered with ``atexit`` before it imported sockserve runs last, and may still stop it."""
    script = """
    import atexit, threading
    def stop():
        server.shutdown()
        print("stopped", flush=True)
    atexit.register(stop)
    import sockserve
    from test_greenlets import Echo
    server = sockserve.GreenletTCPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.wait_until_serving(20)
    """
    with Program(script) as program:
        assert program.line() == "stopped"
        assert program.status(LIMIT) == 0


def test_a_drain_in_a_signal_handler_needs_no_descriptor() -> None:
    """A server that has none left, which is often why it is drained: its requests end by themselves."""
    script = """
    import os, resource, signal, sockserve
    from test_greenlets import Echo
    def stop(*_):
        held = []
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            pass
        print(server.drain(20), flush=True)
        for each in held:
            os.close(each)
        server.shutdown()
    signal.signal(signal.SIGTERM, stop)
    server = sockserve.GreenletTCPServer(("127.0.0.1", 0), Echo)
    print(server.server_address[1], flush=True)
    server.serve_forever()
    server.server_close()
    """
    with Program(script) as program, connect(("127.0.0.1", int(program.line())), timeout=LIMIT) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        # Not while the handler is at work: its own request is none to wait for.
        wait_until_blocked(program.process.pid)
        program.send(signal.SIGTERM)
        assert program.line() == "Drained(finished=1, cut=0)"
        assert program.status(LIMIT) == 0


def test_after_a_drain_in_its_own_thread_a_server_serves_on(running: Running) -> None:
    """``drain()`` twice, in the loop's thread and outside of greenlets, then ``resume()``."""
    asked, answered = threading.Event(), threading.Event()
    drained: list[Any] = []

    class Server(sockserve.GreenletTCPServer):
        def service_actions(self) -> None:
            if asked.is_set() and not answered.is_set():
                drained.extend([self.drain(LIMIT), self.drain(LIMIT)])
                self.resume()
                answered.set()

    server = running(Server(LOOPBACK, Echo))
    with connect(server, timeout=LIMIT) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        asked.set()
        assert answered.wait(LIMIT)
    assert [each.finished for each in drained] == [1, 0]
    assert ask(server, b"y") == b"y"
