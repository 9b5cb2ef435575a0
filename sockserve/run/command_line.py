"""The command ``sockserve``: serve a handler class by its name."""

from __future__ import annotations

import argparse
import functools
import importlib
import logging
import os
import re
import select
import shlex
import socket
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from sockserve.errors import AddressError, CrashLoopError, SockserveError, TLSSettingsError
from sockserve.log import log, progress
from sockserve.net.address import ACCEPTED_FORMS, parse_address
from sockserve.run.echo import Echo
from sockserve.run.loading import load_handler
from sockserve.run.opening import AnyServer, address_of, check_tls
from sockserve.run.options import OPTIONS, Option, misfit
from sockserve.run.serve import serve
from sockserve.run.tls_options import add_tls_options, read_tls

__all__ = ["main", "read_arguments"]

STATUSES: dict[type[Exception], int] = {AddressError: 2, CrashLoopError: 3}
"""The exit status for an error that ends the program, if that is not 1."""

LEVELS = ("debug", "info", "warning", "error", "critical")
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what a server has that was bound to every interface
FREE_PORT = "tcp://127.0.0.1:0"

EPILOG = f"""\
SIGTERM or Ctrl-C stops: no new requests, those in progress may end, a second one cuts them. The exit status is 0 then,
1 if an address could not be bound or was lost, 2 for arguments that make no sense, 3 if worker processes end as soon as
they begin, again and again.

With --processes, SIGHUP replaces the workers one after the other by such that load the handler's class anew, without
losing a request; SIGTTIN and SIGTTOU make it one worker more or less. Without it they are answered by a warning. With
--tls-cert, SIGHUP loads the certificates anew; that happens by itself, too, when a client comes and a file has changed.

addresses:
{ACCEPTED_FORMS}

examples:
  sockserve                                            the built-in echo handler on a free port
  sockserve udp://127.0.0.1:9000 unix:/tmp/echo.sock   the same there
  sockserve shop.orders:OrderHandler tcp://:9000       a class of yours, found from the current directory
  sockserve --processes 4 --model pool shop.orders:OrderHandler tcp://:9000
  sockserve --model fork --max-children 8 --drain-timeout 60 shop.orders:OrderHandler tcp://:9000
  sockserve http.server:SimpleHTTPRequestHandler tcp://127.0.0.1:8000
  sockserve --tls-cert server.pem --tls-host b.example=b.pem shop.orders:OrderHandler tls://:8443
  sockserve --proxy-from 10.0.0.0/8 shop.orders:OrderHandler tcp://:9000
  sockserve --control unix:/run/shop/control shop.orders:OrderHandler tcp://:9000
  sockserve ctl /run/shop/control status               what that one does; "sockserve ctl --help" tells more
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say (None: those of this process) and return the exit status; what is not 0 is explained.

    Raises SystemExit: with status 2 for arguments that make no sense, with 0 after ``--help`` and ``--version``.
    """
    _open_missing_streams()
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["ctl"] and hasattr(os, "fork"):
        return importlib.import_module("sockserve.run.ctl").main(words[1:])  # type: ignore[no-any-return]
    options = read_arguments(argv)
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if _is_terminal(sys.stderr):
        progress.setLevel(logging.INFO)
    try:
        serve(
            options.name or options.handler,
            *options.addresses,
            **{option.name: getattr(options, option.name) for option in OPTIONS},
            tls=options.tls,
            ready=functools.partial(_tell, options.handler),
        )
    except (SockserveError, OSError) as error:
        sys.stderr.write(f"sockserve: {getattr(error, 'strerror', None) or error}\n")
        return STATUSES.get(type(error), 1)
    except ImportError as error:
        if error.name != "greenlet":
            raise
        sys.stderr.write(f"sockserve: {error}\n")
        return 1
    return 0


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, the handler class and the addresses. Raises SystemExit as ``main()``."""
    # The package stands above this module.
    version = importlib.import_module("sockserve").__version__
    parser = argparse.ArgumentParser(
        prog="sockserve",
        usage="%(prog)s [OPTION ...] [package.module:Handler] [ADDRESS ...]",
        description="Serve a request handler class until SIGTERM or Ctrl-C.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sockserve {version}")
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    for option in OPTIONS:
        kind = option.kind
        parser.add_argument(
            option.flag,
            metavar=kind.metavar,
            choices=kind.choices,
            type=functools.partial(_read, option),
            default=option.default,
            help=option.help,
        )
    add_tls_options(parser)
    parser.add_argument("--log-level", choices=LEVELS, type=str.lower, default="warning", help="(default: %(default)s)")
    options = parser.parse_intermixed_args(argv)
    found = misfit(vars(options))
    if found is not None:
        option, purpose = found
        parser.error(f"{option.flag} is for {purpose.of_command}")
    try:
        options.name, options.addresses = _read_words(options.words)
        options.tls = read_tls(options)
        check_tls(options.addresses, options.tls)
        options.handler = Echo if options.name is None else load_handler(options.name)
    except (ValueError, TLSSettingsError) as error:
        parser.error(str(error))
    return options


def _read(option: Option, text: str) -> Any:
    try:
        return option.kind.read(text)
    except ValueError as error:
        # argparse would tell the text alone of this one.
        raise argparse.ArgumentTypeError(str(error)) from None


def _read_words(words: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """The handler's name and the addresses, either of which may be left out: for the echo handler, or a free port."""
    names_handler = bool(words) and not _is_address(words[0])
    addresses = words[names_handler:]
    for address in addresses:
        parse_address(address)
    return words[0] if names_handler else None, addresses or [FREE_PORT]


