"""Thousands of parked connections: a few threads are enough, all are answered, and none of them delays the end."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
from collections.abc import Iterator

import pytest
from support.programs import Program
from support.under_test import LIMIT
from support.waiting import wait_until

from sockserve.testing import ask

CLIENTS = 2000

SPEAKERS = 1000

SCRIPT = """
import logging, resource, sys, threading, sockserve
logging.basicConfig(level="WARNING")
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)

class Echo(sockserve.BaseRequestHandler):
    def handle(self):
        if data := self.request.recv(100):
            self.request.sendall(data)
            self.keep_open()

class Server(sockserve.ThreadPoolTCPServer):
    max_workers = 4

with Server(("127.0.0.1", 0), Echo) as server:
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    print(server.server_address[1], flush=True)
    for command in sys.stdin:
        if command == "drain\\n":
            break
        states = [request.state for request in server.active_requests]
        print(states.count("parked"), threading.active_count(), len(states), flush=True)
    print(*server.drain(60), flush=True)
    server.shutdown()
    serving.join()
"""


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """As many as this process may have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < CLIENTS + 200:
        pytest.skip(f"this process may have {before[1]} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("many_descriptors")
def test_a_crowd_is_parked_on_four_threads() -> None:
    """A thousand of them that speak at once are answered, a newcomer is, and a drain lets all of them end."""
    with Program(SCRIPT) as program, contextlib.ExitStack() as stack:
        address = ("127.0.0.1", int(program.line()))
        clients: dict[int, socket.socket] = {}
        waiting = select.poll()
        for number in range(CLIENTS):
            client = stack.enter_context(socket.create_connection(address, LIMIT))
            clients[client.fileno()] = client
            client.sendall(b"hello")
            if number % 100 == 99:
                # No more at once than a short backlog holds.
                for each in list(clients.values())[-100:]:
                    assert each.recv(100) == b"hello"
        parked, threads, _ = map(int, program.ask("state").split())
        assert parked > CLIENTS - 5
        # And the main thread, and the one that coordinates.
        assert threads <= 4 + 2
        for fd in list(clients)[:: CLIENTS // SPEAKERS]:
            waiting.register(fd, select.POLLIN)
            clients[fd].sendall(b"%d" % fd)
        answered = 0
        while answered < SPEAKERS:
            ready = waiting.poll(LIMIT * 1000)
            assert ready
            for fd, _ in ready:
                assert clients[fd].recv(100) == b"%d" % fd
                waiting.unregister(fd)
                answered += 1
        assert ask(address, b"newcomer", timeout=LIMIT) == b"newcomer"
        # The newcomer has read the end before the server is done with it, and would be one that a drain finds.
        wait_until(lambda: program.ask("state").split()[2] == str(CLIENTS))
        assert program.ask("drain", LIMIT) == f"{CLIENTS} 0"
        assert all(client.recv(100) == b"" for client in clients.values())
        assert program.status(LIMIT) == 0
        assert program.errors() == ""
