"""``sockserve ctl PATH COMMAND``: asks a program that runs with ``--control unix:PATH``."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence

from sockserve.run.control import COMMANDS

__all__ = ["main"]

CONNECT_TIMEOUT = 10.0
"""Seconds until the program has to accept."""


def main(argv: Sequence[str]) -> int:
    """Print the answer; return 0, or 1 if there is none, or it is an error. SystemExit as ``argparse``."""
    parser = argparse.ArgumentParser(
        prog="sockserve ctl",
        description="Ask or tell a program that runs with --control unix:PATH.",
        epilog="\n".join(["commands:", *(f"  {name:10}{text}" for name, text in COMMANDS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("command", metavar="COMMAND", choices=tuple(COMMANDS))
    options = parser.parse_args(argv)
    path = options.path.removeprefix("unix:")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(CONNECT_TIMEOUT)
            connection.connect(path)
            connection.sendall(options.command.encode() + b"\n")
            # A drain takes as long as its requests do.
            connection.settimeout(None)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
    except OSError as error:
        sys.stderr.write(f"sockserve ctl: {path}: {error.strerror or error}\n")
        return 1
    text = answer.decode(errors="replace").rstrip("\n")
    if not text or text.startswith("error:"):
        sys.stderr.write(f"sockserve ctl: {text or 'no answer'}\n")
        return 1
    sys.stdout.write(f"{text}\n")
    return 0
