"""Questions that are answered in a loop which has other things to do. Traps O24 and O25."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Callable, Generator
from typing import Any

import pytest
from support.under_test import LIMIT
from support.waiting import wait_until

from sockserve.core.loop import Loop, Source
from sockserve.run import answering
from sockserve.run.answering import Answerer, Reply


class Stays(Source):
    """Keeps a loop running until it is told to end."""

    max_wait = None
    is_over = False

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        loop.add(self)

    def before_wait(self) -> None:
        """Leave, once told."""
        if self.is_over:
            self.loop.remove(self)


class Desk:
    """An answerer in a loop that another thread runs: it answers a line by the same line."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.ask: Callable[[bytes, Reply], bool] = self.echo
        self.stays = Stays(self.loop)
        self.answerer = Answerer(self.loop, [self.listener], lambda _, question, reply: self.ask(question, reply))

    def echo(self, question: bytes, reply: Reply) -> bool:
        """A line is a whole question."""
        if b"\n" not in question:
            return False
        reply(question)
        return True

    def connect(self) -> socket.socket:
        """A client."""
        client = socket.create_connection(self.listener.getsockname(), LIMIT)
        client.settimeout(LIMIT)
        return client

    def answer(self, question: bytes) -> bytes:
        """What a client gets until the end."""
        with self.connect() as client:
            client.sendall(question)
            return b"".join(iter(lambda: client.recv(65536), b""))


@contextlib.contextmanager
def running() -> Generator[Desk]:
    """A desk that answers while the block runs."""
    desk = Desk()
    thread = threading.Thread(target=lambda: desk.loop.run(desk.stays))
    thread.start()
    try:
        yield desk
    finally:
        desk.stays.is_over = True
        desk.loop.wake()
        # O25: the answerer stays, and the loop ends all the same.
        thread.join(LIMIT)
        assert not thread.is_alive()
        desk.loop.close()
        assert not desk.answerer.clients
        desk.listener.close()


def test_a_question_is_answered_once_it_is_whole() -> None:
    """In whatever pieces it comes, and the client sees the end then."""
    with running() as desk, desk.connect() as client:
        assert desk.answer(b"whole\n") == b"whole\n"
        client.sendall(b"in pie")
        assert desk.answer(b"another\n") == b"another\n"
        client.sendall(b"ces\n")
        assert client.recv(100) == b"in pieces\n"
        assert client.recv(100) == b""


def test_o24_silent_clients_keep_no_other_one_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than there is room for; the first to go is the one that is there longest."""
    monkeypatch.setattr(answering, "TIME", 1000.0)
    with running() as desk, contextlib.ExitStack() as clients:
        silent = [clients.enter_context(desk.connect()) for _ in range(100)]
        assert desk.answer(b"hello\n") == b"hello\n"
        assert len(desk.answerer.clients) >= 100
        monkeypatch.setattr(answering, "MOST_CLIENTS", 100)
        assert desk.answer(b"hello\n") == b"hello\n"
        assert silent[0].recv(1) == b""
        silent[-1].sendall(b"late\n")
        assert silent[-1].recv(100) == b"late\n"


def test_o24_a_silent_client_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then its connection is closed; a loop that answers nothing has no timer."""
    monkeypatch.setattr(answering, "TIME", 0.02)
    with running() as desk, desk.connect() as silent:
        assert silent.recv(1) == b""
        wait_until(lambda: not desk.answerer.clients)
        assert all(timer.callback is None for timer in desk.loop._timers)
        assert desk.answerer.max_wait is None


def test_a_question_without_end_is_no_question() -> None:
    """After 8 KiB the connection is closed, however the client goes on."""
    with running() as desk, desk.connect() as client:
        with contextlib.suppress(OSError):
            for _ in range(1000):
                client.sendall(bytes(4096))
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        assert desk.answer(b"hello\n") == b"hello\n"


def test_a_client_that_goes_leaves_nothing() -> None:
    """Before its question, in it, and before the answer."""
    replies: list[Reply] = []

    def later(question: bytes, reply: Reply) -> bool:
        if question == b"later\n":
            replies.append(reply)
            return True
        return desk.echo(question, reply)

    with running() as desk:
        desk.ask = later
        for sent in (b"", b"half", b"later\n"):
            with desk.connect() as client:
                client.sendall(sent)
                wait_until(lambda: desk.answerer.clients)
        wait_until(lambda: replies)
        desk.loop.call_soon(lambda: replies[0](b"too late"))
        wait_until(lambda: not desk.answerer.clients)
        assert desk.answer(b"hello\n") == b"hello\n"


def test_a_client_may_end_its_side_first() -> None:
    """It gets the answer all the same, also one that comes later."""
    replies: list[Reply] = []

    def later(question: bytes, reply: Reply) -> bool:
        if question:
            replies.append(reply)
        return bool(question)

    with running() as desk, desk.connect() as client:
        desk.ask = later
        client.sendall(b"later")
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: replies)
        desk.loop.call_soon(lambda: replies[0](b"answer"))
        assert client.recv(100) == b"answer"
        assert client.recv(100) == b""
        wait_until(lambda: not desk.answerer.clients)


def test_a_long_answer_waits_for_its_client() -> None:
    """It is longer than any buffer, and the loop goes on meanwhile; a client that takes nothing has its time."""
    size = 30_000_000

    def long(question: bytes, reply: Reply) -> bool:
        if question == b"long\n":
            reply(bytes(size))
            return True
        return desk.echo(question, reply)

    with running() as desk, desk.connect() as client:
        desk.ask = long
        client.sendall(b"long\n")
        assert client.recv(1) == b"\0"
        assert desk.answer(b"hello\n") == b"hello\n"
        assert len(desk.answer(b"long\n")) == size


def test_without_a_descriptor_it_accepts_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop does not turn for nothing meanwhile."""
    monkeypatch.setattr(answering, "ACCEPT_AGAIN", 0.01)
    refused = threading.Event()

    class Listener:
        def __init__(self, listener: socket.socket) -> None:
            self.listener = listener

        def accept(self) -> Any:
            if not refused.is_set():
                refused.set()
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return self.listener.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.listener, name)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setattr(socket, "create_server", lambda *_, **__: Listener(listener))
        with running() as desk:
            assert desk.answer(b"hello\n") == b"hello\n"
            assert refused.is_set()


def test_o25_a_loop_that_runs_for_one_source_ends_with_it() -> None:
    """In the turn in which that leaves: it does not wait for what the others wait for."""
    with Loop() as loop:
        stays, other = Stays(loop), Stays(loop)
        stays.is_over = True
        loop.run(stays)
        loop.remove(other)
