"""The command serves whatever its parent made of standard input, output and error."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile

import pytest
from support.programs import START_LIMIT
from support.waiting import wait_until
from test_every_interface import free_port

LEFT_BY_THE_PARENT = {
    "input closed": "<&-",
    "output closed": ">&-",
    "error closed": "2>&-",
    "all closed": "<&- >&- 2>&-",
    "output full": ">/dev/full",
    "error full": "2>/dev/full",
    "reader gone": "| true",
}


def is_answered(port: int) -> bool:
    """Whether an echo server listens there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"hello")
            return client.recv(10) == b"hello"
    except ConnectionRefusedError:
        return False


@pytest.mark.parametrize("options", [[], ["--processes", "1"]])
@pytest.mark.parametrize("streams", LEFT_BY_THE_PARENT)
def test_it_serves(streams: str, options: list[str]) -> None:
    """A stream that is closed, full, or read by no process costs nothing but what would be written there."""
    port = free_port()
    # The reader is gone before the command begins.
    wait = "read line; " if streams == "reader gone" else ""
    command = f'({wait}exec "$@") {LEFT_BY_THE_PARENT[streams]}'
    arguments = [sys.executable, "-m", "sockserve", *options, f"tcp://127.0.0.1:{port}"]
    process = subprocess.Popen(
        ["/bin/sh", "-c", command, "sh", *arguments], stdin=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None
    with process, process.stdin:
        try:
            process.stdin.write(b"\n")
            process.stdin.flush()
            wait_until(lambda: is_answered(port), START_LIMIT)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(START_LIMIT)


def test_an_output_that_is_not_read_does_not_hold_it_up() -> None:
    """A pipe that is full already would block the line that says where it listens."""
    port = free_port()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(reader, "rb"), open(writer, "wb", buffering=0) as full:
        while full.write(b"x" * 4096) is not None:
            pass
        os.set_blocking(writer, True)
        process = subprocess.Popen(
            [sys.executable, "-m", "sockserve", f"tcp://127.0.0.1:{port}"], stdout=full, stdin=subprocess.DEVNULL
        )
        with process:
            try:
                wait_until(lambda: is_answered(port), START_LIMIT)
            finally:
                process.terminate()
            assert process.wait(START_LIMIT) == 0


def test_what_a_handler_starts_has_standard_streams() -> None:
    """Where the parent closed them, a program that a handler runs finds the null device and no client's socket."""
    port = free_port()
    code = (
        "import os, subprocess, sockserve\n"
        "from sockserve.run import command_line\n"
        "class H(sockserve.StreamRequestHandler):\n"
        "    def handle(self):\n"
        "        names = 'echo $(readlink /proc/$$/fd/0) $(readlink /proc/$$/fd/1) $(readlink /proc/$$/fd/2) >&9'\n"
        "        subprocess.run(['sh', '-c', names], pass_fds=(9,))\n"
        "        self.wfile.write(os.pread(9, 1000, 0))\n"
        "import sys, types\n"
        "sys.modules['mine'] = types.ModuleType('mine'); sys.modules['mine'].H = H\n"
        f"command_line.main(['mine:H', 'tcp://127.0.0.1:{port}'])\n"
    )
    command = 'exec "$@" <&- >&- 2>&- 9<>"$FILE"'
    with tempfile.NamedTemporaryFile() as file:
        process = subprocess.Popen(
            ["/bin/sh", "-c", command, "sh", sys.executable, "-c", code], env={**os.environ, "FILE": file.name}
        )
        with process:
            try:
                wait_until(lambda: connected(port), START_LIMIT)
                with socket.create_connection(("127.0.0.1", port), timeout=START_LIMIT) as client:
                    assert client.makefile("rb").read().split()[:3] == [b"/dev/null"] * 3
            finally:
                process.terminate()


def connected(port: int) -> bool:
    """Whether a server listens there."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
