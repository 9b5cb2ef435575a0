"""Daytime, time, finger and gopher: with the clients that people have, and what each protocol has to refuse."""

from __future__ import annotations

import pathlib
import socket
import struct
import sys
import time

import pytest
from example import EXAMPLES, Example, host_and_port, run

from sockserve import testing


def test_daytime() -> None:
    """The same line over TCP and UDP; a datagram whose sender claims to be a service is not answered."""
    with Example("daytime.py") as example:
        stream, datagrams = example.address(), example.address()
        for flags in (["-N"], ["-u", "-w", "20", "-W", "1"]):
            address = datagrams if "-u" in flags else stream
            line = run("nc", *flags, *host_and_port(address), input="\n")
            moment = time.mktime(time.strptime(line, "%A, %B %d, %Y %H:%M:%S-UTC\n")) - time.timezone
            assert abs(moment - time.time()) < 100
        for data in (b"", bytes(65507)):
            assert testing.ask(datagrams, data).endswith(b"-UTC\r\n")
        assert "Exception" not in example.end()


def bind_as_a_service(client: socket.socket) -> None:
    """Bind to a free port that only root may have."""
    for port in range(1023, 600, -1):
        try:
            client.bind(("127.0.0.1", port))
        except PermissionError as error:
            pytest.skip(f"only root may be a service: {error}")
        except OSError:
            continue
        return


def test_a_datagram_from_a_service_is_not_answered() -> None:
    """Two services that answer each other would never stop."""
    with Example("daytime:Daytime", "udp://127.0.0.1:0") as example, socket.socket(type=socket.SOCK_DGRAM) as service:
        bind_as_a_service(service)
        host, port = host_and_port(example.address())
        service.sendto(b"", (host, int(port)))
        # Answered after the other one was not: a datagram is handled within a thread's start.
        assert testing.ask(f"udp://{host}:{port}", b"")
        service.setblocking(False)
        with pytest.raises(BlockingIOError):
            service.recv(100)
        example.end()


def test_time() -> None:
    """Four bytes: the seconds since 1900, over TCP and UDP."""
    with Example("daytime:Time", "tcp://127.0.0.1:0", "udp://127.0.0.1:0") as example:
        for _ in range(2):
            (seconds,) = struct.unpack("!I", testing.ask(example.address(), b""))
            assert abs(seconds - 2208988800 - time.time()) < 100
        example.end()


def test_finger() -> None:
    """Who is here, who somebody is, in short and in full; no question is passed on to another host."""
    with Example("finger.py") as example:
        where = host_and_port(example.address())
        answers = {
            "": "ada       Ada Lovelace\njon       Jon Postel\n",
            "ada": "Login: ada\nName: Ada Lovelace\n",
            "/W ada": "Login: ada\nName: Ada Lovelace\nPlan: The Analytical Engine weaves algebraical patterns.\n",
            "nobody": "No such user.\n",
            "ada@elsewhere": "Finger forwarding service denied.\n",
            "@127.0.0.1": "Finger forwarding service denied.\n",
            "../ada": "No such user.\n",
            "\x1b[2J": "No such user.\n",
        }
        for question, answer in answers.items():
            assert run("nc", "-N", *where, input=f"{question}\r\n") == answer
        assert run("nc", "-N", *where, input="ad") == "A query is one line of at most 512 bytes.\n"
        example.end()


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder to be served, beside what must not be."""
    (tmp_path / "secret").write_text("secret")
    public = tmp_path / "public"
    (public / "sub").mkdir(parents=True)
    (public / "read me.txt").write_text("Hello\n")
    (public / "sub" / "picture.png").write_bytes(bytes(100_000))
    (public / ".hidden").write_text("hidden")
    (public / "bad\nname").write_text("a line of its own in the menu")
    (public / "out").symlink_to("../secret")
    (public / "round").symlink_to("round")
    return public


def test_gopher(folder: pathlib.Path) -> None:
    """A menu, a file, and a menu below, with curl and with the client that comes along."""
    with Example("gopher.py", cwd=folder) as example:
        host, port = host_and_port(example.address())
        top = f"gopher://{host}:{port}/"
        menu = run("curl", "--silent", "--show-error", top)
        assert menu == f"0read me.txt\t/read me.txt\t{host}\t{port}\n1sub\t/sub\t{host}\t{port}\n.\n"
        assert run("curl", "--silent", "--show-error", f"{top}0/read%20me.txt") == "Hello\n"
        client = [sys.executable, str(EXAMPLES / "gopher_client.py")]
        assert run(*client, top) == f"read me.txt  {top}0/read me.txt\nsub  {top}1/sub\n"
        assert run(*client, f"{top}1/sub") == f"picture.png  {top}9/sub/picture.png\n"
        assert testing.ask(f"tcp://{host}:{port}", b"sub/picture.png\r\n") == bytes(100_000)
        example.end()
        assert "Connection refused" in run(*client, top, status=1)


def test_gopher_stays_in_its_folder(folder: pathlib.Path) -> None:
    """Whatever a selector leads to that is not to be served is not found."""
    outside = [b"../secret", b"/../secret", b"sub/../../secret", b"//etc/passwd", b"out", b"/dev/null", b"sub/../../.."]
    hidden = [b".hidden", b"sub/../.hidden"]
    strange = [b"round", b"read me.txt\0", b"\xff", b"x" * 1000, b"x/" * 500, b"read me.txt/x", b"bad"]
    with Example("gopher:Gopher", "tcp://127.0.0.1:0", cwd=folder) as example:
        address = example.address()
        for selector in outside + hidden + strange:
            assert testing.ask(address, selector + b"\r\n") == b"3Not found\t\terror.host\t1\r\n.\r\n"
        example.end()
