"""The code in the documents runs as it stands there, page by page, but for the places that it listens on.

A block with a caption is a file; other Python blocks of a page run one after the other, as one program; a console block
is typed, where ``|`` or a backslash at the end of a line continues it: a server is started and stays, anything else has
to print what the page shows, where ``...`` stands for any text.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import pytest
from support.log_watch import ExpectLog
from support.under_test import LIMIT

import sockserve
from sockserve import testing

ROOT = pathlib.Path(sockserve.__file__).parent.parent
FENCE = re.compile(r"^```(?:\{code-block\} )?(\w+)\n(?::caption: (\S+)\n\n)?(.*?)^```$", re.DOTALL | re.MULTILINE)
SHOWN_ONLY = {"ini", "text"}
"""Languages of blocks that are not for Python and not for a shell."""

WARNINGS = {"hostile-clients": "refused 1 by Limits"}
"""What the log says beside some pages, which show just that."""


class Block(NamedTuple):
    """A piece of code of a page."""

    language: str
    caption: str
    code: str


def _blocks(page: pathlib.Path) -> list[Block]:
    return [Block(*groups) for groups in FENCE.findall(page.read_text("utf-8"))]


PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if _blocks(page)]


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """A directory with a name that is short enough for a socket's path; programs find their modules in it."""
    modules = set(sys.modules)
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.syspath_prepend(name)
        monkeypatch.chdir(name)
        yield pathlib.Path(name)
    for module in set(sys.modules) - modules:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(name):
            del sys.modules[module]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_the_code_of_a_page_runs(page: pathlib.Path, directory: pathlib.Path, expect_log: ExpectLog) -> None:
    """Its files, its program and its commands do what the page says."""
    if page.stem in WARNINGS:
        expect_log(logging.WARNING, WARNINGS[page.stem])
    for other in page.parent.glob("*.md"):
        # A tutorial's later steps build on its earlier ones.
        for block in _blocks(other):
            if block.caption:
                (directory / block.caption).write_text(_moved(block.code, directory))
    namespace: dict[str, Any] = {"__name__": page.stem}
    with _Shell(directory) as shell:
        for block in _blocks(page):
            code = _moved(block.code, directory)
            if block.language in SHOWN_ONLY:
                continue
            if block.caption:
                (directory / block.caption).write_text(code)
            elif block.language == "python":
                exec(compile(code, f"{page.name}", "exec"), namespace)  # noqa: S102 - it is ours
            else:
                assert block.language == "console"
                for command, output in re.findall(r"^\$ ((?:.*[|\\]\n)*.*\n)((?:[^$\n].*\n)*)", code, re.MULTILINE):
                    shell.type(command.strip().replace("\\\n", ""), output)


def _moved(code: str, directory: pathlib.Path) -> str:
    """Let a port be a path, which is free."""
    code = re.sub(r"(?<=[:\" ])/(?:tmp|run)/(?=\w)", f"{directory}/", code)
    code = re.sub(r"tcp://127\.0\.0\.1:([1-9]\d+)", rf"unix:{directory}/\1", code)
    return re.sub(r"udp://127\.0\.0\.1:([1-9]\d+)", rf"unix-dgram:{directory}/\1", code)


class _Shell:
    """Types commands; the server that it started last stays until the next one, or the end."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self._stack = contextlib.ExitStack()
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def type(self, command: str, output: str) -> None:
        """Do what a person does, and see what it sees."""
        command = re.sub(r"^sockserve\b", "python -m sockserve", command)
        addresses = self._addresses_served_by(command)
        command = re.sub(r"\bpython(?= )", shlex.quote(sys.executable), command)
        if addresses:
            self._stack.close()
            self._stack.enter_context(self._served(shlex.split(command), addresses))
            return
        done = subprocess.run(
            ["bash", "-c", command],  # noqa: S607
            env=self._environment,
            cwd=self._directory,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        expected = ".*".join(map(re.escape, output.split("...")))
        assert re.fullmatch(expected, done.stdout + done.stderr, re.DOTALL), done.stdout + done.stderr

    def _addresses_served_by(self, command: str) -> list[str]:
        words = shlex.split(command)
        text = command if words[:3] == ["python", "-m", "sockserve"] else ""
        if len(words) == 2 and words[0] == "python" and "serve(" in (program := pathlib.Path(words[1]).read_text()):
            text = program
        return re.findall(rf"unix(?:-dgram)?:{self._directory}/[\w.-]+", text)

    @contextlib.contextmanager
    def _served(self, command: list[str], addresses: list[str]) -> Iterator[None]:
        with subprocess.Popen(command, env=self._environment, cwd=self._directory, stdout=subprocess.PIPE) as process:
            try:
                for address in addresses:
                    _wait_for(address, process)
                yield
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=LIMIT)
                assert process.returncode == 0
            finally:
                process.kill()


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(int(LIMIT / 0.01)):
        with contextlib.suppress(OSError):
            testing.connect(address).close()
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"the server ended with status {process.wait(0.01)}")
    raise TimeoutError(f"nobody listens on {address}")


def test_every_block_is_of_a_kind_that_runs_or_is_only_shown() -> None:
    """No code hides from these tests behind another language's name."""
    kinds = {line for page in PAGES for line in re.findall(r"^```(.+)$", page.read_text("utf-8"), re.MULTILINE)}
    names = {"python", "console", *SHOWN_ONLY}
    no_code = {"{eval-rst}", "{toctree}", "{include} ../CHANGELOG.md", "{include} ../../benchmarks/NOTEBOOK.md"}
    assert not {kind for kind in kinds - no_code if kind.removeprefix("{code-block} ").split()[0] not in names}
