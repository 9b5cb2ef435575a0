"""The servers that everybody writes first: each run by hand, by the command, and by people who mean no good."""

from __future__ import annotations

import re
import signal
import socket
import sys

import pytest
from example import EXAMPLES, Example, run

from sockserve import testing


def netcat(address: str, text: str, *flags: str) -> str:
    """What nc(1) prints, once it has sent a text and the server has closed."""
    host, port = address.partition("://")[2].rsplit(":", 1)
    return run("nc", "-N", *flags, host.strip("[]"), port, input=text)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_upper(signum: int) -> None:
    """Each line comes back in upper case, and is printed with who wrote it."""
    with Example("upper.py") as example:
        assert netcat(example.address(), "hello\nyou") == "HELLO\nYOU"
        assert re.search(r"\('127.0.0.1', \d+\) wrote b'hello\\n'\n", example.end(signum))


def test_thread_names() -> None:
    """Three clients are answered in three threads, and the script ends by itself."""
    said = run(sys.executable, str(EXAMPLES / "thread_names.py"))
    answers = re.findall(r"Received: (\S.*): Hello World ([123])\n", said)
    assert [number for _, number in answers] == ["1", "2", "3"]
    assert len({name for name, _ in answers}) == 3


def test_one_request() -> None:
    """One client is answered, then the program ends; or nobody comes, and it ends too."""
    with Example("one_request.py", "60") as example:
        assert netcat(example.address(), "me\n") == "You asked: me\n"
        assert example.process.wait(20) == 0
    assert run(sys.executable, str(EXAMPLES / "one_request.py"), "0.01").endswith("no client came\n")


def test_greeter() -> None:
    """It speaks first, and says of each piece that it has received it."""
    with Example("greeter.py") as example:
        with testing.Stall(example.address()) as client:
            assert client.connection.recv(100) == b"Welcome to the server\n"
            for each in (b"one", b"\xfftwo"):
                client.connection.sendall(each)
                assert client.connection.recv(100) == b"Data received: " + each
        example.end()


def test_thanks() -> None:
    """Whoever connects is thanked, also one who talks without being asked."""
    with Example("thanks.py") as example:
        address = example.address()
        assert netcat(address, "", "-d") == "Thank you for connecting\n"
        assert testing.ask(address, b"x" * 50_000) == b"Thank you for connecting\n"
        example.end()


def test_dual_family() -> None:
    """Each address of localhost is served, on one port, and the client finds the first that works."""
    families = {each[0] for each in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
    with Example("dual_family.py") as example:
        addresses = [example.address() for _ in families]
        (port,) = {address.rpartition(":")[2] for address in addresses}
        answers = [testing.ask(address, b"").decode() for address in addresses]
        assert {answer.split()[3] for answer in answers} == {family.name for family in families}
        client = [sys.executable, str(EXAMPLES / "dual_family_client.py")]
        assert "connected\nYou came over AF_INET" in run(*client, "localhost", port)
        example.end()
        said = run(*client, "localhost", port, status=1)
    assert said.count("Connection refused\n") == len(families) + 1
    assert said.endswith("no server answers: Connection refused\n")
