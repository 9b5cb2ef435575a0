"""Certificates for tests, made by the program ``openssl``: an authority, and what it signs for servers and clients."""

from __future__ import annotations

import os
import ssl
import subprocess
from typing import NamedTuple

__all__ = ["Certificate", "CertificateAuthority"]

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")

_LIMIT = 60.0
"""Seconds that one call of openssl may take: it takes a few milliseconds."""


class Certificate(NamedTuple):
    """Where a certificate and its key are: ``sockserve.TLS(*certificate)``."""

    certificate: str
    key: str


Certificate.__module__ = "sockserve.testing"


class CertificateAuthority:
    """Signs certificates that are good for two days, and keeps all files in ``directory``, which must exist.

    Raises RuntimeError if there is no program ``openssl``, or it fails; the message has what it said.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = os.fspath(directory)
        self.certificate = self._path("ca.crt")
        """The path of the authority's own certificate: a client's ``cafile``, a server's ``client_ca``."""
        subject = ("-subj", "/CN=sockserve test authority", "-addext", "basicConstraints=critical,CA:TRUE")
        files = ("-keyout", self._path("ca.key"), "-out", self.certificate)
        _run("req", "-x509", *_KEY, "-nodes", *subject, *files, "-days", "2")

    def sign(self, name: str, *, password: str | None = None) -> Certificate:
        """Make a certificate for this name, as subject and as host; with a password its key is encrypted.

        "localhost" is good for 127.0.0.1 and ::1 as well.
        """
        made = Certificate(self._path(f"{name}.crt"), self._path(f"{name}.key"))
        request, extensions = self._path(f"{name}.csr"), self._path(f"{name}.ext")
        names = f"DNS:{name}" + (",IP:127.0.0.1,IP:::1" if name == "localhost" else "")
        with open(extensions, "w", encoding="ascii") as file:
            # Without authorityKeyIdentifier, as those that devices make themselves often are.
            file.write(f"subjectAltName={names}\nauthorityKeyIdentifier=none\n")
        protection = ("-nodes",) if password is None else ("-passout", f"pass:{password}")
        _run("req", *_KEY, *protection, "-subj", f"/CN={name}", "-keyout", made.key, "-out", request)
        signer = ("-CA", self.certificate, "-CAkey", self._path("ca.key"), "-CAcreateserial", "-days", "2")
        _run("x509", "-req", "-in", request, *signer, "-extfile", extensions, "-out", made.certificate)
        return made

    def client_context(self, certificate: Certificate | None = None) -> ssl.SSLContext:
        """Make the context of a client that trusts this authority only, and shows this certificate, if any."""
        context = ssl.create_default_context(cafile=self.certificate)
        # Since 3.13: the certificates lack an extension on purpose.
        context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
        if certificate is not None:
            context.load_cert_chain(*certificate)
        return context

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)


def _run(*arguments: str) -> None:
    command = ["openssl", *arguments]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=_LIMIT)
    except FileNotFoundError as error:
        raise RuntimeError("to make certificates the program openssl is needed") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"openssl failed: {error.stderr.decode('utf-8', 'backslashreplace')}") from error
