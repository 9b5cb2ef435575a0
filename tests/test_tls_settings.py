"""TLS settings as an object: what is loaded, which context a host has, and a certificate renewed in place."""

from __future__ import annotations

import logging
import os
import pathlib
import shutil
import ssl
from typing import Any

import pytest
from support.certificates import Pki
from support.log_watch import ExpectLog

import sockserve
from sockserve.net.tls_settings import TLS, as_tls
from sockserve.testing import Certificate


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Certificates for several hosts."""
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def files(pki: Pki, tmp_path: pathlib.Path) -> Certificate:
    """A copy of the certificate of a.test that the test may replace."""
    return Certificate(*(str(shutil.copy(each, tmp_path)) for each in pki.a))


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "a.test", session: Any = None) -> Any:
    """Shake hands in memory; both ends."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server, server_hostname=name, session=session)
    there = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [here, there]
    while waiting:
        for each in waiting[:]:
            try:
                each.do_handshake()
                waiting.remove(each)
            except ssl.SSLWantReadError:
                pass
    return here, there


def names_of(end: ssl.SSLObject) -> str:
    """The common name that the other end showed."""
    certificate: Any = end.getpeercert()
    return dict(pair for group in certificate["subject"] for pair in group)["commonName"]  # type: ignore[no-any-return]


def test_a_certificate_is_served_and_no_ticket_beside_it(pki: Pki) -> None:
    """X20: by default no session ticket is sent, of either version, and what is older than TLS 1.2 is refused."""
    tls = TLS(*pki.a)
    context = tls.context
    assert context.num_tickets == 0
    assert context.options & ssl.OP_NO_TICKET
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    here, there = shake_hands(context, pki.client())
    assert names_of(here) == "a.test"
    assert there.selected_alpn_protocol() is None
    with pytest.raises(ssl.SSLWantReadError):
        here.read(1)
    assert not here.session.has_ticket


def test_tickets_can_be_asked_for(pki: Pki) -> None:
    """With ``tickets`` a client can resume its session."""
    tls, client = TLS(*pki.a, tickets=1), pki.client()
    here, _ = shake_hands(tls.context, client)
    with pytest.raises(ssl.SSLWantReadError):
        here.read(1)
    _, there = shake_hands(tls.context, client, session=here.session)
    assert there.session_reused


def test_protocols_and_versions_are_those_that_were_given(pki: Pki) -> None:
    """ALPN takes the first of the client's that is offered."""
    tls = TLS(*pki.a, alpn=("h2", "http/1.1"), minimum_version=ssl.TLSVersion.TLSv1_3)
    client = pki.client()
    client.set_alpn_protocols(["http/1.1"])
    assert shake_hands(tls.context, client)[1].selected_alpn_protocol() == "http/1.1"
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        shake_hands(tls.context, client)


