"""A certificate for loopback, made when it is needed, and TLS contexts for both sides that use it."""

from __future__ import annotations

import pathlib
import ssl
import subprocess
from typing import NamedTuple

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


class Files(NamedTuple):
    """Where a certificate and its key are."""

    certificate: pathlib.Path
    key: pathlib.Path


class Authority:
    """Signs certificates, for hosts and for clients."""

    def __init__(self, directory: pathlib.Path, name: str = "ca") -> None:
        self.directory = directory
        self.name = name
        self.certificate = directory / f"{name}.crt"
        self._key = directory / f"{name}.key"
        subject = ("-subj", f"/CN={name}", "-addext", "basicConstraints=critical,CA:TRUE")
        _run("req", "-x509", *_KEY, "-nodes", *subject, "-keyout", self._key, "-out", self.certificate, "-days", "2")

    def sign(self, name: str, *, password: str | None = None) -> Files:
        """Sign a certificate for this name, with a key that is encrypted if there is a password."""
        files = Files(self.directory / f"{name}.crt", self.directory / f"{name}.key")
        request, extensions = self.directory / f"{name}.csr", self.directory / f"{name}.ext"
        # No authorityKeyIdentifier, as certificates that devices make themselves often lack it.
        extensions.write_text(f"subjectAltName=DNS:{name}\nauthorityKeyIdentifier=none\n", "ascii")
        protection = ("-nodes",) if password is None else ("-passout", f"pass:{password}")
        _run("req", *_KEY, *protection, "-subj", f"/CN={name}", "-keyout", files.key, "-out", request)
        signer = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial", "-days", "2")
        _run("x509", "-req", "-in", request, *signer, "-extfile", extensions, "-out", files.certificate)
        return files


class Pki:
    """An authority and what it has signed: each takes some milliseconds of openssl."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.authority = Authority(directory)
        self.a, self.b = (self.authority.sign(name) for name in ("a.test", "b.test"))
        self.locked = self.authority.sign("locked.test", password="secret")  # noqa: S106

    def client(self, certificate: Files | None = None) -> ssl.SSLContext:
        """The context of a client that trusts the authority and shows this certificate, if any."""
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        # Since 3.13: the certificates here lack an extension on purpose.
        context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
        if certificate is not None:
            context.load_cert_chain(*certificate)
        return context


def _run(*arguments: str | pathlib.Path) -> None:
    command = ["openssl", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


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
