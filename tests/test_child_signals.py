"""What a process inherits that a handler, a worker or the program itself makes: signals mean what they did before."""

from __future__ import annotations

import os
import pathlib
import re
import signal
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from support.programs import START_LIMIT, Program
from support.under_test import LIMIT
from support.waiting import wait_until

from sockserve.testing import ask, connect

RUNS = {
    "serve": 'sockserve.serve(Handler, "tcp://127.0.0.1:0", model=MODEL, ready=tell)',
    "serve with processes": 'sockserve.serve(Handler, "tcp://127.0.0.1:0", model=MODEL, processes=1, ready=tell)',
    "prefork": "serve_class((sockserve.PreForkMixIn, BASES[MODEL]))",
    "class": "serve_class((BASES[MODEL],))",
}

PROGRAM = """
import logging, multiprocessing, os, pty, signal, socket, subprocess, sys, threading, time, sockserve
logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")
# What starts the tests may ignore it, as a shell's & does.
signal.signal(signal.SIGINT, signal.default_int_handler)
{before}

def masks(text, *names):
    lines = [line.split() for line in text.splitlines() if line.startswith(names)]
    # Without 32 and 33, which the C library has for its threads: nptl(7).
    return " ".join(f"{name} {int(mask, 16) & ~(3 << 31):x}" for name, mask in lines)

def means():
    with open("/proc/self/status") as status:
        found = masks(status.read(), "SigBlk", "SigIgn", "SigCgt")
    return f"{found} wakeup {signal.set_wakeup_fd(-1)}"

def means_after_exec():
    text = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
    return masks(text, "SigBlk", "SigIgn")

reader, writer = socket.socketpair()
writer.setblocking(False)
signal.set_wakeup_fd(writer.fileno())
BEFORE = means()
signal.set_wakeup_fd(writer.fileno())
BEFORE_EXEC = means_after_exec()

def forked_means(fork):
    here, there = os.pipe()
    pid = fork()
    if pid == 0:
        os.write(there, means().encode())
        os._exit(0)
    os.close(there)
    with open(here) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text

def pty_fork():
    pid, fd = pty.fork()
    if pid:
        masters.append(fd)
    return pid

masters = []

def sleep_in_child(connection):
    try:
        connection.send("begun")
        while True:
            # A signal that comes just before a wait without limit would be handled only after it.
            threading.Event().wait(0.02)
    except KeyboardInterrupt:
        # What multiprocessing would print is no matter here.
        os._exit(1)

class Handler(sockserve.StreamRequestHandler):
    def handle(self):
        what = self.rfile.readline().strip().decode()
        if what in ("fork", "pty"):
            told = forked_means(os.fork if what == "fork" else pty_fork)
            answer = "same" if told == BEFORE else f"{told}\\ninstead of\\n{BEFORE}"
            while masters:
                os.close(masters.pop())
        elif what == "exec":
            told = means_after_exec()
            answer = "same" if told == BEFORE_EXEC else f"{told}\\ninstead of\\n{BEFORE_EXEC}"
        elif what in ("terminate", "quit", "interrupt", "hang up"):
            context = multiprocessing.get_context("fork")
            ours, theirs = context.Pipe()
            child = context.Process(target=sleep_in_child, args=(theirs,))
            child.start()
            assert ours.poll(20)
            signum = {"terminate": "SIGTERM", "quit": "SIGQUIT", "interrupt": "SIGINT", "hang up": "SIGHUP"}[what]
            os.kill(child.pid, getattr(signal, signum))
            child.join(10)
            answer = str(child.exitcode)
            child.kill()
            # The client's input is still there.
            answer += " " + self.rfile.readline().strip().decode()
        elif what == "leave":
            # First: the child that unwinds ends the connection, which both have.
            self.wfile.write(b"left")
            answer = ""
            if os.fork() == 0:
                sys.exit(0)
        else:
            answer = str(os.getpid())
        self.wfile.write(answer.encode())

BASES = {
    "inline": sockserve.TCPServer,
    "thread": sockserve.ThreadingTCPServer,
    "fork": sockserve.ForkingTCPServer,
}

def tell(servers):
    print(servers[0].socket.getsockname()[1], flush=True)

def serve_class(bases):
    cls = type("Server", bases, {"processes": 1})
    with cls(("127.0.0.1", 0), Handler) as server:
        tell([server])
        server.serve_forever()

MODEL = "{model}"
{run}
print("ended", flush=True)
"""


def program(run: str, model: str, before: str = "") -> Program:
    """A server whose handlers make other processes, run in one of the ways."""
    text = PROGRAM.replace("{before}", before).replace("{run}", RUNS[run]).replace("{model}", model)
    return Program(text)


WAYS = [
    (run, model) for run in RUNS for model in ("inline", "thread", "fork") if model != "fork" or run[-1] not in "sk"
]
WAYS += [("class", "fork")]


