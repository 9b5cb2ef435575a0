"""A running example, and what strangers send to it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import selectors
import shutil
import signal
import subprocess
import sys
from typing import Any, Self

import pytest
from support.under_test import LIMIT

import sockserve
from sockserve import testing

__all__ = ["EXAMPLES", "ROOT", "Example", "flood", "host_and_port", "run"]

ROOT = pathlib.Path(sockserve.__file__).parent.parent
EXAMPLES = ROOT / "examples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


class Example:
    """An example in a process of its own for the length of a block.

    ``Example("upper.py", ...)`` runs the script, ``Example("upper:Upper", ...)`` serves the handler by the command.
    """

    def __init__(self, name: str, *arguments: str, **options: Any) -> None:
        command = [str(EXAMPLES / name)] if name.endswith(".py") else ["-m", "sockserve", f"examples.{name}"]
        self.process = subprocess.Popen(
            [sys.executable, *command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**ENVIRONMENT, **options.pop("env", {})},
            **options,
        )
        self.said = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _where: object) -> None:
        self.process.kill()
        rest, _ = self.process.communicate()
        if error is not None:
            error.add_note(f"the example said:\n{self.said}{rest}")

    def says(self, pattern: str) -> str:
        """Return the group in the next line that matches."""
        assert self.process.stdout is not None
        while line := testing.call_within(LIMIT, self.process.stdout.readline):
            self.said += line
            if found := re.search(pattern, line):
                return found[1]
        raise AssertionError(f"the example ended and did not say {pattern!r}")

    def address(self) -> str:
        """Return the next address that it says it listens on."""
        return self.says(r"[Ll]istening on (.*)$")

    def end(self, signum: int = signal.SIGTERM) -> str:
        """Stop it, and return all that it said, after it ended with status 0 and without a traceback."""
        self.process.send_signal(signum)
        rest, _ = self.process.communicate(timeout=LIMIT)
        self.said += rest
        assert self.process.returncode == 0
        assert "Traceback" not in self.said
        return self.said

    def peak_memory(self) -> int:
        """The most bytes of memory that it ever had (proc(5), VmHWM)."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
        return int(kilobytes) * 1024


def host_and_port(address: str) -> tuple[str, str]:
    """What programs take for an address text."""
    host, _, port = address.partition("://")[2].rpartition(":")
    return host, port


def run(*command: str, status: int = 0, **options: Any) -> str:
    """Return what a program prints; it has to end with that status. One that is missing fails the test in CI only."""
    if shutil.which(command[0]) is None and os.environ.get("CI") != "true":
        pytest.skip(f"there is no {command[0]} on this machine")
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT, check=False, **options
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def flood(address: str, start: bytes, piece: bytes, size: int) -> tuple[bytes, int]:
    """Send ``start``, then ``piece`` again and again, while the server takes it; at most ``size`` bytes.

    Returns the server's answer, until it closed or reset the connection, and how many bytes it took.
    """
    answer, sent, unsent = bytearray(), 0, memoryview(start)
    piece *= max(1, 65536 // len(piece))
    with testing.connect(address, timeout=LIMIT) as client, selectors.DefaultSelector() as selector:
        client.setblocking(False)
        selector.register(client, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while ready := selector.select(LIMIT):
            try:
                if ready[0][1] & selectors.EVENT_READ:
                    data = client.recv(65536)
                    if not data:
                        break
                    answer += data
                elif sent < size:
                    count = client.send(unsent)
                    sent += count
                    unsent = unsent[count:] or memoryview(piece)
                else:
                    break
            except ConnectionError:
                # What it answered before may still be there to be read.
                with contextlib.suppress(ConnectionError):
                    answer += client.recv(65536)
                break
        else:
            raise TimeoutError("the server neither takes nor answers nor closes")
    return bytes(answer), sent
