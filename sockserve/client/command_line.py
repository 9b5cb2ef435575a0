"""``python -m sockserve.client ADDRESS``: sends what is typed and prints what comes back."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import ssl
import sys
import tempfile
import threading
from collections.abc import Generator, Iterable, Sequence

from sockserve.client.streams import Conversation, Plain, Tls
from sockserve.client.terminal import READ_SIZE, OutputError, input_lines, write_out
from sockserve.errors import AddressError
from sockserve.net.address import ACCEPTED_FORMS, Address, parse_address
from sockserve.net.connecting import connect
from sockserve.net.listen import adopt
from sockserve.seconds import socket_limit_of

__all__ = ["main", "read_arguments"]

CONNECT_TIMEOUT = 10.0
"""Seconds for a connection: few people wait longer before they press Ctrl-C."""

ANSWER_TIMEOUT = 2.0
"""Seconds for the answer to a datagram: long for a network, short for a reader."""

INTERRUPTED = 130
"""The exit status after Ctrl-C: 128 and the number of SIGINT, as a shell reports it."""

EPILOG = f"""\
Over a stream the input goes as it is, its end is told to the server (half-close), and the answer is printed until the
server closes. Datagrams are lines: each line of the input is sent as one, without its line end, then one answer is
waited for and printed.

The exit status is 0; 1 if the server does not answer or the connection breaks, 2 for arguments that make no sense,
130 after Ctrl-C.

addresses:
{ACCEPTED_FORMS}

examples:
  python -m sockserve.client tcp://127.0.0.1:9000 --line hello
  python -m sockserve.client unix:/run/app.sock <request.json
  python -m sockserve.client tcp://localhost:8443 --tls --cafile server.pem --line hello
  python -m sockserve.client tls://localhost:8443 --cafile server.pem --proxy-header 192.0.2.1:5000,192.0.2.9:443
  python -m sockserve.client udp://127.0.0.1:514 --wait 0 --line "<13>something happened"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit status; stderr has the reason of a 1.

    ``argv``: the arguments; None: those of this process. SystemExit: status 2 for arguments that make no sense, 0 after
    ``--help``. In the main thread: Ctrl-C ends it with status 130.
    """
    options = read_arguments(argv)
    trouble = "no answer from"
    try:
        with _open(options.address) as connection:
            if connection.type == socket.SOCK_DGRAM:
                lines = [options.line] if options.line is not None else input_lines()
                _exchange_datagrams(connection, (options.proxy_header + line for line in lines), options.wait)
            else:
                if options.proxy_header:
                    connection.sendall(options.proxy_header)
                layer = Plain() if options.tls is None else Tls(connection, options.tls, _host(options.address))
                trouble = "lost the connection to"
                Conversation(connection, layer, options.line).run()
    except KeyboardInterrupt:
        return INTERRUPTED
    except OutputError as error:
        sys.stderr.write(f"sockserve.client: cannot print the answer: {error}\n" if str(error) else "")
        return 1 if str(error) else 0
    except (OSError, AddressError) as error:
        sys.stderr.write(f"sockserve.client: {trouble} {options.address}: {_reason(error)}\n")
        return 1
    return 0


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options and the address. SystemExit: as ``main()``."""
    parser = argparse.ArgumentParser(
        prog="python -m sockserve.client",
        description="Send a line, or what is typed, to a server and print its answer.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("address", metavar="ADDRESS", help="where the server listens, in one of the forms below")
    parser.add_argument("--line", metavar="TEXT", type=os.fsencode, help="send this line instead of the input")
    parser.add_argument("--tls", action="store_true", help="speak TLS, and trust the system's certificates")
    parser.add_argument("--cafile", metavar="FILE", help="with --tls, trust the certificates in this PEM file instead")
    parser.add_argument("--insecure", action="store_true", help="with --tls, trust every certificate")
    parser.add_argument(
        "--proxy-header",
        metavar="SOURCE,DESTINATION",
        help="begin with a PROXY header, as 192.0.2.1:5000,192.0.2.9:443; local: a connection of the proxy's own",
    )
    parser.add_argument(
        "--wait",
        metavar="S",
        type=_seconds,
        help=f"seconds to wait for the answer to a datagram (default: {ANSWER_TIMEOUT:g}; 0: expect none)",
    )
    options = parser.parse_args(argv)
    try:
        options.address = parse_address(options.address)
    except AddressError as error:
        parser.error(str(error))
    options.tls = options.tls or options.address.scheme == "tls"
    try:
        options.proxy_header = _proxy_header(options.proxy_header, options.address.type == socket.SOCK_DGRAM)
    except ValueError as error:
        parser.error(f"--proxy-header: {error}")
    if options.tls and options.address.type == socket.SOCK_DGRAM:
        parser.error("--tls is for streams")
    if (options.cafile or options.insecure) and not options.tls:
        parser.error("--cafile and --insecure say which certificates --tls trusts")
    if options.wait is not None and options.address.type == socket.SOCK_STREAM:
        parser.error("--wait is for datagrams: a stream ends when the server closes")
    options.wait = ANSWER_TIMEOUT if options.wait is None else options.wait
    try:
        options.tls = _context(options) if options.tls else None
    except OSError as error:
        parser.error(f"--cafile {options.cafile}: {_reason(error)}")
    return options


def _proxy_header(text: str | None, is_datagram: bool) -> bytes:
    if text is None:
        return b""
    # Only here: a program without proxies need not pay for it.
    from sockserve.net.proxy_header import ProxyHeader  # noqa: PLC0415

    if text == "local":
        return ProxyHeader(2, "LOCAL").to_bytes()
    source, comma, destination = text.partition(",")
    if not comma:
        raise ValueError(f"{text!r} is neither two addresses with a comma between them nor local")
    first, second = (parse_address(f"tcp://{each}").sockaddr for each in (source, destination))
    return ProxyHeader(2, "PROXY", first, second).to_bytes(datagram=is_datagram)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in seconds")
    return seconds


def _context(options: argparse.Namespace) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.cafile)
    if _host(options.address) is None or options.insecure:
        # A Unix socket or a descriptor has no host name that a certificate could be for.
        context.check_hostname = False
    if options.insecure:
        context.verify_mode = ssl.CERT_NONE
    return context


