"""A syslog receiver: datagrams in the new form (RFC 5424) and in the old one (RFC 3164) go into an SQLite database.

    python examples/syslog_store.py udp://127.0.0.1:5514 unix-dgram:/tmp/log.sock
    logger --server 127.0.0.1 --port 5514 --udp "something happened"
    sqlite3 syslog.sqlite "SELECT host, severity, text FROM message"

Whatever a datagram holds, it is stored as text of bounded length, and by a parameter: never as a part of the SQL. What
is not syslog is stored as RFC 3164, 4.3.3 asks for: as a message of the sender's, with the priority "user, notice".
"""

from __future__ import annotations

import contextlib
import logging
import re
import sqlite3
import sys
import time

import sockserve

DATABASE = "syslog.sqlite"
LONGEST_TEXT = 8192
TABLE = """CREATE TABLE IF NOT EXISTS message
    (received REAL, sender TEXT, facility INTEGER, severity INTEGER, time TEXT, host TEXT, tag TEXT, text TEXT)"""

PRIORITY = r"<(?P<priority>0|[1-9][0-9]{0,2})>"
NEW = re.compile(
    PRIORITY + r"1 (?P<time>\S{1,32}) (?P<host>\S{1,255}) (?P<tag>\S{1,48}) \S{1,128} \S{1,32}"
    r' (?:-|(?:\[(?:[^\]"]|"(?:[^"\\]|\\.)*")*\])+)(?: \ufeff?(?P<text>.*))?',
    re.ASCII | re.DOTALL,
)
OLD = re.compile(
    PRIORITY + r"(?P<time>[A-Z][a-z]{2} [ 0-9]\d \d\d:\d\d:\d\d) (?:(?P<host>\S{0,254}[^\s:]) )?(?P<tag>[^\s:\[]{1,48})"
    r"(?:\[[^\]]{0,64}\])?: ?(?P<text>.*)",
    re.ASCII | re.DOTALL,
)
BARE = re.compile(PRIORITY + r"(?P<text>.*)", re.ASCII | re.DOTALL)


class Syslog(sockserve.DatagramRequestHandler):
    """Stores a message and answers nothing, as a syslog server does."""

    def handle(self) -> None:
        """Store one datagram."""
        text = self.packet[:LONGEST_TEXT].decode("utf-8", "replace").rstrip("\0\n")
        found = NEW.fullmatch(text) or OLD.fullmatch(text) or BARE.fullmatch(text)
        fields = found.groupdict() if found else {}
        priority = int(fields.get("priority", 13))
        if priority > 191:
            priority, fields = 13, {}
        sender = self.client_address[0] if self.client_address else ""
        row = (time.time(), sender, *divmod(priority, 8), *map(fields.get, ("time", "host", "tag")))
        with contextlib.closing(sqlite3.connect(DATABASE, timeout=10)) as database, database:
            # A crash of the machine may lose the last messages; the network may lose them as well.
            database.execute("PRAGMA synchronous = OFF")
            database.execute(TABLE)
            database.execute("INSERT INTO message VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, fields.get("text") or text))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    # One datagram after the other: a database has one writer at a time.
    sockserve.serve(Syslog, *(sys.argv[1:] or ["udp://127.0.0.1:0"]), model="inline")
