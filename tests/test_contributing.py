"""What CONTRIBUTING.md tells a newcomer to do works when it is done."""

from __future__ import annotations

import concurrent.futures
import pathlib
import re
import socket
from typing import Any

import pytest
import test_layers
from support.handlers import handlers
from support.log_watch import ExpectLog

import sockserve
from sockserve.pytest_plugin import Running
from sockserve.testing import ask

ROOT = pathlib.Path(sockserve.__file__).parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
TEST, MIX_IN = re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.DOTALL)
H = handlers(sockserve)


def run(code: str) -> dict[str, Any]:
    """The names that a program has made."""
    names: dict[str, Any] = {"__name__": "contributing"}
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)  # noqa: S102 - the document's own code
    return names


def test_its_test_is_green(running: Running, expect_log: ExpectLog) -> None:
    """The test that shows how to write one passes."""
    run(TEST)["test_an_error_is_for_one_client_only"](running, expect_log)


@pytest.mark.parametrize("kind", ["TCPServer", "UDPServer"])
def test_its_mix_in_serves(running: Running, kind: str) -> None:
    """The mix-in that shows how to write one serves more clients than it takes at once, each of them, and ends."""
    names = run(MIX_IN)
    base = getattr(sockserve, kind)
    handler = H.Echo if base.socket_type == socket.SOCK_STREAM else H.EchoDatagram
    server = running(type("Server", (names["ExecutorMixIn"], base), {})(("127.0.0.1", 0), handler))
    questions = [b"%d" % number for number in range(4 * names["MOST"])]
    with concurrent.futures.ThreadPoolExecutor(2 * names["MOST"]) as clients:
        assert list(clients.map(lambda question: ask(server, question), questions)) == questions


def test_its_layers_are_those_that_are_proved() -> None:
    """The table of layers names all of them, in their order."""
    table = CONTRIBUTING.partition("| layer |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(test_layers.LAYERS)


def test_its_files_and_commands_are_there() -> None:
    """Each file of the tests and each make target that it names exists, but the module that the reader is to write."""
    files = set(re.findall(r"tests/[\w/]+\.py", CONTRIBUTING)) - {"tests/test_executor.py"}
    assert not [name for name in files if not (ROOT / name).exists()]
    targets = re.findall(r"`make ([\w-]+)", CONTRIBUTING)
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert not [target for target in targets if not re.search(rf"^{target}( [\w-]+)*:", makefile, re.MULTILINE)]
