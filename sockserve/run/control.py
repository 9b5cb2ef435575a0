"""A program with worker processes, told what to do through a Unix socket: ``sockserve ctl PATH COMMAND``.

A line in, lines out, an empty line at the end. The supervisor answers.

Rule 1. Only the user that the program runs as, and root, are heard: the socket's permissions say so, and the kernel,
which is asked for each client.
Rule 2. What is asked for is answered when it is done, but for a rolling restart and a stop, which are begun.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence

from sockserve.concurrency.prefork.protocol import ACCEPTED, ACTIVE
from sockserve.concurrency.prefork.supervisor import Supervisor
from sockserve.concurrency.prefork.worker_handle import WorkerHandle
from sockserve.log import log
from sockserve.net.peer_credentials import credentials_of
from sockserve.run.answering import Reply
from sockserve.run.health import Fleet
from sockserve.run.opening import AnyServer
from sockserve.run.states import State

__all__ = ["COMMANDS", "Control"]

COMMANDS = {
    "status": "the state, and what each worker does",
    "stacks": "the stacks of all threads of all workers",
    "suspend": "accept no more; what is in progress goes on",
    "drain": "accept no more, and let all workers end; without any until resume",
    "resume": "accept again",
    "roll": "begin to replace the workers, as SIGHUP does",
    "stop": "drain and end, as SIGTERM does",
}


class Control:
    """What a client may ask for. Called in the supervisor's thread."""

    def __init__(self, supervisor: Supervisor, servers: Sequence[AnyServer], fleet: Fleet) -> None:
        self._supervisor = supervisor
        self._servers = servers
        self._fleet = fleet
        self._verbs: dict[str, Callable[[Reply], object]] = {
            "status": self._status,
            "stacks": self._stacks,
            "suspend": self._suspend,
            "drain": self._drain,
            "resume": self._resume,
            "roll": self._roll,
            "stop": self._stop,
        }

    def ask(self, client: socket.socket, question: bytes, reply: Reply) -> bool:
        """Answer one line; as ``Ask``."""
        if not _may_ask(client):
            log.warning("control: a client of another user is refused")
            reply(b"error: only the user of the program may ask\n\n")
            return True
        line, end, _ = question.partition(b"\n")
        if not end:
            return False
        word = line.strip().decode("ascii", "replace")
        verb = self._verbs.get(word)
        if verb is None:
            reply(f"error: there is no such command; there are {', '.join(COMMANDS)}\n\n".encode())
        else:
            if word not in ("status", "stacks"):
                log.info("control: %s", word)
            verb(reply)
        return True

    def _status(self, reply: Reply) -> None:
        age = time.time() - self._fleet.began
        lines = [f"{self._fleet.states.present.value} process {os.getpid()}, for {age:.0f} s"]
        workers = sorted(self._supervisor.workers.values(), key=lambda worker: (worker.place, worker.child.pid))
        lines += map(_line_of, workers)
        reply("\n".join([*lines, "", ""]).encode())

    def _stacks(self, reply: Reply) -> None:
        self._supervisor.tell_stacks(lambda text: reply(f"{text}\n\n".encode()))

    def _suspend(self, reply: Reply) -> None:
        for server in self._servers:
            server.suspend()
        self._fleet.states.change(State.LAME)
        reply(b"suspended\n\n")

    def _drain(self, reply: Reply) -> None:
        for server in self._servers:
            server.suspend()
        self._supervisor.empty(lambda: reply(b"drained\n\n"))

    def _resume(self, reply: Reply) -> None:
        for server in self._servers:
            server.resume()
        if self._fleet.figures().serving:
            # Else the first worker that is ready says so.
            self._fleet.states.change(State.READY)
        reply(b"resumed\n\n")

    def _roll(self, reply: Reply) -> None:
        self._supervisor.roll()
        reply(b"begun\n\n")

    def _stop(self, reply: Reply) -> None:
        self._supervisor.stop()
        reply(b"begun\n\n")


def _may_ask(client: socket.socket) -> bool:
    credentials = credentials_of(client)
    # None: the system cannot tell; the socket's permissions hold all the same.
    return credentials is None or credentials.uid in (0, os.geteuid())


def _line_of(worker: WorkerHandle) -> str:
    word = "leaving" if worker.is_leaving else "serving" if worker.is_ready else "starting"
    silence = worker.page.silence()
    turned = "asleep" if silence is None else f"turned {silence:.1f} s ago"
    numbers = worker.page.numbers
    return f"{worker}: {word}, {turned}, {numbers[ACTIVE]} in progress, {numbers[ACCEPTED]} accepted"
