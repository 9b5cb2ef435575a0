"""How many workers of a pool take requests at once: the decisions, the bench, and what a pool under pressure does."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.concurrency.pool.balance import CALM, TICK, WINDOW, Balance, Look
from sockserve.concurrency.pool.bench import Bench, Seat
from sockserve.pytest_plugin import Running
from sockserve.testing import call_within, connect

pytestmark = pytest.mark.skipif(not hasattr(__import__("select"), "epoll"), reason="other pollers leave no choice")

LOOPBACK = ("127.0.0.1", 0)


def busy(moved: int = 100, processors: float = 1.0) -> Look:
    """Look after a tick in which the process computed all the time."""
    return Look(TICK, TICK * processors, 0.0, moved, 0)


WAITS = Look(TICK, 0.0, 0.0, 0, 0)
"""Nothing moved, and all are in their handlers."""

PARTLY = Look(TICK, TICK / 10, TICK / 10, 4, 0)
"""Something moved, but handlers wait most of the time."""

IDLE = Look(TICK, 0.0, TICK, 0, 1)


def after(balance: Balance, look: Look, seconds: float = 2 * WINDOW) -> list[int]:
    """Return the levels chosen while all looks are this one."""
    levels = []
    for _ in range(int(seconds / look.elapsed)):
        assert balance.judge(look)
        levels.append(balance.level)
    return levels


def test_one_is_enough_for_quick_handlers() -> None:
    """On one processor another number is not even tried."""
    assert set(after(Balance(16, 1), busy(), 5.0)) == {1}


@pytest.mark.parametrize("look", [WAITS, PARTLY])
def test_handlers_that_wait_call_all_at_once(look: Look) -> None:
    """After a single tick; and they stay, but for a tick now and then."""
    balance = Balance(16, 2)
    assert balance.judge(look)
    assert balance.level == 16
    levels = after(balance, look, 10.0)
    assert levels.count(1) < 0.01 * len(levels)


def test_a_computation_without_progress_calls_twice_as_many_and_is_forgotten() -> None:
    """Each tick that it lasts; when requests move again half of them sit down, again and again."""
    balance = Balance(16, 1)
    assert after(balance, busy(0), 3 * TICK) == [2, 4, 8]
    assert after(balance, busy(), 3 * TICK) == [4, 2, 1]


def test_a_process_without_a_processor_changes_nothing() -> None:
    """Nothing moves, but no handler waits."""
    balance = Balance(16, 2)
    assert set(after(balance, WAITS._replace(is_starved=True))) == {1}


def test_code_that_computes_without_the_lock_is_found_out() -> None:
    """Twice as many do twice as much, on two processors: they stay, and no more are tried than there are processors."""
    balance = Balance(16, 2)
    for _ in range(500):
        balance.judge(busy(10 * balance.level, balance.level))
    assert (balance.level, balance.right) == (2, 2)
    # Other work comes, for which one is enough.
    assert after(balance, busy(10, 1.0), 3 * WINDOW)[-1] == 1


def test_a_fight_for_the_lock_is_no_gain() -> None:
    """Trials are made, and more and more seldom."""
    balance = Balance(16, 2)
    levels = after(balance, busy(10, 1.2), 10.0)
    assert 0 < levels.count(2) < 0.05 * len(levels)
    assert levels[-1] == 1


def test_a_calm_pool_is_not_watched() -> None:
    """After some ticks in a row with next to nothing to do; work in between starts the count again."""
    balance = Balance(16, 2)
    for _ in range(2):
        assert [balance.judge(IDLE) for _ in range(CALM - 1)] == [True] * (CALM - 1)
        assert balance.judge(busy())
    assert [balance.judge(IDLE) for _ in range(CALM)][-1] is False


# the bench


def test_a_seat_is_left_when_it_is_called() -> None:
    """As many sit as were asked, and each goes on when it is called."""
    bench, sat = Bench(), threading.Semaphore(0)

    def work() -> None:
        if bench.sit(Seat(), LIMIT):
            sat.release()

    bench.ask(2)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    # The third was not asked.
    assert sat.acquire(timeout=LIMIT)
    wait_until(lambda: len(bench.seated) == 2)
    bench.call(1)
    assert sat.acquire(timeout=LIMIT)
    assert not sat.acquire(blocking=False)
    bench.close()
    assert sat.acquire(timeout=LIMIT)
    for thread in threads:
        thread.join(LIMIT)
    assert (bench.seated, bench.asked) == ([], [])


def test_nothing_is_left_of_a_seat_whose_time_is_up() -> None:
    """It says so; after the end none sits, whatever was asked; and a call too many does no harm."""
    bench, seat = Bench(), Seat()
    bench.ask(1)
    assert not bench.sit(seat, 0.001)
    assert not bench.seated
    seat.free()
    seat.free()
    bench.close()
    bench.ask(1)
    assert bench.sit(seat, LIMIT)


# the whole


class Held(sockserve.BaseRequestHandler[Any, Any, Any]):
    """Answers, and waits for more; b"wait" waits for ``opened`` first."""

    opened: threading.Event

    def handle(self) -> None:
        """Answer."""
        data = self.request.recv(100)
        if data == b"wait":
            assert self.opened.wait(LIMIT)
        if data:
            self.request.sendall(data)
            self.keep_open()


@pytest.fixture
def held() -> Iterator[type[Held]]:
    """One with an event of its own; set at the end, whatever happened."""

    class OwnHeld(Held):
        opened = threading.Event()

    yield OwnHeld
    OwnHeld.opened.set()


def pool(handler: Any, **attributes: Any) -> Any:
    """A server with these attributes."""
    return type("Server", (sockserve.ThreadPoolTCPServer,), attributes)(LOOPBACK, handler)


@contextlib.contextmanager
def pressing(server: Any, count: int) -> Iterator[None]:
    """So many clients talk all the time, so that the pool is watched; all of them are accepted."""
    is_over = threading.Event()

    def talk() -> None:
        with contextlib.suppress(ConnectionError), connect(server, timeout=LIMIT) as client:
            while not is_over.is_set():
                client.sendall(b"hello")
                if client.recv(100) != b"hello":
                    return

    threads = [threading.Thread(target=talk) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(server.active_requests) >= count)
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join(LIMIT)


def test_workers_sit_down_under_pressure_and_get_up_after_it(running: Running, held: type[Held]) -> None:
    """Clients that talk all the time need one; when they have gone all wait for events, and none watches."""
    server = running(pool(held, max_workers=4, min_workers=4))
    workers = server._serving_pool
    with pressing(server, 8):
        wait_until(lambda: len(workers.bench.seated) == 3)
    wait_until(lambda: not workers.is_pressed)
    assert (workers.bench.seated, workers.bench.asked) == ([], [])
    assert not workers.parking.holds
    wait_until(lambda: len(workers.idle) == 4)


def test_a_quick_client_is_answered_though_the_one_that_stands_waits(running: Running, held: type[Held]) -> None:
    """Workers are called as long as there are any; those that wait in handlers keep none on the bench."""
    server = running(pool(held, max_workers=4, min_workers=4))
    with contextlib.ExitStack() as stack, pressing(server, 4):
        waiting = [stack.enter_context(connect(server, timeout=LIMIT)) for _ in range(3)]
        quick = stack.enter_context(connect(server, timeout=LIMIT))
        for client in waiting:
            client.sendall(b"wait")
            quick.sendall(b"quick")
            assert quick.recv(100) == b"quick"
        held.opened.set()
        assert [client.recv(100) for client in waiting] == [b"wait"] * 3


def test_the_loop_ends_at_once_though_workers_sit(running: Running, held: type[Held]) -> None:
    """They get up, and end with the others."""
    server = running(pool(held, max_workers=4, min_workers=4))
    workers = server._serving_pool
    with pressing(server, 8):
        wait_until(lambda: len(workers.bench.seated) == 3)
        call_within(LIMIT, server.shutdown)
        wait_until(lambda: not workers.workers)
    assert (workers.bench.seated, workers.idle) == ([], [])
