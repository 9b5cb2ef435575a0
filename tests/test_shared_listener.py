"""One listener of several loops or processes: it never blocks under one of them, and in the end it does again."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.handlers import handlers
from support.models import HERE
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.core.deferral import Deferral
from sockserve.net import blocking_mode
from sockserve.net.blocking_mode import give_back, lend
from sockserve.net.listen import adopt
from sockserve.ready_made import server_class
from sockserve.run.opening import open_servers
from sockserve.testing import ask, call_within

LOOPBACK = ("127.0.0.1", 0)
ECHO = handlers(sockserve).Echo
FORK: Any = multiprocessing.get_context("fork")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket."""
    with socket.create_server(LOOPBACK) as made:
        yield made


class Borrower:
    """Another process that lends a listener to itself, and gives it back when it is told."""

    def __init__(self, listener: socket.socket) -> None:
        self._ours, self._theirs = FORK.Pipe()
        self._process = FORK.Process(target=self._run, args=(listener,))
        self._process.start()
        assert self._ours.recv() == "lent"

    def _run(self, listener: socket.socket) -> None:
        lend(listener)
        self._theirs.send("lent")
        self._theirs.recv()
        give_back(listener)
        self._theirs.send("blocks" if listener.getblocking() else "does not block")

    def end(self) -> str:
        """Let it give the listener back; what its object is then."""
        self._ours.send("end")
        told: str = self._ours.recv()
        self._join()
        return told

    def kill(self) -> None:
        """Let it give nothing back."""
        self._process.kill()
        self._join()

    def _join(self) -> None:
        self._process.join()
        self._process.close()
        self._ours.close()
        self._theirs.close()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_last_process_gives_the_mode_back(listener: socket.socket, order: tuple[int, int]) -> None:
    """Whichever it is; each one's own object has its time-out again at once."""
    borrowers = [Borrower(listener), Borrower(listener)]
    assert not os.get_blocking(listener.fileno())
    assert borrowers[order[0]].end() == "blocks"
    assert not os.get_blocking(listener.fileno())
    assert borrowers[order[1]].end() == "blocks"
    assert os.get_blocking(listener.fileno())


def test_a_process_that_was_killed_does_not_count(listener: socket.socket) -> None:
    """The kernel takes its lock away."""
    killed, other = Borrower(listener), Borrower(listener)
    killed.kill()
    other.end()
    assert os.get_blocking(listener.fileno())


def test_this_process_and_another(listener: socket.socket) -> None:
    """While the other one goes on, the object here is without a time-out, and the description does not block."""
    lend(listener)
    other = Borrower(listener)
    give_back(listener)
    assert listener.gettimeout() is None
    assert not os.get_blocking(listener.fileno())
    other.end()
    assert os.get_blocking(listener.fileno())


def test_with_a_default_timeout_it_is_the_same(listener: socket.socket) -> None:
    """``socket.setdefaulttimeout()`` is for new sockets."""
    other = Borrower(listener)
    lend(listener)
    socket.setdefaulttimeout(LIMIT)
    try:
        give_back(listener)
    finally:
        socket.setdefaulttimeout(None)
    assert listener.gettimeout() is None
    assert not os.get_blocking(listener.fileno())
    other.end()


def test_what_was_handed_in_without_blocking_stays_so(listener: socket.socket) -> None:
    """A program with an event loop of its own may wait for it; here, or in another process too."""
    os.set_blocking(listener.fileno(), False)
    for borrowers in range(2):
        others = [Borrower(listener) for _ in range(borrowers)]
        lend(listener)
        give_back(listener)
        for other in others:
            other.end()
        assert listener.gettimeout() is None
        assert not os.get_blocking(listener.fileno())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_duplicates_and_objects_are_counted_together(listener: socket.socket, order: tuple[int, int, int]) -> None:
    """Two users of one object and one of its duplicate are three users of one description."""
    with listener.dup() as copy:
        users = [listener, copy, listener]
        for user in users:
            lend(user)
        for number in order[:2]:
            give_back(users[number])
            assert not os.get_blocking(listener.fileno())
        give_back(users[order[2]])
        assert listener.gettimeout() is copy.gettimeout() is None
        assert os.get_blocking(listener.fileno())


