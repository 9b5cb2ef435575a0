"""A key-value server that speaks enough of Redis's protocol (RESP) for its own tools.

    python examples/key_value.py tcp://127.0.0.1:6380
    redis-cli -p 6380 SET greeting hello
    redis-benchmark -p 6380 -t set,get -q

``handle()`` answers one command; ``keep_open()`` has it called again for the next. A command says beforehand how many
parts it has and how long each is, and may say 4 GiB: what is too much is refused before it is read. The store has a
limit as well.
"""

from __future__ import annotations

import logging
import sys

import sockserve

MOST_PARTS, LONGEST_PART, LONGEST_LINE, MOST_KEYS = 100, 4096, 4096, 10_000
STORE: dict[bytes, bytes] = {}


class ProtocolError(Exception):
    """What came is not RESP, or too much of it."""


class KeyValue(sockserve.StreamRequestHandler):
    """Answers the commands of ``answer_to()``. In threads, that is: a forked child would have a store of its own."""

    client_speaks_first = True
    timeout = 300
    wbufsize = -1
    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Answer one command."""
        try:
            words = self.read_command()
        except ProtocolError as error:
            self.wfile.write(f"-ERR Protocol error: {error}\r\n".encode())
        else:
            self.wfile.write(answer_to(words))
            self.keep_open()

    def read_command(self) -> list[bytes]:
        """Read an array of strings, or a line of words."""
        line = self.read_line()
        if not line.startswith(b"*"):
            return line.split()
        return [self.read_string() for _ in range(number(line, b"*", MOST_PARTS))]

    def read_string(self) -> bytes:
        """Read a string: its length, and that many bytes."""
        data = self.rfile.read(number(self.read_line(), b"$", LONGEST_PART) + 2)
        if not data.endswith(b"\r\n"):
            raise ProtocolError("a string is longer than it says")
        return data[:-2]

    def read_line(self) -> bytes:
        """Read a line, without its end."""
        line = self.rfile.readline(LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise ProtocolError("too long a line, or half of one")
        return line.rstrip(b"\r\n")


def number(line: bytes, kind: bytes, most: int) -> int:
    """Read a number after the letter that says what it counts."""
    digits = line.removeprefix(kind)
    if not (line.startswith(kind) and digits.isdigit() and len(digits) <= 10 and int(digits) <= most):
        raise ProtocolError(f"expected {kind.decode()} and a number up to {most}")
    return int(digits)


def answer_to(words: list[bytes]) -> bytes:
    """Do what a command says."""
    match [word.upper() for word in words[:1]] + words[1:]:
        case []:
            return b""
        case [b"PING"]:
            return b"+PONG\r\n"
        case [b"SET", key, value]:
            if len(STORE) >= MOST_KEYS and key not in STORE:
                return b"-ERR the store is full\r\n"
            STORE[key] = value
            return b"+OK\r\n"
        case [b"GET", key]:
            found = STORE.get(key)
            return b"$-1\r\n" if found is None else b"$%d\r\n%b\r\n" % (len(found), found)
        case [b"DEL", *keys]:
            return b":%d\r\n" % sum(STORE.pop(key, None) is not None for key in keys)
        case _:
            return b"-ERR unknown command, or wrong number of arguments\r\n"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sockserve.serve(KeyValue, *(sys.argv[1:] or ["tcp://127.0.0.1:0"]))
