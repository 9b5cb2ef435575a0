"""``serve()`` as a program uses it: addresses in, requests served, an orderly end."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import struct
import threading
from typing import Any

import pytest
from support import handlers
from support.models import MODELS
from support.serving import Operator, serve_with
from support.under_test import LIMIT

import sockserve
from sockserve import testing
from sockserve.run.echo import Echo

TCP = "tcp://127.0.0.1:0"


@pytest.fixture(params=["tcp", "tcp6", "udp", "unix", "unix-dgram"])
def address(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    """An address to serve on, of each kind."""
    texts = {"tcp": TCP, "tcp6": "tcp://[::1]:0", "udp": "udp://127.0.0.1:0"}
    return texts.get(request.param) or f"{request.param}:{tmp_path}/s"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_serves_until_a_signal_and_counts(model: str, signum: int, address: str) -> None:
    """Whatever the model and the kind of address, requests are answered, signals end it, the counters are right."""

    def script(operator: Operator) -> None:
        assert [testing.ask(operator.server, b"ping") for _ in range(3)] == [b"ping"] * 3
        operator.signal(signum)

    counters = serve_with(script, Echo, address, model=model)
    assert (counters.accepted, counters.handled, counters.active) == (3, 3, 0)


@pytest.mark.parametrize("model", MODELS)
def test_serves_several_addresses_at_once(model: str, tmp_path: pathlib.Path) -> None:
    """All addresses are served in the one call, by one handler, and counted together."""

    def script(operator: Operator) -> None:
        assert [testing.ask(server, b"ping") for server in operator.servers] == [b"ping"] * 4
        operator.signal()

    addresses = TCP, "udp://127.0.0.1:0", f"unix:{tmp_path}/s", f"unix-dgram:{tmp_path}/d"
    assert serve_with(script, Echo, *addresses, model=model).handled == 4
    assert not list(tmp_path.iterdir())


def test_says_where_it_listens(expect_log: Any, tmp_path: pathlib.Path) -> None:
    """Every address is logged as bound, a free port by its number."""
    line = expect_log(20, "listening on")

    def script(operator: Operator) -> None:
        port = operator.server.server_address[1]
        assert [record.text for record in line.lines] == [
            f"listening on tcp://127.0.0.1:{port}",
            f"listening on unix:{tmp_path}/s",
        ]
        operator.signal()

    serve_with(script, Echo, TCP, f"unix:{tmp_path}/s")


def test_no_host_is_every_interface() -> None:
    """An address without a host is bound to all of the machine's."""

    def script(operator: Operator) -> None:
        assert operator.server.server_address[0] == "0.0.0.0"  # noqa: S104 - what is tested
        operator.signal()

    serve_with(script, Echo, "tcp://:0")


def test_observers_hear_and_failures_are_counted(expect_log: Any) -> None:
    """An observer of one's own hears what happens, and a handler that raises is counted as failed."""
    expect_log(40, "Boom")
    heard: list[str] = []

    class Ear(sockserve.Observer):
        def on_accept(self, server: Any, request: Any) -> None:
            heard.append("accept")

        def on_error(self, server: Any, request: Any, error: BaseException) -> None:
            heard.append(type(error).__name__)

    def script(operator: Operator) -> None:
        assert testing.ask(operator.server, b"x") == b""
        operator.signal()

    counters = serve_with(script, handlers.handlers(sockserve).Crash, TCP, observers=[Ear()])
    assert (heard, counters.failed) == (["accept", "Boom"], 1)


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="the kernel does not tell")
def test_the_backlog_reaches_the_kernel() -> None:
    """The number given is what the kernel has for the listening socket."""

    def script(operator: Operator) -> None:
        # tcp_info.tcpi_sacked of a listener, linux/tcp.h
        info = operator.server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        assert struct.unpack_from("=I", info, 28) == (7,)
        operator.signal()

    serve_with(script, Echo, TCP, backlog=7)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_max_children_bounds_what_is_served_at_once() -> None:
    """With one child allowed, a second request is not accepted before the first has ended."""
    gate = handlers.handlers(sockserve).Gate

    def script(operator: Operator) -> None:
        with testing.Stall(operator.server) as first, testing.Stall(operator.server) as second:
            assert gate.begun.take()
            assert not gate.begun.wait(0.1)
            gate.opened.set()
            assert (first.read(), second.read()) == (b"open", b"open")
        operator.signal()

    assert serve_with(script, gate, TCP, model="fork", max_children=1).handled == 2


