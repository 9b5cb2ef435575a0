"""Every kind of socket, every way to run a handler, every kind of handler, every way to run the loop: one test body."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
import pathlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from support.models import MIX_INS
from support.under_test import IS_STDLIB, LIMIT, S

from sockserve.testing import ask, call_within, leak_guard, running

CLIENTS = 16
AT_ONCE = 8
"""Clients that talk at the same time: fewer than a stdlib server's ``max_children``, more than one."""


class Family(NamedTuple):
    """A kind of socket: the server class to begin with, and where it is to be bound, given a directory."""

    server: str
    family: socket.AddressFamily
    address: Callable[[pathlib.Path], Any]


FAMILIES = {
    "tcp4": Family("TCPServer", socket.AF_INET, lambda _: ("127.0.0.1", 0)),
    "tcp6": Family("TCPServer", socket.AF_INET6, lambda _: ("::1", 0)),
    "udp4": Family("UDPServer", socket.AF_INET, lambda _: ("127.0.0.1", 0)),
    "udp6": Family("UDPServer", socket.AF_INET6, lambda _: ("::1", 0)),
    "unix": Family("UnixStreamServer", socket.AF_UNIX, lambda directory: f"{directory}/s"),
    "unix-abstract": Family("UnixStreamServer", socket.AF_UNIX, lambda directory: f"\0{directory}/s"),
    "unix-dgram": Family("UnixDatagramServer", socket.AF_UNIX, lambda directory: f"{directory}/s"),
}
WAYS = MIX_INS if IS_STDLIB else {**MIX_INS, "prefork": "PreForkMixIn"}


class Place(NamedTuple):
    """Where code runs."""

    process: int
    thread: int


def place_here() -> Place:
    """Where the caller runs."""
    return Place(os.getpid(), threading.get_ident())


def answer(data: bytes) -> bytes:
    """Where the handler runs, and what it was sent."""
    return b"%d %d %b" % (*place_here(), data)


class Plain(S.BaseRequestHandler):  # type: ignore[misc]
    """Answers on the bare socket."""

    def handle(self) -> None:
        """Answer."""
        if isinstance(self.request, tuple):
            data, shared_socket = self.request
            shared_socket.sendto(answer(data), self.client_address)
        else:
            self.request.sendall(answer(b"".join(iter(lambda: self.request.recv(1000), b""))))


class StreamFiles(S.StreamRequestHandler):  # type: ignore[misc]
    """Answers through the files of a stream."""

    def handle(self) -> None:
        """Answer."""
        self.wfile.write(answer(self.rfile.read()))


class DatagramFiles(S.DatagramRequestHandler):  # type: ignore[misc]
    """Answers through the files of a datagram."""

    def handle(self) -> None:
        """Answer."""
        self.wfile.write(answer(self.rfile.read()))


def server_class(family: Family, model: str) -> Any:
    """A server as users write one."""
    base = getattr(S, family.server)
    bases = (getattr(S, WAYS[model]), base) if WAYS[model] else (base,)

    class Server(*bases):  # type: ignore[misc]
        address_family = family.family
        request_queue_size = CLIENTS
        loop: Place

        def verify_request(self, request: Any, client_address: Any) -> bool:
            self.loop = place_here()
            return bool(super().verify_request(request, client_address))

    return Server


@contextlib.contextmanager
def taking_single_requests(server: Any) -> Any:
    """Take as many requests as there are clients, with a loop of our own."""

    def take() -> None:
        for _ in range(CLIENTS):
            server.handle_request()

    with leak_guard(closes=[server.fileno()]):
        loop = threading.Thread(target=take, daemon=True)
        loop.start()
        yield
        call_within(LIMIT, loop.join)
        call_within(LIMIT, server.server_close)


LOOPS: dict[str, Callable[[Any], Any]] = {"serve_forever": running, "handle_request": taking_single_requests}
READS = {"plain": False, "files": True}
ROUNDS = list(itertools.product(READS, LOOPS))


def cases() -> Iterator[Any]:
    """Yield each family with each model, and one of the four rounds."""
    for (row, family), (column, model) in itertools.product(enumerate(FAMILIES), enumerate(WAYS)):
        reads, loop = ROUNDS[(row + column) % len(ROUNDS)]
        yield pytest.param(FAMILIES[family], model, READS[reads], loop, id=f"{family}-{model}-{reads}-{loop}")


CASES = list(cases())
"""Each family with each model, and each of them with plain sockets and with files, in both loops. What a handler reads
from is the family's affair, what runs the loop the model's: no more than these pairs meet in one piece of code."""


@pytest.mark.parametrize(("family", "model", "files", "loop"), CASES)
def test_every_client_gets_its_answer(
    tmp_path: pathlib.Path, family: Family, model: str, files: bool, loop: str
) -> None:
    """Each of many clients is answered, from where the model says; then the server stops and nothing is left."""
    server = server_class(family, model)(family.address(tmp_path), Plain)
    is_stream = server.socket_type == socket.SOCK_STREAM
    if files:
        server.RequestHandlerClass = StreamFiles if is_stream else DatagramFiles
    # A datagram of 8192 bytes is what the stdlib's servers take at most.
    questions = [b"%d:" % number + os.urandom(50_000 if is_stream else 5_000) for number in range(CLIENTS)]
    with LOOPS[loop](server), concurrent.futures.ThreadPoolExecutor(AT_ONCE) as clients:
        answers = list(clients.map(lambda question: ask(server, question, timeout=LIMIT), questions))
    places, echoes = [], []
    for each in answers:
        process, thread, echo = each.split(b" ", 2)
        places.append(Place(int(process), int(thread)))
        echoes.append(echo)
    assert echoes == questions
    if model in ("inline", "greenlet"):
        assert set(places) == {server.loop}
    elif model == "thread":
        assert {place.process for place in places} == {server.loop.process}
        assert server.loop.thread not in {place.thread for place in places}
    elif model == "pool":
        # verify_request() runs in a worker too.
        assert {place.process for place in places} == {server.loop.process}
    elif model == "prefork":
        # A single request is taken by whoever asks for it.
        assert ({place.process for place in places} == {os.getpid()}) is (loop == "handle_request")
    else:
        assert len({place.process for place in places} - {server.loop.process}) == CLIENTS
    assert server.fileno() < 0
    assert IS_STDLIB or list(tmp_path.iterdir()) == []
