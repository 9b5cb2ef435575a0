"""The other end of ``logging.handlers.SocketHandler``: log records of other programs, written to this one's log.

    python examples/log_receiver.py tcp://127.0.0.1:9020

A record comes as its length in four bytes, then a pickle. A pickle is a program: to unpickle what a stranger sent is
to run it. So only those instructions are accepted that build plain values, and of the values only those fields are used
that a log needs, each for what it is. A length may say 4 GiB; nothing is read or reserved before it has been judged.
"""

from __future__ import annotations

import logging
import pickle
import pickletools
import sys
from typing import Any

import sockserve

LARGEST_RECORD = 65536
# TUPLE is not among them: the hash of tuples that contain each other twice takes for ever.
PLAIN = {
    *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "MARK", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "NONE", "INT"),
    *("BININT", "BININT1", "BININT2", "LONG", "BINFLOAT", "BINUNICODE", "BINPUT", "BINGET", "STOP"),
}

log = logging.getLogger("received")


class NoRecordError(Exception):
    """What came is not a log record, or not one that is accepted."""


def plain_values(data: bytes) -> dict[str, Any]:
    """Return a pickled dict of plain values. Raises NoRecordError for anything else."""
    try:
        if {opcode.name for opcode, _, _ in pickletools.genops(data)} <= PLAIN:
            return dict(pickle.loads(data))  # noqa: S301 - nothing but the instructions above
    except Exception as error:
        raise NoRecordError(f"not a pickle: {error}") from error
    raise NoRecordError("not a pickle of plain values")


class LogReceiver(sockserve.StreamRequestHandler):
    """Logs what a SocketHandler sends."""

    client_speaks_first = True
    timeout = 3600

    def handle(self) -> None:
        """Take records until the client leaves, or sends what is none."""
        try:
            while length := self.rfile.read(4):
                self.take(int.from_bytes(length, "big"))
        except NoRecordError as error:
            log.warning("%s: %s", self.client_address, error)

    def take(self, length: int) -> None:
        """Read one record and log it."""
        if not 0 < length <= LARGEST_RECORD:
            raise NoRecordError(f"a record of {length} bytes")
        values = plain_values(self.rfile.read(length))
        name, level, text = values.get("name"), values.get("levelno"), values.get("msg")
        if not (isinstance(name, str) and isinstance(level, int) and isinstance(text, str)):
            raise NoRecordError("a record without a name, a level or a message")
        # As arguments: in a format string of a stranger's, %1000000000d is a gigabyte.
        log.log(max(0, min(level, logging.CRITICAL)), "%s %r: %r", self.client_address[0], name, text)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sockserve.serve(LogReceiver, *(sys.argv[1:] or ["tcp://127.0.0.1:0"]))