def test_x25_client_certificates_without_extensions_are_accepted_and_no_secret_is_written(
    pki: Pki, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X25: strict checks and the log of keys, which ``create_default_context()`` brings, are off."""
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    tls = TLS(*pki.a, client_ca=pki.authority.certificate)
    monkeypatch.delenv("SSLKEYLOGFILE")
    here, there = shake_hands(tls.context, pki.client(pki.b))
    with pytest.raises(ssl.SSLWantReadError):
        here.read(1)
    assert names_of(there) == "b.test"
    assert not (tmp_path / "keys").exists()


def test_a_client_certificate_is_required_or_optional(pki: Pki) -> None:
    """Without one a client fails where it is required, and not where it is optional."""
    with pytest.raises(ssl.SSLError, match=r"(?i)peer did not return a certificate"):
        shake_hands(TLS(*pki.a, client_ca=pki.authority.certificate).context, pki.client())
    optional = TLS(*pki.a, client_ca=pki.authority.certificate, client_certificate="optional")
    assert shake_hands(optional.context, pki.client())[1].getpeercert() is None
    with pytest.raises(ValueError, match="required"):
        TLS(*pki.a, client_certificate="never")  # type: ignore[arg-type]


def test_a_host_has_its_context_and_all_others_have_the_first(pki: Pki) -> None:
    """Exact names come before patterns, a pattern stands for one label, and the case does not matter."""
    b, pattern = TLS(*pki.b), TLS(*pki.b)
    tls = TLS(*pki.a, hosts={"B.test": b, "*.b.test": pattern})
    contexts = {None: tls, "a.test": tls, "": tls, "b.test": b, "B.TEST.": b, "x.b.test": pattern, "x.y.b.test": tls}
    for name, expected in contexts.items():
        assert tls.context_for(name) is expected.context, name
    for wrong in ("", "*", "*.", "a b", "a.*", "*.*.test", "b\xfc.test"):
        with pytest.raises(ValueError, match="not a host name"):
            TLS(*pki.a, hosts={wrong: b})


def test_a_context_or_a_function_is_as_good(pki: Pki) -> None:
    """A program's own context is used, and a function is asked for each reload."""
    context = TLS(*pki.a).context
    assert as_tls(context).context is context
    assert as_tls(context).reload()
    made: list[ssl.SSLContext] = []

    def make() -> ssl.SSLContext:
        made.append(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        return made[-1]

    tls = as_tls(make)
    assert tls.reload()
    assert tls.context is made[1]
    assert TLS(*pki.a, hosts={"b.test": context}).context_for("b.test") is context
    with pytest.raises(TypeError, match=r"sockserve\.TLS"):
        as_tls("certificate.pem")  # type: ignore[arg-type]


def test_what_cannot_be_used_is_an_error_at_the_start(pki: Pki, tmp_path: pathlib.Path) -> None:
    """The message names the file and the reason, and an encrypted key without a password never asks on the terminal."""
    nothing, text = tmp_path / "nothing.pem", tmp_path / "text.pem"
    text.write_text("hello", "ascii")
    for arguments, options, reason in (
        ((nothing,), {}, r"nothing\.pem': No such file"),
        ((text,), {}, r"text\.pem': "),
        ((pki.a.certificate,), {}, r"a\.test\.crt': "),
        ((pki.a.certificate, pki.b.key), {}, r"b\.test\.key': .*mismatch"),
        (pki.locked, {}, r"locked\.test\.key': the key is encrypted, and there is no password"),
        (pki.locked, {"password": "wrong"}, r"locked\.test\.key': "),
        (pki.a, {"client_ca": nothing}, r"client_ca '.*nothing\.pem': No such file"),
        (pki.a, {"client_ca": text}, r"client_ca '.*text\.pem': "),
        (("a\0b",), {}, r"'a\\x00b': "),
    ):
        with pytest.raises(sockserve.TLSSettingsError, match=reason):
            TLS(*arguments, **options)
    for password in ("secret", b"secret", lambda: "secret"):
        assert TLS(*pki.locked, password=password).context


def test_x17_a_renewed_certificate_makes_another_context(pki: Pki, files: Certificate, expect_log: ExpectLog) -> None:
    """X17: the context in use is left as it is, and the next client gets the new one."""
    loaded = expect_log(logging.INFO, "TLS: loaded .*a.test.crt")
    tls = TLS(*files, check_every=0)
    old = tls.context
    tls.check()
    assert tls.context is old
    for source, target in zip(pki.b, files, strict=True):
        shutil.copy(source, target)
    tls.check()
    loaded.wait()
    assert tls.context is not old
    assert names_of(shake_hands(tls.context, pki.client(), "b.test")[0]) == "b.test"
    assert names_of(shake_hands(old, pki.client())[0]) == "a.test"


def test_files_are_looked_at_once_in_a_while(files: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks a client costs nothing but the question for the time."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    tls, never = TLS(*files, check_every=1), TLS(*files, check_every=None)
    tls.check()
    old = tls.context
    os.utime(files.certificate, (1, 1))
    now[0] = 0.9
    tls.check()
    assert tls.context is old
    now[0] = 1.0
    tls.check()
    never.check()
    assert tls.context is not old


def test_x18_a_pair_that_does_not_fit_keeps_the_old_one(pki: Pki, files: Certificate, expect_log: ExpectLog) -> None:
    """X18: with the key still missing the old context serves, which the log says once; with it the new one does."""
    refused = expect_log(logging.ERROR, "the certificate in use stays.*mismatch")
    loaded = expect_log(logging.INFO, "TLS: loaded")
    tls = TLS(*files, check_every=0)
    old = tls.context
    shutil.copy(pki.b.certificate, files.certificate)
    for _ in range(3):
        tls.check()
    assert not tls.reload()
    assert tls.context is old
    assert len(refused.wait()) == 1
    shutil.copy(pki.b.key, files.key)
    tls.check()
    assert len(loaded.wait()) == 1
    assert names_of(shake_hands(tls.context, pki.client(), "b.test")[0]) == "b.test"


def test_a_certificate_that_is_gone_keeps_the_old_one(files: Certificate, expect_log: ExpectLog) -> None:
    """A file that is missing, or cannot be read, is one line, and the same again is none."""
    refused = expect_log(logging.ERROR, "a.test.crt.*No such file")
    tls = TLS(*files, check_every=0)
    pathlib.Path(files.certificate).unlink()
    for _ in range(3):
        tls.check()
    assert len(refused.wait()) == 1


def test_x19_a_swapped_link_is_seen(pki: Pki, tmp_path: pathlib.Path, expect_log: ExpectLog) -> None:
    """X19: Kubernetes exchanges a link to a directory, and the paths themselves stay what they are."""
    expect_log(logging.INFO, "TLS: loaded")
    for number, source in (("1", pki.a), ("2", pki.b)):
        (tmp_path / number).mkdir()
        shutil.copy(source.certificate, tmp_path / number / "tls.crt")
        shutil.copy(source.key, tmp_path / number / "tls.key")
    (tmp_path / "..data").symlink_to("1")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    tls = TLS(tmp_path / "tls.crt", tmp_path / "tls.key", check_every=0)
    (tmp_path / "..data_tmp").symlink_to("2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    tls.check()
    assert names_of(shake_hands(tls.context, pki.client(), "b.test")[0]) == "b.test"


def test_files_that_change_while_they_are_loaded_are_no_error(
    pki: Pki, files: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are opened one after the other: an exchange between the two is seen, and they are loaded again."""
    tls = TLS(*files, check_every=0)
    shutil.copy(pki.b.certificate, files.certificate)
    load = ssl.SSLContext.load_cert_chain

    def load_and_exchange(context: ssl.SSLContext, *arguments: Any) -> None:
        try:
            load(context, *arguments)
        finally:
            shutil.copy(pki.b.key, files.key)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load_and_exchange)
    tls.check()
    assert names_of(shake_hands(tls.context, pki.client(), "b.test")[0]) == "b.test"


def test_a_reload_is_of_the_hosts_too(pki: Pki, files: Certificate, expect_log: ExpectLog) -> None:
    """All are loaded, and one that fails is told."""
    expect_log(logging.INFO, "TLS: loaded")
    expect_log(logging.ERROR, "No such file")
    host = TLS(*files)
    tls = TLS(*pki.b, hosts={"a.test": host})
    old = tls.context, host.context
    assert tls.reload()
    assert tls.context is not old[0]
    assert tls.context_for("a.test") is not old[1]
    pathlib.Path(files.key).unlink()
    assert not tls.reload()


def test_a_forked_child_can_load_what_its_parent_was_loading(pki: Pki) -> None:
    """A lock that a thread of the parent holds in the moment of the fork is free in the child."""
    tls = TLS(*pki.a)
    with tls._making:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if tls._making.acquire(timeout=0) else 1)
        assert os.waitpid(pid, 0)[1] == 0


def test_x16_a_session_of_a_host_is_none_at_another(pki: Pki) -> None:
    """X16: with tickets a session of a.test, where no certificate is asked for, is not resumed at b.test."""
    b = TLS(*pki.b, client_ca=pki.authority.certificate, tickets=1)
    tls = TLS(*pki.a, hosts={"b.test": b}, tickets=1)
    client = pki.client()
    here, _ = shake_hands(tls.context_for("a.test"), client)
    with pytest.raises(ssl.SSLWantReadError):
        here.read(1)
    with pytest.raises(ssl.SSLError, match=r"(?i)peer did not return a certificate"):
        shake_hands(tls.context_for("b.test"), client, "b.test", here.session)
