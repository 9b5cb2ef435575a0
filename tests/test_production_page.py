"""The tutorial's service in production runs as its page says: by hand, behind HAProxy, restarted, and under systemd."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from support.programs import START_LIMIT
from support.under_test import LIMIT
from support.waiting import wait_until
from test_snippets import FENCE

import sockserve
from sockserve import testing

ROOT = pathlib.Path(sockserve.__file__).parent.parent
PAGE = (ROOT / "docs/tutorial/production.md").read_text("utf-8")
FILES = {caption: code for _, caption, code in FENCE.findall(PAGE) if caption}
TYPED = [
    (command.replace("\\\n", ""), output)
    for language, _, code in FENCE.findall(PAGE)
    if language == "text"
    for command, output in re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:[^$\n].*\n)*)", code, re.MULTILINE)
]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """A directory with the page's files; the ports are free ones. Its path is short enough for a socket's."""
    with tempfile.TemporaryDirectory() as name:
        for caption, code in FILES.items():
            pathlib.Path(name, caption).write_text(re.sub(r"(127\.0\.0\.1):90\d\d", r"\1:0", code))
        monkeypatch.chdir(name)
        run("python certificates.py")
        yield pathlib.Path(name)


def run(command: str) -> str:
    """What a command prints that ends by itself."""
    command = re.sub(r"^python\b", sys.executable, command)
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run(["bash", "-c", command], env=ENVIRONMENT, timeout=START_LIMIT, check=True, **options).stdout  # noqa: S607


def prints(command: str, expected: str) -> bool:
    """Whether a command prints that."""
    return run(command) == expected


class Service:
    """The service of the page, which has begun."""

    def __init__(self, process: subprocess.Popen[bytes], log: pathlib.Path) -> None:
        self.process = process
        self._log = log

    def lines(self) -> list[dict[str, Any]]:
        """Its log."""
        return [json.loads(line) for line in self._log.read_text().splitlines(keepends=True) if line.endswith("}\n")]

    def says(self, pattern: str) -> list[str]:
        """The part in parentheses of each message that is like this."""
        found = (re.fullmatch(pattern, line["message"]) for line in self.lines())
        return [match[1] for match in found if match is not None]

    @functools.cached_property
    def ports(self) -> dict[str, str]:
        """Of each port on the page the one that the system chose."""
        wait_until(lambda: len(self.says(r".*: (worker \d) .* is ready")) == 2)
        (port,) = self.says(r"listening on tls://0\.0\.0\.0:(\d+)")
        assert self.says(r"listening on tls://\[::\]:(\d+)") == [port]
        return {"9443": port} | {
            number: self.says(rf"{desk}: listening on tcp://127\.0\.0\.1:(\d+)")[0]
            for number, desk in (("9080", "health"), ("9081", "agent"))
        }

    def agent(self) -> str:
        """What HAProxy is told."""
        return testing.ask(f"tcp://127.0.0.1:{self.ports['9081']}", b"").decode()

    def is_ready(self) -> bool:
        """What health checks are told."""
        question = b"GET /ready HTTP/1.0\r\n\r\n"
        return b" 200 " in testing.ask(f"tcp://127.0.0.1:{self.ports['9080']}", question).splitlines()[0]


@contextlib.contextmanager
def started(place: pathlib.Path, *command: str) -> Iterator[Service]:
    """Start it; at the end of the block it is told to end, and again, which ends the time of a lame duck."""
    with (place / "log").open("wb") as log, subprocess.Popen(command, env=ENVIRONMENT, stderr=log) as process:
        try:
            service = Service(process, place / "log")
            yield service
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: not service.is_ready())
            assert service.agent() == "drain\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT) == 0
        finally:
            process.kill()
    # Each line is JSON but for those of systemd's tool.
    assert len(service.lines()) + (command[0] != sys.executable) * 3 == len((place / "log").read_text().splitlines())


def by_hand(place: pathlib.Path) -> contextlib.AbstractContextManager[Service]:
    """As the page types it."""
    (command,) = [command for command, _ in TYPED if "orders.py" in command]
    arguments = command.replace("9443", "0").replace('"', "").split()
    assert arguments[:2] == ["python", "orders.py"]
    return started(place, sys.executable, *arguments[1:])


@contextlib.contextmanager
def haproxy(place: pathlib.Path, service: Service) -> Iterator[int]:
    """Run HAProxy with the page's file, on the port that is returned. It inherits the socket."""
    text, bind = FILES["haproxy.cfg"], "bind :::8443 v4v6"
    assert text.count(bind) == 1
    for number, port in service.ports.items():
        assert number in text
        text = text.replace(number, port)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        (place / "haproxy.cfg").write_text(text.replace(bind, f"bind fd@{listener.fileno()}"))
        command = ["haproxy", "-db", "-f", "haproxy.cfg"]
        with subprocess.Popen(command, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL) as process:
            try:
                yield listener.getsockname()[1]
            finally:
                process.terminate()


