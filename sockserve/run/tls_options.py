"""The words of the command line for TLS: they become the one ``tls`` of ``serve()``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["add_tls_options", "read_tls"]

PLAIN_HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 23\r\n\r\nThis port speaks TLS.\r\n"
"""What a client gets that forgot TLS: a browser shows the line."""

_OPTIONS = (
    ("--tls-cert", "FILE", "serve tls:// addresses with this certificate: a PEM file, loaded anew when it changes"),
    ("--tls-key", "FILE", "its private key (default: it is in the file of the certificate)"),
    ("--tls-client-ca", "FILE", "clients must show a certificate that one in this PEM file has signed"),
    ("--tls-alpn", "NAME,...", "application protocols, the most wanted first, as h2,http/1.1"),
)


def add_tls_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    for flag, metavar, text in _OPTIONS:
        parser.add_argument(flag, metavar=metavar, help=text)
    parser.add_argument(
        "--tls-host",
        metavar="NAME=CERT[,KEY]",
        action="append",
        default=[],
        help="another certificate for this host, or *.example.com; may be given for each host",
    )


def read_tls(options: argparse.Namespace) -> Any:
    """The ``sockserve.TLS`` that the options mean; None without them.

    Raises ValueError for what makes no sense, TLSSettingsError for a file that cannot be used.
    """
    given = [flag for flag, *_ in _OPTIONS if getattr(options, _name(flag)) is not None]
    if options.tls_cert is None:
        if given or options.tls_host:
            raise ValueError(f"{(given or ['--tls-host'])[0]} is for --tls-cert")
        return None
    from sockserve.net.tls_settings import TLS  # noqa: PLC0415 - it needs ssl, which others need not pay for

    client_ca, alpn = options.tls_client_ca, _words(options.tls_alpn)
    hosts: dict[str, TLS] = {}
    for text in options.tls_host:
        name, certificate, key = _host(text)
        hosts[name] = TLS(certificate, key, client_ca=client_ca, alpn=alpn)
    return TLS(options.tls_cert, options.tls_key, client_ca=client_ca, alpn=alpn, hosts=hosts, answer_plain=PLAIN_HTTP)


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _words(text: str | None) -> Sequence[str]:
    return [] if text is None else text.split(",")


def _host(text: str) -> tuple[str, str, str | None]:
    found = re.fullmatch(r"([^=,]+)=([^,]+)(?:,([^,]+))?", text)
    if found is None:
        raise ValueError(
            f"--tls-host {text!r} is not a name, '=' and a certificate, with ',' and a key behind it or not"
        )
    return found[1], found[2], found[3]
