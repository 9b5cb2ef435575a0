"""Signals that wait, and what is never torn apart by one that comes at any single place."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from injection.interrupts import Interrupt
from support.handlers import handlers
from support.under_test import LIMIT

import sockserve
from sockserve.concurrency.pool.poller import _LeaderPoller
from sockserve.core.deferral import Deferral, get_handler, set_handler
from sockserve.core.loop import Loop
from sockserve.core.one_shot import OneShot
from sockserve.core.streams import open_reader

H = handlers(sockserve)


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """What the handlers of two signals heard."""
    heard: list[int] = []
    numbers = (signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.signal(number, lambda number, _: heard.append(number)) for number in numbers]
    yield heard
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_signals_run_their_handlers_at_the_end(heard: list[int]) -> None:
    """What comes while signals are deferred is heard once, when that is over, and the handlers are what they were."""
    before = signal.getsignal(signal.SIGUSR1)
    with Deferral():
        signal.raise_signal(signal.SIGUSR1)
        assert not heard
        assert get_handler(signal.SIGUSR1) is before
    assert heard == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) is before


def test_the_second_of_a_kind_does_not_wait(heard: list[int]) -> None:
    """Who presses Ctrl-C twice means it."""
    with Deferral():
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        assert heard == [signal.SIGUSR1]
    assert heard == [signal.SIGUSR1]


def test_what_is_lifted_hears_signals(heard: list[int]) -> None:
    """Within ``lifted()`` what came before is heard, and what comes; afterwards signals wait again."""
    with Deferral() as deferral:
        signal.raise_signal(signal.SIGUSR1)
        assert deferral.lifted(heard.copy) == [signal.SIGUSR1]
        deferral.lifted(lambda: signal.raise_signal(signal.SIGUSR2))
        assert heard == [signal.SIGUSR1, signal.SIGUSR2]
        signal.raise_signal(signal.SIGUSR1)
        assert len(heard) == 2
    assert len(heard) == 3


def test_one_within_another_changes_nothing(heard: list[int]) -> None:
    """Signals wait for the end of the outermost block."""
    with Deferral():
        with Deferral():
            signal.raise_signal(signal.SIGUSR1)
        assert not heard
    assert heard == [signal.SIGUSR1]


def test_a_handler_given_meanwhile_is_there_at_the_end(heard: list[int]) -> None:
    """``set_handler()`` takes effect at the end, and what came before it is for the handler that was meant."""
    others: list[int] = []
    with Deferral():
        signal.raise_signal(signal.SIGUSR1)
        set_handler(signal.SIGUSR1, lambda number, _: others.append(number))
        assert heard == [signal.SIGUSR1]
        signal.raise_signal(signal.SIGUSR1)
        assert not others
    assert others == [signal.SIGUSR1]


def test_other_threads_have_nothing_to_defer(heard: list[int]) -> None:
    """In another thread than the main one the block leaves all handlers alone."""
    found: list[Any] = []

    def look() -> None:
        with Deferral() as deferral:
            found.append(deferral.lifted(lambda: signal.getsignal(signal.SIGUSR1)))
            found.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGUSR1)] * 2
    assert not heard


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_forked_child_defers_nothing(heard: list[int]) -> None:
    """A child that is forked meanwhile has the handlers, and what came before is for its parent only."""
    with Deferral():
        signal.raise_signal(signal.SIGUSR1)
        pid = os.fork()
        if not pid:
            signal.raise_signal(signal.SIGUSR2)
            os._exit(int(heard != [signal.SIGUSR2]))
        assert os.waitpid(pid, 0)[1] == 0
    assert heard == [signal.SIGUSR1]


def test_an_interrupt_at_any_place_of_a_deferral_leaves_the_handlers(heard: list[int]) -> None:
    """Wherever KeyboardInterrupt comes, it comes out, once, and all handlers are what they were."""
    numbers = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    for number in range(1, 1000):
        interrupt = Interrupt(number)
        raised = False
        try:
            with interrupt.active(), Deferral() as deferral:
                deferral.lifted(heard.clear)
        except KeyboardInterrupt:
            raised = True
        assert [signal.getsignal(each) for each in numbers] == before, interrupt.place
        assert Deferral.current is None, interrupt.place
        if not interrupt.place:
            assert number > 20
            return
        assert raised, interrupt.place
    pytest.fail("no end of places")


# Of a reader that is half made.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_place_of_a_reader_is_not_swallowed() -> None:
    """Opening a file over a connection, KeyboardInterrupt comes out, and not out of nothing."""
    for number in range(1, 1000):
        ours, theirs = socket.socketpair()
        interrupt = Interrupt(number)
        raised = False
        try:
            with interrupt.active():
                open_reader(ours, -1).close()
        except KeyboardInterrupt:
            raised = True
        # Whatever file still holds it.
        ours._io_refs = 0  # type: ignore[attr-defined]
        ours.close()
        theirs.close()
        assert raised == bool(interrupt.place), interrupt.place
        if not raised:
            assert number > 3
            return


def test_a_waiter_is_released_wherever_its_setter_is_interrupted() -> None:
    """An event that is set anew after an interrupt calls whatever it did not call the first time."""
    for number in range(1, 1000):
        event, calls = OneShot(), []
        event.then(lambda calls=calls: calls.append(1))  # type: ignore[misc]
        event.then(lambda calls=calls: calls.append(2))  # type: ignore[misc]
        interrupt = Interrupt(number)
        try:
            with interrupt.active():
                event.set()
        except KeyboardInterrupt:
            event.set()
        assert {1, 2} <= set(calls), interrupt.place
        if not interrupt.place:
            return


@pytest.mark.parametrize("failing", ["socketpair", "setblocking", "epoll", "register"])
def test_a_loop_that_cannot_be_made_leaves_no_descriptor(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails while a loop opens its descriptors, those before it are closed."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    if failing == "socketpair":
        monkeypatch.setattr("socket.socketpair", fail)
    elif failing == "setblocking":
        monkeypatch.setattr("socket.socket.setblocking", fail)
    elif failing == "epoll":
        monkeypatch.setattr("sockserve.core.loop.open_poller", fail)
    else:
        monkeypatch.setattr(Loop, "watch", fail)
    with pytest.raises(OSError, match="Too many"):
        Loop()


def test_a_handler_with_a_loop_of_its_own_does_not_deafen_the_server() -> None:
    """A signal ends the wait of an idle server also after a handler has taken the signals' wake-up descriptor away."""
    taken = threading.Event()
    heard = threading.Event()

    class Handler(sockserve.BaseRequestHandler):
        def handle(self) -> None:
            signal.set_wakeup_fd(-1)
            taken.set()

    server = sockserve.TCPServer(("127.0.0.1", 0), Handler)
    results: list[bool] = []

    def operate() -> None:
        server.wait_until_serving()
        with socket.create_connection(server.server_address) as client:
            client.recv(1)
        taken.wait()
        # Taken by this thread: the other one sleeps in its wait.
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        results.append(heard.wait(10))
        server.shutdown()

    before = signal.signal(signal.SIGUSR1, lambda *_: heard.set())
    try:
        with server:
            operator = threading.Thread(target=operate)
            operator.start()
            server.serve_forever()
            operator.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert results == [True]
    assert signal.set_wakeup_fd(-1) == -1