def test_a_timeout_is_given_back(listener: socket.socket) -> None:
    """By the last user of the object."""
    listener.settimeout(7)
    lend(listener)
    lend(listener)
    give_back(listener)
    assert listener.gettimeout() == 0
    give_back(listener)
    assert listener.gettimeout() == 7


def test_a_forked_child_has_lent_nothing(listener: socket.socket) -> None:
    """Its copy of the object has its time-out, and what it gives back is not its own to give."""

    def look() -> None:
        give_back(listener)
        theirs.send((listener.gettimeout(), os.get_blocking(listener.fileno())))

    ours, theirs = FORK.Pipe()
    lend(listener)
    process = FORK.Process(target=look)
    process.start()
    assert ours.recv() == (None, False)
    process.join()
    assert listener.gettimeout() == 0
    give_back(listener)
    assert os.get_blocking(listener.fileno())
    for end in (ours, theirs):
        end.close()
    process.close()


def test_one_that_is_closed_meanwhile_is_forgotten(listener: socket.socket) -> None:
    """Its number may be another one's by then."""
    lend(listener)
    fd = listener.fileno()
    listener.close()
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    give_back(listener)
    assert not os.get_blocking(reader)
    assert fd in (reader, writer)
    os.close(reader)
    os.close(writer)


def test_where_there_are_no_locks_a_process_counts_its_own(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sockets need not bear record locks on other systems."""

    def refuse(*_: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    lend(listener)
    lend(listener)
    give_back(listener)
    assert not os.get_blocking(listener.fileno())
    give_back(listener)
    assert os.get_blocking(listener.fileno())


def test_a_process_that_stands_still_holds_nobody_up(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was stopped just when it gave the mode back keeps others waiting for a moment only."""
    monkeypatch.setattr(blocking_mode, "PATIENCE", 0.01)

    def hold() -> None:
        fcntl.lockf(listener, fcntl.LOCK_EX, 1)
        theirs.send("held")
        theirs.recv()

    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=hold)
    process.start()
    assert ours.recv() == "held"
    call_within(LIMIT, lend, listener)
    assert listener.gettimeout() == 0
    ours.send("end")
    process.join()
    give_back(listener)
    assert os.get_blocking(listener.fileno())
    for end in (ours, theirs):
        end.close()
    process.close()


# servers


@pytest.mark.parametrize("model", HERE)
def test_processes_that_serve_one_listener(model: str) -> None:
    """``Process(target=server.serve_forever)``, stopped one after the other: each at once, and then it blocks again."""
    server = server_class(model, "tcp")(LOOPBACK, ECHO)

    def serve() -> None:
        threading.Thread(target=lambda: (theirs.recv(), server.shutdown())).start()
        server.serve_forever()

    processes = []
    for _ in range(3):
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=serve)
        process.start()
        theirs.close()
        processes.append((process, ours))
    for process, ours in processes:
        wait_until(lambda: not os.get_blocking(server.fileno()))
        assert ask(server, b"hello") == b"hello"
        ours.send("end")
        process.join(LIMIT)
        assert process.exitcode == 0
        ours.close()
        process.close()
    wait_until(lambda: os.get_blocking(server.fileno()))
    assert server.socket.gettimeout() is None
    server.server_close()


def test_a_descriptor_that_another_program_goes_on_with(listener: socket.socket) -> None:
    """``fd:N``: its mode is left as it was, whichever that is, from the start to the end."""
    for blocks in (True, False):
        os.set_blocking(listener.fileno(), blocks)
        (server,) = open_servers(ECHO, [f"fd:{os.dup(listener.fileno())}"], "inline", {}, Deferral())
        assert os.get_blocking(listener.fileno()) == blocks
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert ask(server, b"hello") == b"hello"
        server.shutdown()
        thread.join()
        assert os.get_blocking(listener.fileno()) == blocks
        server.server_close()


def test_adopting_keeps_the_mode_if_it_is_to(listener: socket.socket) -> None:
    """Also with a default time-out for new sockets."""
    os.set_blocking(listener.fileno(), False)
    for default in (None, LIMIT):
        socket.setdefaulttimeout(default)
        try:
            adopted = adopt(os.dup(listener.fileno()), keeps_mode=True)
        finally:
            socket.setdefaulttimeout(None)
        with adopted:
            assert adopted.gettimeout() is None
            assert not os.get_blocking(listener.fileno())