def _host(address: Address) -> str | None:
    if not isinstance(address.sockaddr, tuple):
        return None
    return "localhost" if address.is_everywhere else address.sockaddr[0].partition("%")[0]


@contextlib.contextmanager
def _open(address: Address) -> Generator[socket.socket]:
    with contextlib.ExitStack() as last_first:
        if isinstance(address.sockaddr, int):
            connection = last_first.enter_context(adopt(address.sockaddr))
            # Raises ENOTCONN now, not at the first send().
            connection.getpeername()
        else:
            connection = last_first.enter_context(connect(str(address), timeout=CONNECT_TIMEOUT))
        if _needs_name(connection):
            directory = last_first.enter_context(tempfile.TemporaryDirectory(prefix="sockserve-"))
            connection.bind(f"{directory}/client")
            # The server may run as another user. The socket is connected: other senders are refused (unix(7)).
            os.chmod(f"{directory}/client", 0o666)  # noqa: S103
            os.chmod(directory, 0o711)  # noqa: S103
        yield connection


def _needs_name(connection: socket.socket) -> bool:
    """Whether a Unix datagram socket has no name yet: then it cannot be answered (unix(7))."""
    is_unix = connection.family == getattr(socket, "AF_UNIX", None)
    return is_unix and connection.type == socket.SOCK_DGRAM and not connection.getsockname()


def _exchange_datagrams(connection: socket.socket, datagrams: Iterable[bytes], wait: float) -> None:
    for datagram in datagrams:
        connection.settimeout(CONNECT_TIMEOUT)
        connection.send(datagram)
        if wait:
            connection.settimeout(socket_limit_of(wait))
            try:
                answer = connection.recv(READ_SIZE)
            except TimeoutError:
                raise TimeoutError(f"not within {wait:g} s") from None
            write_out(answer if answer.endswith(b"\n") else answer + b"\n")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{error.verify_message} (see --cafile and --insecure)"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or str(error)).replace('_', ' ').lower()}"
    return getattr(error, "strerror", None) or str(error)
