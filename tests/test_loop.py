"""The loop itself: what ends its wait, in which order things happen, and what it leaves alone."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from support.handlers import handlers
from support.programs import Program
from support.stepping import steps
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.core.loop import Loop
from sockserve.core.poller import wait_readable
from sockserve.testing import ask, call_within

LOOPBACK = ("127.0.0.1", 0)


class Source:
    """Keeps a loop running until it is told to leave."""

    max_wait: float | None = None

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.turns = 0
        self.leaves_next = False
        self.has_left = False
        loop.add(self)

    def before_wait(self) -> None:
        """Leave if it is time."""
        if self.leaves_next:
            self.leave()

    def after_turn(self) -> None:
        """Count."""
        self.turns += 1

    def leave(self) -> None:
        """Leave now."""
        self.has_left = True
        self.loop.remove(self)

    def abandon(self) -> None:
        """Nothing to close."""

    def leave_soon(self) -> None:
        """Leave before the next wait."""
        self.leaves_next = True


@contextlib.contextmanager
def running_in_thread(loop: Loop) -> Iterator[threading.Thread]:
    """Run the loop in a thread for the length of the block, at the end of which it has to come to its end."""
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(LIMIT)
        assert not thread.is_alive()


# waking up


def test_a_loop_without_a_source_has_nothing_to_do(loop: Loop) -> None:
    """``run()`` returns at once."""
    call_within(LIMIT, loop.run)


def test_wake_ends_a_wait_in_another_thread(loop: Loop) -> None:
    """A flag that is set before ``wake()`` is seen, a hundred times in a row."""
    source = Source(loop)
    with running_in_thread(loop):
        for turn in range(100):
            loop.wake()
            wait_until(lambda turn=turn: source.turns > turn)  # type: ignore[misc]
        source.leave_soon()
        loop.wake()


def test_wake_before_the_wait_is_kept(loop: Loop) -> None:
    """It ends the first wait."""
    source = Source(loop)
    loop.call_later(3600, lambda: None)
    loop.wake()
    source.after_turn = source.leave_soon  # type: ignore[method-assign]
    call_within(LIMIT, loop.run)
    assert source.has_left


def test_wake_never_blocks(loop: Loop) -> None:
    """A hundred thousand wake-ups of a loop that nobody runs fill its buffer, and still wake it."""
    source = Source(loop)
    for _ in range(100_000):
        loop.wake()
    source.after_turn = source.leave_soon  # type: ignore[method-assign]
    call_within(LIMIT, loop.run)


def test_wake_after_the_end_does_nothing(loop: Loop) -> None:
    """Whoever comes late need not know."""
    loop.close()
    loop.wake()
    loop.close()


def test_no_wake_up_swallows_a_later_one(loop: Loop) -> None:
    """Wherever in the loop's reading of a wake-up another one comes, the one after that is not lost."""
    source = Source(loop)
    for step in steps():
        loop.wake()
        step.run(loop._turn, loop.wake)
        loop.wake()
        turns = source.turns
        call_within(LIMIT, loop._turn)
        assert source.turns > turns, step


def test_a_signal_ends_the_wait_of_the_main_thread() -> None:
    """Its handler runs although the kernel gave the signal to another thread, and the main thread sleeps."""
    script = """
        import signal, threading
        import sockserve
        from support.handlers import handlers

        server = sockserve.TCPServer(("127.0.0.1", 0), handlers(sockserve).Echo)
        signal.signal(signal.SIGTERM, lambda *_: server.shutdown())
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        # From now on the thread above is the only one to take it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        print(server.server_address[1])
        server.serve_forever()
        assert signal.set_wakeup_fd(-1) == -1
        server.server_close()
        print("ended")
    """
    with Program(script) as program:
        assert ask(("127.0.0.1", int(program.line())), b"asleep next") == b"asleep next"
        program.send(signal.SIGTERM)
        assert program.line() == "ended"


def test_the_wakeup_descriptor_is_given_back() -> None:
    """Whoever had set one for signals, as asyncio does, has it again after a loop in the main thread."""
    reader, writer = socket.socketpair()
    with reader, writer, Loop() as loop:
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno())
        try:
            source = Source(loop)
            source.after_turn = source.leave_soon  # type: ignore[method-assign]
            loop.wake()
            loop.run()
        finally:
            assert signal.set_wakeup_fd(before) == writer.fileno()


