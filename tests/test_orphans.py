"""As process 1 of a container: orphans are reaped, exit statuses of the program's own children are not taken."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import pytest
from support.under_test import LIMIT
from support.waiting import wait_until

UNSHARE = ("unshare", "-pf", "--mount-proc", "--kill-child")
IS_ALLOWED = (
    sys.platform == "linux"
    and shutil.which("unshare") is not None
    and subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0
)
needs_namespace = pytest.mark.skipif(
    not IS_ALLOWED and not (os.environ.get("CI") == "true" and os.geteuid() == 0),
    reason="a PID namespace needs root and unshare(1)",
)

HANDLER = """
import os, subprocess
import sockserve

class Runs(sockserve.BaseRequestHandler):
    def handle(self):
        own = subprocess.Popen(["sh", "-c", "true & exit 7"])
        forked = os.fork()
        if not forked:
            os._exit(8)
        # Both are zombies before they are waited for, and so are orphans.
        os.waitid(os.P_PID, own.pid, os.WEXITED | os.WNOWAIT)
        os.waitid(os.P_PID, forked, os.WEXITED | os.WNOWAIT)
        self.request.recv(1)
        statuses = own.wait(), os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])
        self.request.sendall(repr(statuses).encode())
"""
PROGRAM = (
    HANDLER
    + """
import sys
sockserve.serve(Runs, "tcp://127.0.0.1:0", ready=lambda servers: print(servers[0].server_address[1], flush=True))
sys.exit(3)
"""
)


def children_of(pid: int) -> list[int]:
    """The numbers of all children of a process with one thread."""
    return [int(number) for number in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@needs_namespace
@pytest.mark.parametrize(
    ("what", "status"),
    [
        (("-m", "sockserve", "leaves:Runs", "tcp://127.0.0.1:0"), 0),
        (("-m", "sockserve", "--processes", "1", "leaves:Runs", "tcp://127.0.0.1:0"), 0),
        (("-m", "sockserve", "--model", "fork", "leaves:Runs", "tcp://127.0.0.1:0"), 0),
        (("-m", "sockserve", "--model", "pool", "leaves:Runs", "tcp://127.0.0.1:0"), 0),
        (("-m", "sockserve", "--model", "inline", "leaves:Runs", "tcp://127.0.0.1:0"), 0),
        (("program.py",), 3),
    ],
)
def test_process_1_reaps_orphans_and_nothing_else(tmp_path: pathlib.Path, what: tuple[str, ...], status: int) -> None:
    """Orphans go, handlers get the statuses of their own children, and SIGTERM ends all with the program's status."""
    (tmp_path / "leaves.py").write_text(HANDLER)
    (tmp_path / "program.py").write_text(PROGRAM)
    with subprocess.Popen(
        [*UNSHARE, sys.executable, *what], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as run:
        try:
            assert run.stdout is not None
            port = int(run.stdout.readline().rsplit(":", 1)[-1])
            (first,) = children_of(run.pid)
            for _ in range(3):
                with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as client:
                    client.sendall(b"x")
                    assert client.recv(100) == b"(7, 8)"
            wait_until(lambda: len(children_of(first)) == 1)
            os.kill(first, signal.SIGTERM)
            assert run.wait(LIMIT) == status
        finally:
            run.kill()
