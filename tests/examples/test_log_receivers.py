"""The receivers of log records and of syslog: with the senders that everybody has, and with those that nobody wants."""

from __future__ import annotations

import contextlib
import logging.handlers
import os
import pathlib
import pickle
import socket
import sqlite3
from collections.abc import Iterator
from typing import Any

from example import Example, host_and_port, run
from support.waiting import wait_until

from sockserve import testing


@contextlib.contextmanager
def socket_handler(address: str) -> Iterator[logging.Logger]:
    """A logger whose records are sent there."""
    host, port = host_and_port(address)
    handler = logging.handlers.SocketHandler(host, int(port))
    logger = logging.Logger("app.part")  # noqa: LOG001 - one that nobody else has
    logger.addHandler(handler)
    yield logger
    handler.close()


def test_log_receiver() -> None:
    """What a program logs is logged: its name, the level, the text."""
    with Example("log_receiver.py") as example:
        with socket_handler(example.address()) as logger:
            logger.warning("%s has %d\nlines", "this", 2, extra={"more": [1, 2.5, None, True]})
            logger.error("second")
        assert example.says(r"^(.*app\.part.*)$") == "WARNING:received:127.0.0.1 'app.part': 'this has 2\\nlines'"
        assert example.says(r"^(.*app\.part.*)$") == "ERROR:received:127.0.0.1 'app.part': 'second'"
        example.end()


class Evil:
    """Removes a file when it is unpickled."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.remove, (str(self.path),)


def framed(data: bytes) -> bytes:
    """A pickle as SocketHandler sends it."""
    return len(data).to_bytes(4, "big") + data


def endless_hash() -> bytes:
    """A pickle of a key whose hash takes 2**60 steps."""
    return b"}((tq\0" + b"".join(b"(h%ch%ctq%c" % (i, i, i + 1) for i in range(60)) + b"Ns."


NO_RECORDS = {
    b"\xff\xff\xff\xff": "a record of 4294967295 bytes",
    b"\0\0\0\0": "a record of 0 bytes",
    framed(b"\x80\x04K\x01."): "not a pickle of plain values",
    framed(b"K\x01."): "not a pickle: ",
    framed(b"xxxx"): "not a pickle: ",
    framed(pickle.dumps({"msg": "text"}, 1)): "a record without a name, a level or a message",
    # A table of two milliards of entries.
    framed(b"}r\xff\xff\xff\x7f."): "not a pickle of plain values",
    framed(endless_hash()): "not a pickle of plain values",
    framed(b"L" + b"9" * 60000 + b"L\n."): "not a pickle: ",
    b"\0\0\1\0half": "not a pickle: ",
    b"\0": "a record of 0 bytes",
}


def test_what_is_no_log_record() -> None:
    """It is refused with one line, and the next client is served; nothing was reserved, computed or run."""
    with Example("log_receiver:LogReceiver", "tcp://127.0.0.1:0") as example:
        address = example.address()
        before = example.peak_memory()
        for data, complaint in NO_RECORDS.items():
            assert testing.ask(address, data) == b""
            assert complaint in example.says(r"WARNING received: (.*)$")
        with socket_handler(address) as logger:
            logger.error("%s", "fine")
        assert example.says(r"(fine)")
        assert example.peak_memory() - before < 4 * 2**20
        example.end()


def test_a_pickle_that_would_do_something(tmp_path: pathlib.Path) -> None:
    """It is not run."""
    victim = tmp_path / "victim"
    victim.touch()
    with Example("log_receiver:LogReceiver", "tcp://127.0.0.1:0") as example:
        address = example.address()
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            assert testing.ask(address, framed(pickle.dumps(Evil(victim), protocol))) == b""
            assert "not a pickle of plain values" in example.says(r"WARNING received: (.*)$")
        example.end()
    assert victim.exists()


# syslog


def rows(folder: pathlib.Path) -> list[tuple[Any, ...]]:
    """What has been stored: facility, severity, host, tag and text of each message, in order."""
    with contextlib.closing(sqlite3.connect(folder / "syslog.sqlite", timeout=20)) as database:
        with contextlib.suppress(sqlite3.OperationalError):
            return database.execute("SELECT facility, severity, host, tag, text FROM message").fetchall()
        return []


def test_syslog_from_logger(tmp_path: pathlib.Path) -> None:
    """logger(1) in the new form, in the old one, and over a Unix socket as libc's syslog() does."""
    with Example("syslog_store.py", "udp://127.0.0.1:0", "unix-dgram:log", cwd=tmp_path) as example:
        host, port = host_and_port(example.address())
        network = ("logger", "--server", host, "--port", port, "--udp", "--tag", "app", "--priority", "daemon.err")
        run(*network, "--rfc5424", "--sd-id", "x@1", "--sd-param", 'a="b c"', "new: form")
        run(*network, "--rfc3164", "--id=12", "old: form")
        run("logger", "--socket", str(tmp_path / "log"), "--tag", "app", "local: form")
        wait_until(lambda: len(rows(tmp_path)) == 3)
        example.end()
    name = socket.gethostname()
    assert rows(tmp_path) == [
        (3, 3, name, "app", "new: form"),
        (3, 3, name.partition(".")[0], "app", "old: form"),
        (1, 5, None, "app", "local: form"),
    ]


def test_what_is_no_syslog(tmp_path: pathlib.Path) -> None:
    """Any datagram is stored as a message of bounded length, and none is a part of the SQL."""
    texts = [
        b"'); DROP TABLE message; --",
        b"<192>out of range",
        b"<013>zeros",
        b"<" + b"9" * 1000,
        b"\xff\0\x1b[2J",
        b'<14>1 - - - - - [x a="never closed' + b'\\"' * 10_000,
        b"x" * 65507,
        b"",
        b"<14>1 - - - - - - good",
    ]
    with Example("syslog_store:Syslog", "udp://127.0.0.1:0", cwd=tmp_path) as example:
        host, port = host_and_port(example.address())
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            for count, text in enumerate(texts, 1):
                client.sendto(text, (host, int(port)))
                wait_until(lambda count=count: len(rows(tmp_path)) == count)
        assert "Exception" not in example.end()
    stored = rows(tmp_path)
    assert [row[4] for row in stored[:5]] == [text.decode("utf-8", "replace") for text in texts[:5]]
    assert {row[:2] for row in stored[:5]} == {(1, 5)}
    assert max(len(row[4]) for row in stored) == 8192
    assert stored[-1] == (1, 6, "-", "-", "good")
