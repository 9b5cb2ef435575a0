"""The pages about coming from another library: their program and ours give the same clients the same answers."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from support.programs import START_LIMIT
from support.under_test import LIMIT

import sockserve

ROOT = pathlib.Path(sockserve.__file__).parent.parent
HOW_TO = ROOT / "docs/how-to"
FILE = re.compile(r"^```\{code-block\} python\n:caption: (\S+)\n\n(.*?)^```$", re.DOTALL | re.MULTILINE)
Address = tuple[str, int]

# Every process of the tests has addresses of its own: all of 127.0.0.0/8 is loopback.
HOST = f"127.{128 + os.getpid() // 65536 % 64}.{os.getpid() // 256 % 256}.{os.getpid() % 254 + 1}"


def lines(address: Address) -> bytes:
    """What a client reads that asks twice on one connection."""
    with socket.create_connection(address, LIMIT) as client:
        answers = client.makefile("rb")
        found = b""
        for question in (b"one\n", b"two\n"):
            client.sendall(question)
            found += answers.readline()
        return found


def page(address: Address) -> bytes:
    """The body of the answer to a browser."""
    with socket.create_connection(address, LIMIT) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        head, _, body = client.makefile("rb").read().partition(b"\r\n\r\n")
        assert b" 200 " in head.splitlines()[0]
        return body


PAGES: dict[str, tuple[str, list[str], Callable[[Address], bytes], bytes]] = {
    "migrate-http-server": ("http", ["before.py"], page, b"hello\n"),
    "migrate-gevent": ("gevent", ["before.py"], lines, b"ONE\nTWO\n"),
    "migrate-asyncio": ("asyncio", ["before.py"], lines, b"ONE\nTWO\n"),
    "migrate-twisted": ("twisted", ["before.py"], lines, b"ONE\nTWO\n"),
    "migrate-gunicorn": ("gunicorn", ["-m", "gunicorn", "--no-control-socket", "app:app"], page, b"hello\n"),
}
"""Of each page: the library, how its program is started, what a client asks, and what both programs answer."""


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with the page's files, which listen where no other test does."""
    text = (HOW_TO / f"{request.getfixturevalue('name')}.md").read_text("utf-8")
    for name, code in FILE.findall(text):
        (tmp_path / name).write_text(code.replace("127.0.0.1", HOST), "utf-8")
    return tmp_path


@contextlib.contextmanager
def started(arguments: list[str], folder: pathlib.Path) -> Iterator[subprocess.Popen[str]]:
    """A Python process that serves, for the length of the block."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _wait_until_it_listens(process)
        yield process
    except BaseException as error:
        process.kill()
        error.add_note(f"stderr of {arguments}:\n{process.communicate()[1]}")
        raise
    finally:
        process.terminate()
        process.communicate(timeout=LIMIT)


def _wait_until_it_listens(process: subprocess.Popen[str]) -> None:
    for _ in range(int(START_LIMIT / 0.02)):
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection((HOST, 9000)).close()
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"the server ended with status {process.wait(0.02)}")
    raise TimeoutError("the server does not listen")


@pytest.mark.parametrize("name", PAGES)
def test_our_program_answers_and_ends_well(name: str, folder: pathlib.Path) -> None:
    """It gives the answers, and SIGTERM ends it with status 0."""
    _, _, ask, answer = PAGES[name]
    with started(["after.py"], folder) as process:
        assert ask((HOST, 9000)) == answer
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0


@pytest.mark.parametrize("name", [name for name, (library, *_) in PAGES.items() if importlib.util.find_spec(library)])
def test_the_other_program_gives_the_same_answers(name: str, folder: pathlib.Path) -> None:
    """So the page shows one program twice."""
    _, arguments, ask, answer = PAGES[name]
    with started(arguments, folder):
        assert ask((HOST, 9000)) == answer


def test_in_ci_every_library_is_there() -> None:
    """Where the extra ``test`` brings them all, none of the programs goes untried."""
    missing = [library for library, *_ in PAGES.values() if importlib.util.find_spec(library) is None]
    assert sys.version_info >= (3, 14) or os.environ.get("CI") != "true" or not missing


def test_every_page_of_this_kind_is_tried() -> None:
    """Each how-to page with a program before and after is among those above, and has its table."""
    pages = {path.stem for path in HOW_TO.glob("migrate-*.md")}
    assert pages == set(PAGES)
    for name in pages:
        assert "\n| there | here |\n" in (HOW_TO / f"{name}.md").read_text("utf-8")
