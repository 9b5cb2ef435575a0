"""``serve(processes=…)`` and ``sockserve --processes``: several addresses, every model, one supervisor."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest
from support import handlers
from support.models import HERE
from support.programs import SEARCH_PATH, START_LIMIT, Program
from support.serving import Operator, serve_with
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve import testing
from sockserve.run.echo import Echo

TCP = "tcp://127.0.0.1:0"


@pytest.mark.parametrize("model", HERE)
def test_serves_several_addresses_and_counts(model: str, tmp_path: pathlib.Path) -> None:
    """All addresses are served by the workers, on the signal all end, and the counters are those of all."""

    def script(operator: Operator) -> None:
        for server in operator.servers:
            assert [testing.ask(server, b"ping") for _ in range(3)] == [b"ping"] * 3
        operator.signal()

    addresses = [TCP, f"unix:{tmp_path}/s"]
    if model != "greenlet":
        addresses += ["udp://127.0.0.1:0", f"unix-dgram:{tmp_path}/d"]
    counters = serve_with(script, Echo, *addresses, model=model, processes=2)
    expected = 3 * len(addresses)
    assert (counters.accepted, counters.handled, counters.active) == (expected, expected, 0)
    assert not list(tmp_path.iterdir())


def test_the_handler_runs_in_a_worker() -> None:
    """It knows its number."""

    class Who(sockserve.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"%d %d" % (self.server.worker_id, os.getpid()))

    def script(operator: Operator) -> None:
        number, pid = testing.ask(operator.server, b"").split()
        assert number in (b"0", b"1")
        assert int(pid) != os.getpid()
        operator.signal()

    serve_with(script, Who, TCP, processes=2)


def test_a_request_is_drained() -> None:
    """The port is free while a request in progress is answered."""
    gate = handlers.handlers(sockserve).Gate

    def script(operator: Operator) -> None:
        with testing.Stall(operator.server) as client:
            assert gate.begun.wait()
            operator.signal()
            operator.wait_until_asked()
            gate.opened.set()
            assert client.read() == b"open"

    assert serve_with(script, gate, TCP, processes=2, model="inline").handled == 1


def test_in_another_thread_shutdown_ends_it() -> None:
    """Without signals it returns when every server was shut down."""
    listening = threading.Event()
    servers: list[Any] = []

    def ready(opened: tuple[Any, ...]) -> None:
        servers.extend(opened)
        listening.set()

    thread = threading.Thread(target=sockserve.serve, args=(Echo, TCP, TCP), kwargs={"ready": ready, "processes": 1})
    thread.start()
    assert listening.wait(LIMIT)
    assert [testing.ask(server, b"ping") for server in servers] == [b"ping", b"ping"]
    for server in servers:
        assert thread.is_alive()
        server.shutdown(LIMIT)
    thread.join(LIMIT)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    "options",
    [
        {"processes": 0},
        {"processes": 2, "model": "fork"},
        {"max_requests": 5},
        {"processes": 2, "max_requests": 0},
        {"processes": 2, "worker_timeout": 0},
    ],
)
def test_options_that_make_no_sense_are_value_errors(options: dict[str, Any]) -> None:
    """They are refused before anything is bound."""
    with pytest.raises(ValueError, match=r"process|positive"):
        sockserve.serve(Echo, TCP, **options)


VERSION = """
import sockserve, shop.version

class Handler(sockserve.StreamRequestHandler):
    def handle(self):
        self.wfile.write(shop.version.TEXT)
"""


def command(directory: pathlib.Path, *arguments: str) -> subprocess.Popen[str]:
    """The command ``sockserve``, started in a directory."""
    return subprocess.Popen(
        [sys.executable, "-m", "sockserve", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": SEARCH_PATH},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_sighup_loads_the_program_anew(tmp_path: pathlib.Path) -> None:
    """New source is served after it, also of what the handler imports; with a mistake in it the old goes on."""
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "orders.py").write_text(VERSION)
    version = package / "version.py"
    version.write_text("TEXT = b'first'")
    path = f"unix:{tmp_path}/s"
    arguments = "--processes", "1", "--log-level", "info", "shop.orders:Handler", path
    with command(tmp_path, *arguments) as process:
        try:
            assert process.stdout is not None
            assert "Listening" in process.stdout.readline()
            assert testing.ask(path, b"") == b"first"
            # Of another size: a compiled file is told from a new source by its time in seconds, and by that.
            version.write_text("TEXT = b'the second'")
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: testing.ask(path, b"") == b"the second")
            version.write_text("this is no program")
            process.send_signal(signal.SIGHUP)
            assert process.stderr is not None
            for line in process.stderr:
                if "the rolling restart is given up" in line:
                    break
            assert testing.ask(path, b"") == b"the second"
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT) == 0
        finally:
            process.kill()


def test_the_command_names_a_crash_loop(tmp_path: pathlib.Path) -> None:
    """It exits with status 3, and the last line says why no worker can begin."""
    (tmp_path / "late.py").write_text("""
import os, sockserve
from sockserve.concurrency.prefork import places
places.BACK_OFF_FIRST = 0.01
os.register_at_fork(after_in_child=lambda: os._exit(7))
class Handler(sockserve.BaseRequestHandler):
    pass
""")
    with command(tmp_path, "--processes", "2", "late:Handler", TCP) as process:
        _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 3
    assert "times in a row workers ended as soon as they began" in errors.splitlines()[-1]
    assert "ended with exit status 7, before it was ready" in errors.splitlines()[-1]


@pytest.mark.parametrize("held_up", [0.0, 0.5])
def test_sigterm_before_the_first_worker_is_ready_ends_it_quietly(held_up: float) -> None:
    """Nobody is told then that it serves; also if the worker is ready by the time that its supervisor goes on."""
    script = f"""
        import os, signal, threading, sockserve
        hold_up = lambda: threading.Event().wait({held_up})
        os.register_at_fork(after_in_child=lambda: os.kill(os.getppid(), signal.SIGTERM), after_in_parent=hold_up)
        tell = lambda servers: print([server.socket.getsockname() for server in servers])
        print(sockserve.serve(sockserve.StreamRequestHandler, "{TCP}", processes=1, ready=tell).accepted)
    """
    with Program(script) as program:
        assert program.status(START_LIMIT) == 0, program.errors()
        assert program.line() == "0"