def test_a_wake_up_descriptor_that_was_closed_meanwhile_is_not_given_back() -> None:
    """The program's own one may be gone when the loop ends; that is no error of the loop's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        signal.set_wakeup_fd(ours.fileno())
        with Loop() as loop:
            loop.call_soon(ours.close)
            server = sockserve.TCPServer(("127.0.0.1", 0), H.Silent)
            with server:
                server.attach(loop)
                loop.call_soon(server.shutdown)
                loop.run()
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("failures", [1, 3])
def test_a_wake_up_for_which_there_is_no_memory_is_sent_again(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that waits without limit hears of a stop although the kernel had no memory for its byte at first."""
    left = [OSError(12, "Cannot allocate memory")] * failures
    send = socket.socket.send

    def send_perhaps(sock: socket.socket, data: bytes, *flags: int) -> int:
        if left:
            raise left.pop()
        return send(sock, data, *flags)

    with Loop() as loop:
        monkeypatch.setattr("socket.socket.send", send_perhaps)
        loop.wake()
        monkeypatch.undo()
        assert not left
        assert loop._wake_reader.recv(10) == b"\0"


@pytest.mark.parametrize("verb", ["recv", "send"])
def test_a_pool_without_epoll_hears_what_there_was_no_memory_for(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait without limit ends, although the kernel had no memory at first for its byte, or to read it."""
    left = [OSError(12, "Cannot allocate memory")]
    call = getattr(socket.socket, verb)

    def call_perhaps(sock: socket.socket, *args: Any) -> Any:
        if left:
            raise left.pop()
        return call(sock, *args)

    ours, theirs = socket.socketpair()
    poller = _LeaderPoller()
    with ours, theirs:
        theirs.sendall(b"1")
        waiting = threading.Thread(target=lambda: found.extend(poller.poll(LIMIT, 1)))
        found: list[tuple[int, int]] = []
        waiting.start()
        monkeypatch.setattr(socket.socket, verb, call_perhaps)
        poller.arm(ours.fileno(), poller.once)
        waiting.join()
        monkeypatch.undo()
        assert found == [(ours.fileno(), 0)]
        assert not left
    poller.close()


def test_a_timer_that_is_not_due_wakes_no_loop_in_the_main_thread() -> None:
    """A loop that waits for a timer looks for the signals' wake-up descriptor once, and not again and again."""
    server = sockserve.TCPServer(("127.0.0.1", 0), H.Silent)
    with server, Loop() as loop:
        server.attach(loop)
        loop.call_later(0.5, server.shutdown)
        loop.run()
        assert loop.turns < 5