def context(certificate: str | None = "alice") -> ssl.SSLContext:
    """A client's, with a certificate or without."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations("tls/ca.crt")
    if certificate is not None:
        made.load_cert_chain(f"tls/{certificate}.crt", f"tls/{certificate}.key")
    return made


def ask(address: tuple[str, int], tls: ssl.SSLContext) -> tuple[bytes, Any]:
    """The answer to an order, and the address of the client."""
    plain = socket.create_connection(address, LIMIT)
    with tls.wrap_socket(plain, server_hostname="localhost") as client:
        client.sendall(b"tea\n")
        return client.recv(100), client.getsockname()


def test_what_is_typed_on_the_page_does_what_it_shows(place: pathlib.Path) -> None:
    """One command after the other; HAProxy stands before the service when it is asked for."""
    if shutil.which("haproxy") is None and os.environ.get("CI") != "true":
        pytest.skip("there is no haproxy on this machine")
    kinds = [re.sub(r"^python (\w+\.py|-m [\w.]+).*|^(\w+) .*", r"\1\2", command) for command, _ in TYPED]
    assert kinds == ["certificates.py", "orders.py", "-m sockserve.client", "curl", "curl", "haproxy", "buy.py"]
    with by_hand(place) as service, haproxy(place, service) as port:
        (place / "buy.py").write_text(FILES["buy.py"].replace('"localhost", 8443', f'"127.0.0.1", {port}'))
        for kind, (typed, shown) in zip(kinds, TYPED, strict=True):
            if kind not in ("orders.py", "haproxy"):
                command = re.sub(r"\b90\d\d\b", lambda number: service.ports[number[0]], typed)
                # What a worker has counted the supervisor may learn a moment later.
                wait_until(functools.partial(prints, command, shown))


@pytest.mark.skipif(
    shutil.which("haproxy") is None and os.environ.get("CI") != "true", reason="there is no haproxy on this machine"
)
def test_through_haproxy_each_client_is_known(place: pathlib.Path) -> None:
    """Its address stands in the access log; without a certificate there is no answer; HAProxy limits an address."""
    with by_hand(place) as service, haproxy(place, service) as port:
        address = ("127.0.0.1", port)
        answer, client = ask(address, context())
        assert answer == b"alice gets tea\n"
        wait_until(lambda: [*client] in [line.get("client") for line in service.lines()])
        (line,) = [line for line in service.lines() if line.get("client") == [*client]]
        assert line["outcome"] == "handled"
        assert 0 <= line["seconds"] < LIMIT
        with contextlib.suppress(OSError):
            # TLS 1.3: the client is told that it was refused when it reads.
            assert ask(address, context(None))[0] == b""
        # Over IPv6 no proxy comes here.
        assert ask(("::1", int(service.ports["9443"])), context())[0] == b"alice gets tea\n"
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                plain = stack.enter_context(socket.create_connection(address, LIMIT))
                stack.enter_context(context().wrap_socket(plain, server_hostname="localhost"))
            with pytest.raises(OSError, match=r"EOF|reset"):
                ask(address, context())


def test_a_rolling_restart_refuses_no_client(place: pathlib.Path) -> None:
    """Clients come all the time while the code changes: each is answered, by the old code or by the new."""
    with by_hand(place) as service:
        address, tls = ("::1", int(service.ports["9443"])), context()
        assert service.agent() == "up ready\n"
        code = (place / "orders.py").read_text()
        (place / "orders.py").write_text(code.replace(" gets ", " has "))
        service.process.send_signal(signal.SIGHUP)
        answers = {ask(address, tls)[0]}
        while answers != {b"alice gets tea\n", b"alice has tea\n"}:
            assert answers == {b"alice gets tea\n"}
            answers.add(ask(address, tls)[0])
        assert testing.ask(f"unix:{place}/orders.sock", b"tea\n").startswith(b"this machine ")


def test_under_systemd_it_serves_the_socket_of_its_unit(place: pathlib.Path) -> None:
    """With the arguments of the service unit and the name of the socket unit, by systemd's own tool."""
    tool = shutil.which("systemd-socket-activate")
    assert tool is not None, "it is of Debian's package systemd"
    (arguments,) = re.findall(r"^ExecStart=\S+/python (.*)$", FILES["orders.service"], re.MULTILINE)
    (name,) = re.findall(r"^FileDescriptorName=(.*)$", FILES["orders.socket"], re.MULTILINE)
    path = place / "orders.sock"
    start = [tool, "-l", str(path), f"--fdname={name}", "-E", "PYTHONPATH", sys.executable]
    with started(place, *start, *arguments.replace("9443", "0").split()) as service:
        # The tool writes to the log, too, until it becomes the service.
        wait_until(path.exists)
        assert testing.ask(f"unix:{path}", b"tea\n") == b"this machine gets tea\n"
        assert ask(("::1", int(service.ports["9443"])), context())[0] == b"alice gets tea\n"


def test_the_service_is_as_short_as_the_page_says() -> None:
    """Less than sixty lines of code."""
    assert len([line for line in FILES["orders.py"].splitlines() if line.strip()]) < 60
    assert "less than sixty lines of code" in PAGE
