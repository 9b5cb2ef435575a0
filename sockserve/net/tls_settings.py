"""What a server needs for TLS: certificates by host name, which clients may come, a renewed certificate in place.

Rule 1. A context that connections use is never changed: ``load_cert_chain()`` beside a handshake crashes the process
(cpython#134698). A new certificate makes a new context, which takes the place of the old one.
Rule 2. The host is known before the connection is wrapped. What an SNI callback chooses keeps the first context's
demand for a client certificate, and its sessions (CVE-2025-23419).
Rule 3. A certificate that cannot be loaded never stops a server that has another one.
"""

from __future__ import annotations

import os
import re
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

from sockserve.errors import TLSSettingsError
from sockserve.log import log

__all__ = ["TLS"]

Path: TypeAlias = str | os.PathLike[str]
Password: TypeAlias = str | bytes | Callable[[], str | bytes]
_Seen: TypeAlias = tuple[tuple[int, ...] | None, ...]

_NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")

# No WeakSet: add() and discard() of a set are atomic, also in the moment of a fork.
_all: set[weakref.ref[TLS]] = set()


def _forked() -> None:
    for reference in _all.copy():
        tls = reference()
        if tls is not None:
            # A thread of the parent, that is not here, may have held it.
            tls.unlock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)

TRIES = 3
"""How often a certificate is loaded, if its files change meanwhile: each is opened twice, one after the other."""


class TLS:
    """A certificate with its key, and all that a server does with it. Raises TLSSettingsError if they do not fit.

    ``certificate`` and ``key`` are paths of PEM files; without ``key`` the certificate's file has both. A key that is
    encrypted needs ``password``: a text, or a function that gives it. With ``client_ca``, the path of a PEM file,
    clients must show a certificate that it vouches for; with ``client_certificate="optional"`` they may.

    ``alpn``: application protocols, the most wanted first. ``hosts``: TLS of its own for each name, which may be
    ``"*.example.com"``; a client that names another host, or none, gets this one. All of it is then that host's: client
    certificates, protocols, versions, sessions. ``minimum_version``: an ``ssl.TLSVersion``.

    ``tickets``: how many session tickets a client gets (TLS 1.3). With any, a client that sends and closes without
    reading may lose the end of what it sent: the ticket that it has not read turns its close into a reset.

    ``check_every``: seconds between two looks, when a client comes, whether a file has changed, through symbolic links;
    None: never. ``answer_plain``: what a client gets that sends plain text, before its connection is closed.

    All methods and attributes may be used from any thread.
    """

    __module__ = "sockserve"

    def __init__(
        self,
        certificate: Path,
        key: Path | None = None,
        *,
        password: Password | None = None,
        client_ca: Path | None = None,
        client_certificate: Literal["required", "optional"] = "required",
        alpn: Sequence[str] = (),
        hosts: Mapping[str, TLS | ssl.SSLContext] | None = None,
        minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
        tickets: int = 0,
        check_every: float | None = 1.0,
        answer_plain: bytes = b"",
    ) -> None:
        if client_certificate not in ("required", "optional"):
            raise ValueError(f'client_certificate is "required" or "optional", not {client_certificate!r}')
        files = [certificate] if key is None else [certificate, key]

        def make() -> ssl.SSLContext:
            context = _new_context(minimum_version, tickets, alpn)
            _load_certificate(context, certificate, key, password)
            if client_ca is not None:
                _load_client_ca(context, client_ca)
                is_required = client_certificate == "required"
                context.verify_mode = ssl.CERT_REQUIRED if is_required else ssl.CERT_OPTIONAL
            return context

        watched = files if client_ca is None else [*files, client_ca]
        self._begin(make, watched, hosts, check_every, answer_plain)

    @classmethod
    def of(cls, source: ssl.SSLContext | Callable[[], ssl.SSLContext]) -> TLS:
        """TLS with a context that the program makes, or with a function that makes one, also for each ``reload()``.

        A context is used as it is, but that end-of-file without close_notify becomes the end of input.
        """
        tls = cls.__new__(cls)
        TLS._begin(tls, (lambda: source) if isinstance(source, ssl.SSLContext) else source, [])
        return tls

    def _begin(
        self,
        make: Callable[[], ssl.SSLContext],
        files: Sequence[Path],
        hosts: Mapping[str, TLS | ssl.SSLContext] | None = None,
        check_every: float | None = None,
        answer_plain: bytes = b"",
    ) -> None:
        self._hosts = {_host(name): as_tls(tls) for name, tls in (hosts or {}).items()}
        self.check_every = check_every
        self.answer_plain = answer_plain
        self._make = make
        self._files = files
        self._next_check = time.monotonic()
        # Held while a new context is made.
        self._making = threading.Lock()
        # What the files were like when the context was made, and when making one failed.
        self._seen: _Seen | None = None
        self._failed: _Seen | None = None
        context, error = self._load()
        if context is None:
            raise error or AssertionError
        self._context = context
        _all.add(weakref.ref(self, _all.discard))

    def unlock(self) -> None:
        """In a forked child: let its threads make contexts."""
        self._making = threading.Lock()

    @property
    def context(self) -> ssl.SSLContext:
        """The context that the next client without a host of its own gets."""
        return self._context

    def context_for(self, server_name: str | None) -> ssl.SSLContext:
        """The context for a client that asks for this host; None: it named none.

        May be overridden; it is called for each client, in the thread that serves it.
        """
        hosts = self._hosts
        if hosts and server_name is not None:
            name = server_name.lower().removesuffix(".")
            found = hosts.get(name) or hosts.get(f"*.{name.partition('.')[2]}")
            if found is not None:
                return found.context_for(server_name)
        return self._context

    def reload(self) -> bool:
        """Load all files anew, those of the hosts too; false if some of it failed. Then the old context stays.

        The log says so at ERROR, once for each state of the files. Connections go on with what they have.
        """
        with self._making:
            is_loaded = self._exchange()
        return all([is_loaded, *(tls.reload() for tls in self._hosts.values())])

    def check(self) -> None:
        """Load what has changed, if ``check_every`` seconds have passed. Never raises; a few microseconds if not."""
        if self.check_every is not None and time.monotonic() >= self._next_check and self._making.acquire(False):
            try:
                self._next_check = time.monotonic() + self.check_every
                if self._failed is not None or _look_at(self._files) != self._seen:
                    self._exchange()
            finally:
                self._making.release()
        for tls in self._hosts.values():
            tls.check()

    def _exchange(self) -> bool:
        context, error = self._load()
        if context is None:
            state = _look_at(self._files)
            if self._failed != state:
                self._failed = state
                log.error("TLS: the certificate in use stays, another cannot be loaded: %s", error)
            return False
        if context is not self._context:
            self._context = context
            log.info("TLS: loaded %s anew", ", ".join(map(_shown, self._files)) or "a context")
        self._failed = None
        return True

    def _load(self) -> tuple[ssl.SSLContext | None, Exception | None]:
        error: Exception | None = None
        for _ in range(TRIES):
            before = _look_at(self._files)
            try:
                context = self._make()
                # Without it OpenSSL 3 answers an end of input without close_notify with an alert, and nothing can be
                # written any more. A drain ends the input so.
                context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
            except Exception as raised:
                error = raised
            else:
                self._seen = before
                return context, None
            if _look_at(self._files) == before:
                break
        return None, error