class Served(NamedTuple):
    """A program that serves, how its handlers run, and where."""

    model: str
    address: tuple[str, int]


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def served_in_each_way(request: pytest.FixtureRequest) -> Iterator[Served]:
    """One program for the tests that only look at what its handlers make."""
    run, model = request.param
    with program(run, model, before="signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})") as served:
        yield Served(model, ("127.0.0.1", int(served.line())))
        served.send(signal.SIGKILL)


def test_a_child_inherits_what_the_program_had(served_in_each_way: Served) -> None:
    """Handlers, ignored and blocked signals and the wake-up descriptor, by every way to make a process."""
    for what in (b"fork\n", b"pty\n", b"exec\n"):
        assert ask(served_in_each_way.address, what, timeout=START_LIMIT) == b"same"


@pytest.mark.parametrize("run", ["serve with processes", "prefork", "serve"])
def test_ignored_signals_stay_ignored_for_what_a_handler_starts(run: str) -> None:
    """A shell's ``&`` ignores SIGINT and SIGQUIT, nohup(1) SIGHUP: a program that is started sees the same."""
    ignore = "for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP): signal.signal(signum, signal.SIG_IGN)"
    with program(run, "thread", before=ignore) as served:
        address = ("127.0.0.1", int(served.line()))
        for what in (b"exec\n", b"fork\n"):
            assert ask(address, what, timeout=START_LIMIT) == b"same"
        served.send(signal.SIGINT)
        served.send(signal.SIGHUP)
        assert ask(address, b"exec\n", timeout=START_LIMIT) == b"same"
        served.send(signal.SIGTERM)
        assert served.line() == "ended"
        assert served.status(LIMIT) == 0


def test_a_signal_to_a_child_is_the_childs_alone(served_in_each_way: Served) -> None:
    """It ends by the signal; the client keeps its input, and the process that serves goes on."""
    model, address = served_in_each_way
    serves = ask(address, b"who\n", timeout=START_LIMIT)
    signals = [(b"terminate", -15), (b"quit", -3), (b"hang up", -1)]
    if model != "thread":
        # CPython 3.13 may run no Python handler, KeyboardInterrupt's included, in what a thread has forked.
        signals.append((b"interrupt", 1))
    for what, status in signals:
        answer = ask(address, what + b"\nmore\n", timeout=START_LIMIT)
        assert answer == b"%d more" % status
    if model != "fork":
        assert ask(address, b"who\n", timeout=START_LIMIT) == serves


@pytest.mark.parametrize("run", ["serve with processes", "prefork"])
@pytest.mark.parametrize("model", ["inline", "thread"])
def test_a_child_that_unwinds_does_not_speak_for_the_worker(run: str, model: str) -> None:
    """``sys.exit()`` in what a handler forked: the supervisor hears nothing of it, and the worker serves on."""
    with program(run, model) as served:
        address = ("127.0.0.1", int(served.line()))
        serves = ask(address, b"who\n", timeout=START_LIMIT)
        assert ask(address, b"leave\n", timeout=START_LIMIT) == b"left"
        wait_until(lambda: not _children_of(int(serves)))
        for _ in range(3):
            assert ask(address, b"who\n", timeout=START_LIMIT) == serves
        assert "WARNING" not in served.errors()
        served.send(signal.SIGTERM)
        assert served.line() == "ended"
        # That request, and not one less for each process that left it.
        assert "with 1 request in progress" not in served.errors()


def _children_of(pid: int) -> list[str]:
    """Those that run: a zombie is left by the handler that does not wait."""
    text = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    pids = [child for path in text for child in path.read_text().split()]
    return [child for child in pids if re.search(r"\) [^Z]", pathlib.Path(f"/proc/{child}/stat").read_text())]


def test_ctrl_c_ends_a_forking_server_in_order() -> None:
    """A terminal's SIGINT reaches the children too: their clients still get their answers."""
    with program("serve", "fork", before="os.setpgid(0, 0)") as served:
        address = ("127.0.0.1", int(served.line()))
        with connect(address, timeout=LIMIT) as client:
            wait_until(lambda: _children_of(served.process.pid))
            client.sendall(b"w")
            os.killpg(served.process.pid, signal.SIGINT)
            # Its input ends by the drain.
            assert client.recv(100).isdigit()
        assert served.line() == "ended"


@pytest.mark.parametrize("run", ["serve with processes", "serve"])
def test_ctrl_c_ends_all(run: str) -> None:
    """A terminal's SIGINT to the whole group ends the program, its workers, and what a handler made."""
    with program(run, "thread", before="os.setpgid(0, 0)") as served:
        address = ("127.0.0.1", int(served.line()))
        assert ask(address, b"who\n", timeout=LIMIT).isdigit()
        os.killpg(served.process.pid, signal.SIGINT)
        assert served.line() == "ended"
        assert served.status(LIMIT) == 0
        assert "Traceback" not in served.errors()
