"""Several servers in one loop, started and stopped as one."""

from __future__ import annotations

import contextlib
import pathlib
import socket
import threading
import types
from collections.abc import Callable, Generator
from typing import Any

import pytest
from support.handlers import handlers
from support.log_watch import ExpectLog
from support.under_test import LIMIT

import sockserve
from sockserve.core import server_group
from sockserve.testing import ask, call_within, connect

H = handlers(sockserve)
LOOPBACK = ("127.0.0.1", 0)


class EchoPacket(sockserve.DatagramRequestHandler):
    """Sends a datagram back."""

    def handle(self) -> None:
        """Answer."""
        self.wfile.write(self.packet)


class UntilEnd(sockserve.StreamRequestHandler):
    """Reads until the end of its input, and says so."""

    def handle(self) -> None:
        """Answer."""
        self.wfile.write(b"<")
        self.rfile.read()
        self.wfile.write(b">")


@contextlib.contextmanager
def serving(*servers: Any) -> Generator[sockserve.ServerGroup]:
    """A group that serves in a thread, and is closed at the end; what it raised is raised."""
    errors: list[BaseException] = []

    def serve() -> None:
        try:
            group.serve_forever()
        except BaseException as error:
            errors.append(error)

    with sockserve.ServerGroup(*servers) as group:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            assert group.wait_until_serving(LIMIT)
            yield group
        finally:
            group.shutdown(LIMIT)
            thread.join(LIMIT)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


@contextlib.contextmanager
def ended_by(act: Callable[[], object], *servers: Any) -> Generator[sockserve.ServerGroup]:
    """A group that something happens to as soon as it serves; closed at the end."""
    with sockserve.ServerGroup(*servers) as group:
        thread = threading.Thread(target=lambda: group.wait_until_serving(LIMIT) and act())
        thread.start()
        yield group
        thread.join(LIMIT)


def test_each_serves_in_its_own_way(tmp_path: pathlib.Path) -> None:
    """Threads, a pool and none at all, over TCP, a Unix socket and UDP, by one thread's loop."""
    servers = (
        sockserve.ThreadingTCPServer(LOOPBACK, H.Echo),
        sockserve.ThreadPoolUnixStreamServer(f"{tmp_path}/s", H.Echo),
        sockserve.UDPServer(LOOPBACK, EchoPacket),
    )
    with serving(*servers) as group:
        for server in servers:
            assert ask(server, b"hello") == b"hello"
        assert group.servers == servers
    assert [server.fileno() for server in servers] == [-1, -1, -1]
    assert not pathlib.Path(f"{tmp_path}/s").exists()


def test_a_stop_before_the_start_is_for_the_first() -> None:
    """The first serve_forever() returns at once, the second serves; a stop after the last has no effect."""
    server = sockserve.TCPServer(LOOPBACK, H.Echo)
    with sockserve.ServerGroup(server) as group:
        group.shutdown()
        call_within(LIMIT, group.serve_forever)
        with serving(server):
            assert ask(server, b"again") == b"again"
        group.shutdown()