# timers


def test_timers_fire_in_order_and_not_early(loop: Loop) -> None:
    """Each after its own delay, whatever the order in which they were set."""
    source = Source(loop)
    fired: list[tuple[str, float]] = []

    def note(name: str) -> None:
        fired.append((name, time.monotonic() - begin))
        if name == "last":
            source.leave_soon()

    begin = time.monotonic()
    loop.call_later(0.06, lambda: note("last"))
    loop.call_later(0.02, lambda: note("first"))
    loop.call_later(0.04, lambda: note("cancelled")).cancel()
    loop.call_later(0.04, lambda: note("second"))
    call_within(LIMIT, loop.run)
    assert [name for name, _ in fired] == ["first", "second", "last"]
    assert all(at >= delay for (_, at), delay in zip(fired, (0.02, 0.04, 0.06), strict=True))


def test_a_timer_that_sets_itself_again_does_not_keep_the_loop_from_its_turns(loop: Loop) -> None:
    """With a delay of nothing each turn fires it once."""
    source = Source(loop)
    fired: list[int] = []

    def again() -> None:
        fired.append(source.turns)
        if len(fired) < 10:
            loop.call_later(0, again)
        else:
            source.leave_soon()

    again()
    call_within(LIMIT, loop.run)
    assert len(fired) == 10


def test_cancelled_timers_do_not_wake_the_loop(loop: Loop) -> None:
    """The wait's limit is that of the first timer still wanted."""
    Source(loop)
    for delay in (0.0, 0.001, 3600.0):
        loop.call_later(delay, lambda: None).cancel()
    assert loop._wait_limit(tuple(loop._sources)) is None
    assert loop._timers == []


def test_a_timer_of_a_century_is_no_error(loop: Loop) -> None:
    """The system's calls do not take such a time-out; the loop waits as long as they do."""
    source = Source(loop)
    loop.call_later(3.2e9, lambda: None)
    source.after_turn = source.leave_soon  # type: ignore[method-assign]
    loop.wake()
    call_within(LIMIT, loop.run)


# descriptors


def test_a_watched_descriptor_is_called_back_until_it_is_unwatched(loop: Loop) -> None:
    """Level-triggered: in every turn that finds it readable."""
    source = Source(loop)
    reader, writer = socket.socketpair()
    with reader, writer:
        calls: list[int] = []

        def readable() -> None:
            calls.append(source.turns)
            if len(calls) == 3:
                loop.unwatch(reader.fileno())
                source.leave_soon()

        loop.watch(reader.fileno(), readable)
        writer.send(b"!")
        call_within(LIMIT, loop.run)
        assert calls == [0, 1, 2]


def test_what_one_callback_unwatches_is_not_called_in_the_same_turn(loop: Loop) -> None:
    """Of two descriptors that are ready at once only the first is served."""
    source = Source(loop)
    pairs = [socket.socketpair() for _ in range(2)]
    calls: list[int] = []

    def serve(number: int) -> None:
        calls.append(number)
        loop.unwatch(pairs[1 - number][0].fileno())
        source.leave_soon()

    for number, (reader, writer) in enumerate(pairs):
        loop.watch(reader.fileno(), lambda number=number: serve(number))  # type: ignore[misc]
        writer.send(b"!")
    call_within(LIMIT, loop.run)
    assert len(calls) == 1
    for pair in pairs:
        for end in pair:
            end.close()


def test_unwatch_is_no_error_whatever_became_of_the_descriptor(loop: Loop) -> None:
    """Unknown, closed already, or watched by a loop that is closed itself."""
    reader, writer = socket.socketpair()
    loop.unwatch(reader.fileno())
    loop.watch(reader.fileno(), lambda: None)
    number = reader.fileno()
    reader.close()
    loop.unwatch(number)
    loop.watch(writer.fileno(), lambda: None)
    loop.close()
    loop.unwatch(writer.fileno())
    writer.close()


def test_readiness() -> None:
    """``wait_readable()`` agrees with what is there, end-of-file included."""
    reader, writer = socket.socketpair()
    with reader, writer:
        assert not wait_readable(reader.fileno(), 0.01)
        assert not wait_readable(reader.fileno(), -1.0)
        writer.send(b"!")
        assert wait_readable(reader.fileno(), None)
        reader.recv(1)
        assert not wait_readable(reader.fileno(), 0)
        writer.close()
        assert wait_readable(reader.fileno(), 0)