def as_tls(source: TLS | ssl.SSLContext | Callable[[], ssl.SSLContext]) -> TLS:
    """TLS as a user gives it. Raises TypeError for what is none."""
    if isinstance(source, TLS):
        return source
    if isinstance(source, ssl.SSLContext) or callable(source):
        return TLS.of(source)
    raise TypeError(f"tls is a sockserve.TLS or an ssl.SSLContext, not {source!r}")


def _new_context(minimum_version: ssl.TLSVersion, tickets: int, alpn: Sequence[str]) -> ssl.SSLContext:
    # Not create_default_context(): it refuses client certificates that lack an extension (VERIFY_X509_STRICT, since
    # 3.13), and writes the secrets to the file that SSLKEYLOGFILE names.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = minimum_version
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.num_tickets = tickets
    if not tickets:
        context.options |= ssl.OP_NO_TICKET
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def _load_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None, password: Password | None) -> None:
    # Without any OpenSSL would ask for it on the terminal.
    given = _no_password if password is None else password
    try:
        context.load_cert_chain(certificate, key, given)
    except TLSSettingsError as error:
        raise TLSSettingsError(f"{_shown(key or certificate)}: {error}") from None
    except (OSError, ValueError) as error:
        raise TLSSettingsError(f"{_pair(certificate, key)}: {_reason(error)}") from error


def _no_password() -> str:
    raise TLSSettingsError("the key is encrypted, and there is no password")


def _load_client_ca(context: ssl.SSLContext, client_ca: Path) -> None:
    try:
        context.load_verify_locations(cafile=client_ca)
    except (OSError, ValueError) as error:
        raise TLSSettingsError(f"client_ca {_shown(client_ca)}: {_reason(error)}") from error
    if not context.cert_store_stats()["x509"]:
        raise TLSSettingsError(f"client_ca {_shown(client_ca)}: there is no certificate in it")


def _reason(error: Exception) -> str:
    of_openssl: str | None = getattr(error, "reason", None)
    if of_openssl:
        return of_openssl.replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error).partition(" (_ssl")[0]


def _pair(certificate: Path, key: Path | None) -> str:
    return _shown(certificate) if key is None else f"{_shown(certificate)} and {_shown(key)}"


def _shown(path: Path) -> str:
    return repr(os.fspath(path))


def _look_at(files: Sequence[Path]) -> _Seen:
    return tuple(map(_state, files))


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        # Through links: what is behind one may be exchanged.
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _host(name: str) -> str:
    host = name.lower().removesuffix(".")
    if not _NAME.fullmatch(host):
        raise ValueError(f'{name!r} is not a host name, nor "*." and one; others need their form in Punycode')
    return host
