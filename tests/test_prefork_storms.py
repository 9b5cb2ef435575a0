"""Workers that end again and again just after their start: the pauses grow, and the log tells it."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading

import pytest
from support.handlers import handlers
from support.log_watch import ExpectLog
from support.prefork_program import TURNS_OFTEN, Prefork
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.concurrency.prefork import places
from sockserve.concurrency.prefork.places import BACK_OFF_FIRST, BACK_OFF_LAST, GIVE_UP_AFTER, back_off
from sockserve.concurrency.prefork.supervisor import Supervisor

SELF = "os.kill(os.getpid(), signal.{})"
SOON = f"{TURNS_OFTEN}\ndef service_actions(self): "


@pytest.mark.parametrize(
    "cause",
    [
        SOON + SELF.format("SIGKILL"),
        SOON + SELF.format("SIGTERM"),
        "def setup_worker(self): " + SELF.format("SIGTERM"),
        "def setup_worker(self): self.shutdown()",
        "def setup_worker(self): " + SELF.format("SIGKILL"),
    ],
    ids=[
        "killed when ready",
        "told to leave when ready",
        "told to leave before ready",
        "stops before ready",
        "killed before ready",
    ],
)
def test_early_ends_in_a_row_are_told_with_pauses_that_grow(cause: str) -> None:
    """Whatever ends them: each pause is twice the one before, and one line tells it."""
    with Prefork("processes = 1", cause) as server:
        wait_until(lambda: len(pauses(server)) >= 3)
        first, *_ = told = pauses(server)
        assert [round(pause / first) for pause in told[:3]] == [1, 2, 4]
        assert server.program.process.poll() is None
        server.send(signal.SIGTERM)
        assert server.status() == 0


@pytest.mark.parametrize("verb", ["setup_worker", "service_actions"])
def test_workers_that_stop_by_themselves_are_no_crash_loop(
    monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog, verb: str
) -> None:
    """However often, before or after they are ready: what ends in order may have been told to, and has not failed."""
    told = expect_log(logging.WARNING, "stopped by itself; that is early end number")
    monkeypatch.setattr(places, "BACK_OFF_FIRST", 0.005)
    monkeypatch.setattr(places, "BACK_OFF_LAST", 0.005)

    class Stops(sockserve.PreForkMixIn, sockserve.TCPServer):
        processes = 1

    setattr(Stops, verb, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with Stops(("127.0.0.1", 0), handlers(sockserve).Echo) as server:
        supervisor: Supervisor = server._serving_supervisor
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        wait_until(lambda: supervisor._storms._in_a_row.get(0, 0) > GIVE_UP_AFTER + 1)
        assert supervisor._places.failures == 0
        server.shutdown(LIMIT)
        serving.join()
    told.wait()


def test_a_storm_at_one_place_does_not_delay_another() -> None:
    """A worker of another place that is killed once is replaced at once, without a word about a row."""
    bad = SOON + "\n    if self.worker_id: " + SELF.format("SIGKILL")
    with Prefork(bad) as server:
        wait_until(lambda: len(pauses(server)) >= 3)
        _, before = server.who()
        server.send(signal.SIGKILL, before)
        wait_until(lambda: server.errors().count("worker 0") >= 3)
        assert server.who()[1] != before
        assert not re.search(r"worker 0 .*in a row", server.errors())


def test_a_worker_that_is_killed_once_is_replaced_at_once() -> None:
    """No pause, and no line about a row."""
    with Prefork("processes = 1") as server:
        _, before = server.who()
        server.send(signal.SIGKILL, before)
        wait_until(lambda: server.errors().count("is ready") == 2)
        assert not pauses(server)


def test_requests_that_use_up_worker_after_worker_make_a_pause_and_lose_nothing() -> None:
    """The worker that wants a successor goes on until there is one."""
    with Prefork("processes = 1", "max_requests = 1") as server:
        wait_until(lambda: bool(server.who()) and len(pauses(server)) >= 1)
        assert "has served its number of requests" in server.errors()


def test_a_pause_has_a_limit() -> None:
    """It doubles up to that, and no number of failures is too large."""
    assert back_off(1) == BACK_OFF_FIRST
    assert back_off(2) == 2 * BACK_OFF_FIRST
    assert back_off(100_000) == BACK_OFF_LAST


def pauses(server: Prefork) -> list[float]:
    """The pauses after early ends in a row that the log tells, in seconds."""
    return [
        float(pause) for pause in re.findall(r"WARNING .* in a row .* begins in (\d+\.\d) seconds", server.errors())
    ]
