"""A certificate for loopback, made when it is needed, and TLS contexts for both sides that use it."""

from __future__ import annotations

import pathlib
import ssl
import subprocess

from sockserve.testing import CertificateAuthority

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


def make_certificate(directory: pathlib.Path) -> pathlib.Path:
    """Make a PEM file with a private key and a certificate for localhost, signed by itself."""
    key, signed, both = (directory / name for name in ("key.pem", "signed.pem", "both.pem"))
    command = [
        *("openssl", "req", "-x509", *_KEY, "-nodes"),
        *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1", "-days", "2"),
        *("-keyout", str(key), "-out", str(signed)),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    both.write_bytes(key.read_bytes() + signed.read_bytes())
    return both


class Pki:
    """An authority and what it has signed: each takes some milliseconds of openssl."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.authority = CertificateAuthority(directory)
        self.a, self.b = (self.authority.sign(name) for name in ("a.test", "b.test"))
        self.locked = self.authority.sign("locked.test", password="secret")  # noqa: S106
        self.client = self.authority.client_context


def server_context(certificate: pathlib.Path, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A server's context, for one version of TLS or any."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return _only(context, version)


def client_context(certificate: pathlib.Path, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A client's context that trusts this certificate and no other."""
    context = ssl.create_default_context(cafile=str(certificate))
    return _only(context, version)


def _only(context: ssl.SSLContext, version: ssl.TLSVersion | None) -> ssl.SSLContext:
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context
