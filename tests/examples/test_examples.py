"""Each example is run as its reader would run it: a process, a real client, a signal, and it ends well."""

from __future__ import annotations

import ast
import http.client
import pathlib
import re
import signal
import sys

import pytest
from example import EXAMPLES, ROOT, Example, run
from support.under_test import LIMIT

from sockserve import testing

SIGNALS = [signal.SIGTERM, signal.SIGINT]


# Each kind with each model, and both with both signals: which signal ends it is the affair of its main program.
ECHOES = [
    (kind, model, SIGNALS[(row + column) % 2])
    for row, kind in enumerate(["tcp", "udp", "unix", "unix-dgram"])
    for column, model in enumerate(["thread", "fork"])
]


@pytest.mark.parametrize(("kind", "model", "signum"), ECHOES)
def test_echo(kind: str, model: str, signum: int) -> None:
    """The echo handler answers over every kind of socket, in threads and in children."""
    with Example("echo.py", kind, model) as example:
        address = example.says(r"serving on (.*)$")
        if kind.startswith("unix"):
            text = f"{kind}:{address}"
        else:
            text = "{}://{}:{}".format(kind, *re.findall(r"[\d.]+", address))
        assert testing.ask(text, b"hello") == b"hello"
        assert re.search(r"stopping: Drained\(finished=[01], cut=0\)", example.end(signum))


def test_echo_says_what_it_takes() -> None:
    """A wrong word is answered with the right ones."""
    said = run(sys.executable, str(EXAMPLES / "echo.py"), "tcp", "fibre", status=1)
    assert said.startswith("one of: tcp thread, tcp fork, ")


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("options", [[], ["--fork"]])
def test_echo_everywhere(options: list[str], signum: int) -> None:
    """Four addresses are served at once, and the requests of all are counted."""
    with Example("echo_everywhere.py", *options) as example:
        addresses = [example.address() for _ in range(4)]
        assert [testing.ask(address, b"hello") for address in addresses] == [b"hello"] * 4
        assert "4 handled, 0 failed" in example.end(signum)


@pytest.mark.parametrize("signum", SIGNALS)
def test_hello_http(signum: int) -> None:
    """A browser's ways work: two requests on one connection, HEAD, an old client, and what is refused."""
    with Example("hello_http.py", "tcp://127.0.0.1:0") as example:
        address = example.address()
        client = http.client.HTTPConnection(address.removeprefix("tcp://"), timeout=LIMIT)
        for method, status, body in [
            ("GET", 200, b"Hello, world!\n"),
            ("HEAD", 200, b""),
            ("GET", 200, b"Hello, world!\n"),
        ]:
            client.request(method, "/")
            answer = client.getresponse()
            assert (answer.status, answer.read(), answer.will_close) == (status, body, False)
        client.close()
        assert testing.ask(address, b"GET / HTTP/1.0\r\n\r\n").endswith(b"Connection: close\r\n\r\nHello, world!\n")
        refusals = {
            b"GET / HTTP/3\r\n\r\n": b"400",
            b"GET / HTTP/1.1\r\nHost": b"400",
            b"PUT / HTTP/1.1\r\n\r\n": b"501",
            b"GET / HTTP/1.1\r\n" + 100 * b"A: b\r\n": b"431",
        }
        for request, status in refusals.items():
            assert testing.ask(address, request).startswith(b"HTTP/1.1 " + status)
        assert testing.ask(address, b"") == b""
        with testing.Stall(address, b"GET / HTTP/1.1\r\n\r\n") as idle:
            assert idle.connection.recv(1) == b"H"
            assert "0 failed" in example.end(signum)


def lines_of_code(source: str) -> int:
    """How many lines there are without the imports, the docstrings, the comments and the empty ones."""
    others = set()
    for node in ast.walk(ast.parse(source)):
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_docstring or isinstance(node, ast.Import | ast.ImportFrom):
            others |= set(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and n not in others for n, line in lines)


def test_every_example_is_short_and_tested() -> None:
    """Whoever adds an example adds its test and its name to the list; it is a page, and hides no module."""
    # The folder of recipes to deploy has a test of its own.
    names = {path.stem for path in EXAMPLES.iterdir() if path.name not in ("__pycache__", "deploy")}
    tests = "".join(path.read_text() for path in pathlib.Path(__file__).parent.glob("test_*.py"))
    assert {"echo", "upper"} <= names
    assert not {name for name in names if f'"{name}.py"' not in tests}
    assert not names & sys.stdlib_module_names
    documents = (ROOT / "docs/examples.md").read_text()
    assert not {name for name in names if f"`{name.removesuffix('_client')}`" not in documents}
    sources = {name: (EXAMPLES / f"{name}.py").read_text() for name in names}
    assert not {name for name, source in sources.items() if source.count("\n") > 105 or lines_of_code(source) > 60}