def _is_address(word: str) -> bool:
    try:
        parse_address(word)
    except AddressError as error:
        if word.count(":") == 1 and all(name.isidentifier() for name in re.split("[:.]", word)):
            return False
        raise ValueError(f"neither a handler, package.module:Class, nor an address: {error}") from None
    return True


def _tell(handler: type, servers: tuple[AnyServer, ...]) -> None:
    """Say where they listen, and how to talk to the echo handler there.

    In one write, so that the lines of two programs do not mix.
    """
    lines = [f"Listening on {address_of(server)}" for server in servers]
    if handler is Echo:
        commands = [command for server in servers if (command := _client_of(server)) is not None]
        lines += ["Talk to it from another terminal:", *(f"  echo hello | {command}" for command in commands)]
    if _is_terminal(sys.stdout):
        lines.append("Ctrl-C stops it and lets requests in progress end; a second Ctrl-C cuts them.")
    _write_if_possible("".join(f"{line}\n" for line in lines))


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        # Closed.
        return False


def _write_if_possible(text: str) -> None:
    """Write to standard output what fits there now: closed, full, or read by no process, it must not stop a server."""
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] - pythonw, and descriptor 1 closed at the start
        return
    # A path may hold bytes that are no text.
    encoding = sys.stdout.encoding or "utf-8"
    data = text.encode(encoding, "backslashreplace")
    try:
        fd = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        # A notebook's, or one that a test put there.
        sys.stdout.write(data.decode(encoding))
        return
    try:
        # Past its buffer, whose rest Python would try to write again at the end, and fail with status 120.
        if not hasattr(select, "poll") or _is_writable(fd):
            os.write(fd, data)
    except OSError as error:
        log.info("cannot tell where it listens: %s", error)


def _is_writable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


def _open_missing_streams() -> None:
    """Open the null device as standard input, output or error where a parent closed it.

    The next file or socket would get the descriptor, and what a library or a child writes to its standard error would
    go to a client.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # open(2) gives the lowest free descriptor: this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _client_of(server: AnyServer) -> str | None:
    if server.tls is not None:
        return f"python3 -m sockserve.client {address_of(server)} --insecure"
    return _netcat(server.socket)


def _netcat(listener: socket.socket) -> str | None:
    """A command that sends its input and ends after a second of silence; None: nc has no word for such an address."""
    flags = "-w 1" if listener.type == socket.SOCK_STREAM else "-u -w 1"
    name = listener.getsockname()
    if isinstance(name, bytes):
        return None
    if isinstance(name, str):
        return f"nc {flags} -U {shlex.quote(name)}"
    host, port, *_ = name
    return f"nc {flags} {ANYWHERE.get(host, host)} {port}"