def test_signals_mean_again_what_they_did() -> None:
    """On return both signals have their former handlers, and the wake-up descriptor is what it was."""

    def mine(*_: object) -> None:
        """Never called."""

    before = signal.signal(signal.SIGINT, mine)
    try:
        serve_with(lambda operator: operator.signal(), Echo, TCP)
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("model", MODELS)
def test_in_another_thread_shutdown_ends_it(model: str) -> None:
    """Without signals it returns when every server was shut down."""
    listening = threading.Event()
    servers: list[Any] = []
    counters: list[sockserve.Counters] = []

    def ready(opened: tuple[Any, ...]) -> None:
        servers.extend(opened)
        listening.set()

    handler_before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: counters.append(sockserve.serve(Echo, TCP, TCP, model=model, ready=ready)))
    thread.start()
    assert listening.wait(LIMIT)
    assert signal.getsignal(signal.SIGTERM) is handler_before
    assert [testing.ask(server, b"ping") for server in servers] == [b"ping", b"ping"]
    for server in servers:
        assert thread.is_alive()
        server.shutdown()
    thread.join(LIMIT)
    assert counters[0].handled == 2


def test_without_handlers_signals_are_left_alone() -> None:
    """With install_signal_handlers=False the main thread's handlers stay the caller's."""

    def script(operator: Operator) -> None:
        operator.signal()
        assert testing.ask(operator.server, b"ping") == b"ping"
        assert not operator.server.draining
        operator.server.shutdown()

    assert serve_with(script, Echo, TCP, install_signal_handlers=False).handled == 1


def test_an_exception_of_ready_closes_everything() -> None:
    """What ``ready`` raises is raised, and nothing listens any more."""
    addresses: list[Any] = []

    def ready(servers: tuple[Any, ...]) -> None:
        addresses.append(servers[0].server_address)
        raise handlers.Boom

    with pytest.raises(handlers.Boom):
        sockserve.serve(Echo, TCP, ready=ready)
    with pytest.raises(ConnectionRefusedError):
        testing.connect(addresses[0])


@pytest.mark.parametrize(
    "options",
    [
        {"model": "coroutine"},
        {"max_children": 3},
        {"max_workers": 3},
        {"max_workers": 0, "model": "pool"},
        {"drain_timeout": -1},
        {"drain_timeout": float("nan")},
    ],
)
def test_options_that_make_no_sense_are_value_errors(options: dict[str, Any]) -> None:
    """An unknown model, a number of children without children, and a time that is none, are refused at once."""
    with pytest.raises(ValueError):  # noqa: PT011 - of each option another one
        sockserve.serve(Echo, TCP, **options)


def test_an_address_is_needed() -> None:
    """No address and a text that is none are refused."""
    with pytest.raises(TypeError, match="address"):
        sockserve.serve(Echo)
    with pytest.raises(sockserve.AddressError, match="Accepted are"):
        sockserve.serve(Echo, TCP, "http://127.0.0.1")


def test_a_listener_that_is_lost_ends_it_after_the_requests() -> None:
    """When a socket fails under the loop, requests of all servers still end in order; ListenerLostError says so."""
    gate = handlers.handlers(sockserve).Gate

    def script(operator: Operator) -> None:
        with testing.Stall(operator.servers[1]) as client:
            assert gate.begun.wait()
            operator.server.socket.close()
            operator.servers[1].resume()
            operator.wait_until_asked()
            gate.opened.set()
            assert client.read() == b"open"

    with pytest.raises(sockserve.ListenerLostError):
        serve_with(script, gate, TCP, TCP)