def test_readiness_without_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform that has but select(), as Windows, gets the same answers."""
    monkeypatch.delattr(select, "poll")
    test_readiness()


# running


def test_a_loop_has_one_thread(loop: Loop) -> None:
    """A second ``run()`` meanwhile is refused, and the first goes on."""
    source = Source(loop)
    with running_in_thread(loop) as thread:
        wait_until(lambda: loop.thread == thread.ident)
        with pytest.raises(sockserve.AlreadyServingError):
            loop.run()
        loop.wake()
        wait_until(lambda: source.turns)
        source.leave_soon()
        loop.wake()


def test_a_loop_goes_on_after_an_exception(loop: Loop) -> None:
    """What a callback raises ends ``run()``; the next one takes up where that left off."""
    source = Source(loop)

    def fail() -> None:
        loop.call_later(0, source.leave_soon)
        raise ZeroDivisionError

    loop.call_later(0, fail)
    with pytest.raises(ZeroDivisionError):
        call_within(LIMIT, loop.run)
    assert loop.thread is None
    call_within(LIMIT, loop.run)
    assert source.has_left


def test_a_closed_loop_makes_its_sources_leave(loop: Loop) -> None:
    """All of them, once."""
    sources = [Source(loop) for _ in range(3)]
    loop.close()
    assert all(source.has_left for source in sources)


def test_several_servers_share_a_loop(loop: Loop) -> None:
    """Each is served, stops by itself, and the loop ends with the last."""
    servers = [sockserve.TCPServer(LOOPBACK, handlers(sockserve).Echo) for _ in range(3)]
    udp = sockserve.UDPServer(LOOPBACK, handlers(sockserve).EchoDatagram)
    for server in (*servers, udp):
        server.attach(loop)
    with running_in_thread(loop) as thread:
        for number, server in enumerate((*servers, udp)):
            assert ask(server, b"%d" % number) == b"%d" % number
        for server in servers:
            server.shutdown()
            server.server_close()
            assert ask(udp, b"still there") == b"still there"
        assert thread.is_alive()
        udp.shutdown()
        udp.server_close()


def test_a_neighbour_that_fails_leaves_the_others_attached(loop: Loop) -> None:
    """A lost listener ends ``run()`` with an error; run again, the loop serves those that are left."""
    echo = handlers(sockserve).Echo
    lost, good = (sockserve.TCPServer(LOOPBACK, echo) for _ in range(2))
    lost.attach(loop)
    good.attach(loop)
    lost.socket.close()
    with pytest.raises(sockserve.ListenerLostError):
        call_within(LIMIT, loop.run)
    with running_in_thread(loop):
        assert ask(good, b"good") == b"good"
        good.shutdown()
    lost.server_close()
    good.server_close()


def test_a_loop_that_nobody_runs_is_no_reason_to_wait(loop: Loop) -> None:
    """``shutdown()``, ``drain()`` and ``server_close()`` of an attached server return; its first turn is its last."""
    server = sockserve.TCPServer(LOOPBACK, handlers(sockserve).Echo)
    server.attach(loop)
    call_within(LIMIT, server.shutdown)
    call_within(LIMIT, server.drain)
    call_within(LIMIT, server.server_close)
    call_within(LIMIT, loop.run)
    assert not loop._sources


def test_a_server_leaves_a_closed_loop_and_can_be_served_by_another(loop: Loop) -> None:
    """``close()`` of the loop alone gives the server back."""
    server = sockserve.TCPServer(LOOPBACK, handlers(sockserve).Echo)
    server.attach(loop)
    with pytest.raises(sockserve.AlreadyServingError), Loop() as other:
        server.attach(other)
    loop.close()
    with Loop() as other:
        server.attach(other)
        with running_in_thread(other):
            assert ask(server, b"again") == b"again"
            server.shutdown()
    server.server_close()


def test_a_forked_child_lets_go_of_the_loop(loop: Loop) -> None:
    """``abandon()`` closes the child's copies and leaves the parent's loop alone."""
    server = sockserve.TCPServer(LOOPBACK, handlers(sockserve).Echo)
    server.attach(loop)
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            loop.abandon()
            status = int(server.fileno() != -1)
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with running_in_thread(loop):
        assert ask(server, b"unharmed") == b"unharmed"
        server.shutdown()
    server.server_close()
