"""Under load nothing is lost: what a worker held that was killed, and nothing else."""

from __future__ import annotations

import signal
import threading
from typing import Self

import pytest
from support.models import HERE, MIX_INS
from support.prefork_program import Prefork, is_alive
from support.under_test import LIMIT
from support.waiting import wait_until

from sockserve.testing import ask, connect

CLIENTS = 4
KILLS = 4


class Load:
    """Clients that ask one question after the other, each on a connection of its own, for the length of a block."""

    def __init__(self, server: Prefork) -> None:
        self.answered = 0
        self.failed: list[object] = []
        self._server = server
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, count: int) -> None:
        """Return when so many more were answered."""
        enough = self.answered + count
        wait_until(lambda: self.answered >= enough)

    def _ask(self) -> None:
        while not self._is_over.is_set():
            try:
                answer = ask(self._server.address, b"who\n", timeout=LIMIT)
            except OSError as error:
                self.failed.append(error)
            else:
                if answer:
                    self.answered += 1
                else:
                    self.failed.append(answer)


each_mix_in = pytest.mark.parametrize("mix_in", [MIX_INS[model] for model in HERE])


@each_mix_in
def test_rolling_restarts_lose_no_request(mix_in: str) -> None:
    """Every client is answered while all workers are replaced, again and again."""
    with Prefork(mix_in=mix_in) as server, Load(server) as load:
        for _ in range(2):
            before = server.wait_for_workers()
            server.send(signal.SIGHUP)
            server.wait_for_workers(other_than=before)
        load.wait_for_more(20)
    assert load.failed == []


@each_mix_in
def test_a_client_that_is_kept_outlives_a_rolling_restart(mix_in: str) -> None:
    """Its worker goes on with it, ends after it, and takes nobody else."""
    with Prefork(mix_in=mix_in) as server, connect(server.address, timeout=LIMIT) as client:
        before = server.wait_for_workers()
        client.sendall(b"keep\n")
        answer = client.recv(100)
        old = int(answer.split()[1])
        server.send(signal.SIGHUP)
        server.wait_for_workers(3, other_than=[pid for pid in before if pid != old])
        for _ in range(3):
            assert server.who()[1] not in before
            client.sendall(b"keep\n")
            assert client.recv(100) == answer
        client.close()
        wait_until(lambda: not is_alive(old))


@each_mix_in
def test_a_client_that_is_kept_has_its_limit(mix_in: str) -> None:
    """After ``drain_timeout`` a silent one sees an orderly end, and its worker needs not be killed."""
    with Prefork("drain_timeout = 0.2", mix_in=mix_in) as server, connect(server.address, timeout=LIMIT) as client:
        before = server.wait_for_workers()
        client.sendall(b"keep\n")
        assert client.recv(100)
        server.send(signal.SIGHUP)
        assert client.recv(100) == b""
        server.wait_for_workers(other_than=before)
        wait_until(lambda: server.errors().count("exit status 0") == 2)


@pytest.mark.parametrize("attribute", ["pass", "allow_reuse_port = True"])
def test_a_killed_worker_loses_what_it_held(attribute: str) -> None:
    """However often inline workers are killed, each takes one request along at most; nobody waits for a dead one."""
    with Prefork(attribute) as server, Load(server) as load:
        for number in range(KILLS):
            pid = server.wait_for_workers()[number % 2]
            load.wait_for_more(5)
            server.send(signal.SIGKILL, pid)
            server.wait_for_workers(other_than=[pid])
        load.wait_for_more(20)
    assert len(load.failed) <= KILLS


def test_changes_of_their_number_lose_no_request() -> None:
    """Workers come and go, and every client is answered."""
    with Prefork() as server, Load(server) as load:
        server.wait_for_workers()
        for count, signum in ((3, signal.SIGTTIN), (2, signal.SIGTTOU), (1, signal.SIGTTOU), (2, signal.SIGTTIN)):
            server.send(signum)
            server.wait_for_workers(count)
            load.wait_for_more(20)
    assert load.failed == []


def test_max_requests_loses_no_request() -> None:
    """A worker goes on until its successor is ready."""
    with Prefork("max_requests = 20") as server, Load(server) as load:
        wait_until(lambda: server.errors().count("is ready") >= 6)
    assert load.failed == []