@pytest.mark.parametrize("kind", [sockserve.TCPServer, sockserve.ThreadingTCPServer, sockserve.ThreadPoolTCPServer])
def test_a_handler_may_stop_the_group(kind: Callable[..., Any]) -> None:
    """In the loop's own thread it asks and returns; in a worker it waits for the end."""

    class Stops(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            group.shutdown()
            self.wfile.write(b"stopped")

    server = kind(LOOPBACK, Stops)
    other = sockserve.TCPServer(LOOPBACK, H.Echo)
    with serving(server, other) as group:
        assert ask(server, b"") == b"stopped"
        group.shutdown(LIMIT)
        assert not other.wait_until_serving(0)


def test_one_that_is_shut_down_leaves_the_others() -> None:
    """They go on; the group ends with the last."""
    first, second = (sockserve.TCPServer(LOOPBACK, H.Echo) for _ in range(2))
    with sockserve.ServerGroup(first, second) as group:
        thread = threading.Thread(target=group.serve_forever)
        thread.start()
        assert group.wait_until_serving(LIMIT)
        first.shutdown()
        assert not first.wait_until_serving(0)
        assert ask(second, b"x") == b"x"
        second.shutdown()
        thread.join(LIMIT)
        assert not thread.is_alive()


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_one_that_cannot_begin_stops_all(closed: int) -> None:
    """Its error is raised, and the others are free: they serve in another group."""
    servers = [sockserve.ThreadPoolTCPServer(LOOPBACK, H.Echo) for _ in range(3)]
    servers[closed].server_close()
    with sockserve.ServerGroup(*servers) as group:
        with pytest.raises(sockserve.ServerClosedError):
            call_within(LIMIT, group.serve_forever)
        with serving(*servers[:closed], *servers[closed + 1 :]) as others:
            for server in others.servers:
                assert ask(server, b"x") == b"x"


def test_one_that_serves_elsewhere_stops_all() -> None:
    """AlreadyServingError, and where it is served it goes on; so it is for a whole group."""
    first, second = (sockserve.TCPServer(LOOPBACK, H.Echo) for _ in range(2))
    with serving(second) as group:
        with pytest.raises(sockserve.AlreadyServingError):
            call_within(LIMIT, sockserve.ServerGroup(first, second).serve_forever)
        with pytest.raises(sockserve.AlreadyServingError):
            call_within(LIMIT, group.serve_forever)
        assert ask(second, b"x") == b"x"
        assert not first.wait_until_serving(0)
    first.server_close()


def test_a_lost_socket_stops_all() -> None:
    """ListenerLostError, once no server of the group accepts any more; the other can serve again."""
    lost, other = (sockserve.ThreadingTCPServer(LOOPBACK, H.Echo) for _ in range(2))

    def lose() -> None:
        # Looked up now: the loop watches for a call of this very attribute.
        lost.socket.close()

    with ended_by(lose, lost, other) as group, pytest.raises(sockserve.ListenerLostError):
        call_within(LIMIT, group.serve_forever)
    assert not other.wait_until_serving(0)


def test_a_closed_one_leaves(expect_log: ExpectLog) -> None:
    """server_close() of one is no loss: the others go on."""
    told = expect_log(30, r"server_close\(\) came before shutdown")
    first, second = (sockserve.TCPServer(LOOPBACK, H.Echo) for _ in range(2))
    with serving(first, second):
        first.server_close()
        told.wait()
        assert ask(second, b"x") == b"x"


def test_suspended_they_accept_nothing() -> None:
    """New clients wait in the kernel until resume()."""
    servers = [sockserve.ThreadingTCPServer(LOOPBACK, H.Echo) for _ in range(2)]
    with serving(*servers) as group:
        group.suspend()
        assert group.wait_idle(LIMIT)
        with contextlib.ExitStack() as last_first:
            clients = [last_first.enter_context(connect(server)) for server in servers]
            for client in clients:
                client.sendall(b"x")
                client.shutdown(socket.SHUT_WR)
            assert not group.active_requests
            group.resume()
            assert [client.recv(1) for client in clients] == [b"x", b"x"]


@contextlib.contextmanager
def busy(*servers: Any) -> Generator[list[socket.socket]]:
    """A client of each, whose handler has begun."""
    with contextlib.ExitStack() as last_first:
        clients = [last_first.enter_context(connect(server)) for server in servers]
        for client in clients:
            assert client.recv(1) == b"<"
        yield clients


KINDS = [sockserve.ThreadingTCPServer, sockserve.ThreadPoolTCPServer]


@pytest.mark.parametrize("kind", KINDS)
def test_a_drain_lets_all_requests_end(kind: Callable[..., Any]) -> None:
    """The handlers of all servers see the end of their input, and the sum is told."""
    servers = [kind(LOOPBACK, UntilEnd), sockserve.ThreadingTCPServer(LOOPBACK, UntilEnd)]
    with serving(*servers) as group, busy(*servers, *servers) as clients:
        since = [each.since for each in group.active_requests]
        assert (len(since), since) == (4, sorted(since))
        assert not group.wait_idle(0)
        assert group.drain(LIMIT) == sockserve.Drained(4, 0)
        assert [client.recv(1) for client in clients] == [b">"] * 4
        assert group.active_requests == ()


def test_all_are_told_before_any_is_waited_for(expect_log: ExpectLog) -> None:
    """One that does not end takes no time from another server's requests, and one look ends all that are late."""
    told = expect_log(30, "cut .* in progress")
    stuck = sockserve.ThreadingTCPServer(LOOPBACK, UntilEnd)
    # It keeps its input open in a drain: only a cut ends it.
    stuck.drain_request = lambda _: None  # type: ignore[method-assign, assignment]
    other = sockserve.ThreadingTCPServer(LOOPBACK, UntilEnd)
    with serving(stuck, other) as group, busy(stuck, other) as (_, client):
        found: list[sockserve.Drained] = []
        drain = threading.Thread(target=lambda: found.append(group.drain(0.2)))
        drain.start()
        assert client.recv(1) == b">"
        assert not found
        drain.join(LIMIT)
        assert found == [sockserve.Drained(1, 1)]
    assert len(told.lines) == 1


def test_the_time_to_close_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first server takes of the time, the second has no more; afterwards each has its own time again."""
    now = 100.0
    seen: list[object] = []

    class Slow(sockserve.ThreadingTCPServer):
        drain_timeout = 10.0

        def server_close(self) -> None:
            nonlocal now
            seen.append(self.drain_timeout)
            # The listeners of all are closed by now.
            seen.append([server.fileno() for server in servers])
            now += 4
            super().server_close()

    servers = [Slow(LOOPBACK, H.Echo) for _ in range(4)]
    servers[2].drain_timeout = None  # type: ignore[assignment]
    servers[3].drain_timeout = 11.0
    clock = types.SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(server_group, "time", clock)
    sockserve.ServerGroup(*servers).server_close()
    closed = [-1] * 4
    assert seen == [10.0, closed, 6.0, closed, None, closed, 0.0, closed]
    assert [server.drain_timeout for server in servers] == [10.0, 10.0, None, 11.0]


def test_an_error_at_the_close_of_one_leaves_none_open() -> None:
    """The others are closed all the same, and it is raised."""

    class Bad(sockserve.TCPServer):
        def server_close(self) -> None:
            super().server_close()
            raise RuntimeError("at the close")

    servers = [kind(LOOPBACK, H.Echo) for kind in (Bad, sockserve.TCPServer)]
    with pytest.raises(RuntimeError, match="at the close"):
        sockserve.ServerGroup(*servers).server_close()
    assert [server.fileno() for server in servers] == [-1, -1]


def test_what_an_inline_handler_raises_ends_all() -> None:
    """SystemExit comes out of serve_forever(), and the other server can serve again."""

    class Exits(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            raise SystemExit(3)

    server = sockserve.TCPServer(LOOPBACK, Exits)
    other = sockserve.ThreadingTCPServer(LOOPBACK, H.Echo)
    with ended_by(lambda: ask(server, b""), server, other) as group, pytest.raises(SystemExit):
        call_within(LIMIT, group.serve_forever)
    assert not other.wait_until_serving(0)


def test_greenlets_come_to_their_end_in_the_groups_thread() -> None:
    """After a shutdown requests in greenlets go on, and serve_forever() returns when they have ended."""
    servers = [kind(LOOPBACK, UntilEnd) for kind in (sockserve.GreenletTCPServer, sockserve.ThreadingTCPServer)]
    with sockserve.ServerGroup(*servers) as group:
        thread = threading.Thread(target=group.serve_forever)
        thread.start()
        assert group.wait_until_serving(LIMIT)
        with busy(*servers) as clients:
            group.shutdown(LIMIT)
            assert thread.is_alive()
            for client in clients:
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b">"
        thread.join(LIMIT)
        assert not thread.is_alive()


def test_a_greenlet_drains_the_group_it_is_in() -> None:
    """The wait lets the other greenlets of its thread go on, and its own request is not waited for."""

    class Drains(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"%d %d" % group.drain(LIMIT))

    plain = sockserve.ThreadingTCPServer(LOOPBACK, UntilEnd)
    green = [sockserve.GreenletTCPServer(LOOPBACK, handler) for handler in (UntilEnd, Drains)]
    with serving(plain, *green) as group, busy(plain, green[0]) as clients:
        assert ask(green[1], b"") == b"2 0"
        assert [client.recv(1) for client in clients] == [b">", b">"]


def test_what_is_no_group() -> None:
    """Nothing, the same twice, worker processes, and servers that no loop of ours can host."""

    class PreFork(sockserve.PreForkMixIn, sockserve.TCPServer):
        pass

    not_ours: Any = object()
    with pytest.raises(TypeError, match="needs a server"):
        sockserve.ServerGroup()
    with pytest.raises(TypeError, match="no server of sockserve"):
        sockserve.ServerGroup(not_ours)
    with sockserve.TCPServer(LOOPBACK, H.Echo) as server, pytest.raises(ValueError, match="twice"):
        sockserve.ServerGroup(server, server)
    with PreFork(LOOPBACK, H.Echo) as server, pytest.raises(TypeError, match="worker processes"):
        sockserve.ServerGroup(server)
