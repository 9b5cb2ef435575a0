"""``serve()`` and the commands with TLS and proxies: addresses, options, a certificate loaded anew by SIGHUP."""

from __future__ import annotations

import pathlib
import shutil
import signal
import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest
from support.certificates import Pki
from support.log_watch import ExpectLog
from support.preparing import HEADER, SOURCE, Tell
from support.serving import Operator, serve_with
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve import testing
from sockserve.client import command_line as client
from sockserve.net.proxy_header import read_header
from sockserve.pytest_plugin import Running
from sockserve.run import command_line
from sockserve.testing import Certificate, connect


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Certificates for several hosts."""
    return Pki(tmp_path_factory.mktemp("pki"))


def certificate_of(server: Any, pki: Pki, name: str = "a.test") -> str:
    """The name in the certificate that a client gets which asks for this host."""
    context = pki.client()
    context.check_hostname = False
    with connect(server, timeout=LIMIT) as plain, context.wrap_socket(plain, server_hostname=name) as wrapped:
        certificate: Any = wrapped.getpeercert()
    return str(certificate["subject"][0][0][1])


def test_plain_and_tls_stand_side_by_side(pki: Pki, expect_log: ExpectLog) -> None:
    """``tls://`` has TLS, ``tcp://`` beside it has not, and each is called what it is."""
    told = expect_log(20, r"listening on (tls|tcp)://127\.0\.0\.1:\d+")

    def script(operator: Operator) -> None:
        over_tls, plain = operator.servers
        assert certificate_of(over_tls, pki) == "a.test"
        assert testing.ask(plain, b"hello\n").endswith(b"False|None|hello\n")
        operator.signal()

    tls = sockserve.TLS(*pki.a)
    serve_with(script, Tell, "tls://127.0.0.1:0", "tcp://127.0.0.1:0", tls=tls)
    assert [line.text.split()[-1].partition(":")[0] for line in told.wait(2)] == ["tls", "tcp"]


@pytest.mark.parametrize(
    ("addresses", "with_tls", "reason"),
    [
        (("tls://127.0.0.1:0",), False, "needs tls, a certificate"),
        (("tcp://127.0.0.1:0", "unix:/nowhere"), True, "tls is for tls:// addresses, and there are none"),
    ],
)
def test_an_address_for_tls_and_the_certificate_belong_together(
    pki: Pki, addresses: tuple[str, ...], with_tls: bool, reason: str
) -> None:
    """One without the other is an error before anything is bound: nothing is served in the clear by mistake."""
    with pytest.raises(ValueError, match=reason):
        sockserve.serve(Tell, *addresses, tls=sockserve.TLS(*pki.a) if with_tls else None)


def test_proxies_are_believed() -> None:
    """``proxy_from`` is an attribute of each server."""

    def script(operator: Operator) -> None:
        assert testing.ask(operator.server, HEADER.to_bytes() + b"x\n").startswith(str(SOURCE).encode())
        operator.signal()

    serve_with(script, Tell, "tcp://127.0.0.1:0", proxy_from=("127.0.0.0/8",))
    with pytest.raises(sockserve.AddressError, match="not a network"):
        sockserve.serve(Tell, "tcp://127.0.0.1:0", proxy_from=("nowhere",))


@pytest.mark.parametrize("processes", [None, 1])
def test_sighup_loads_the_certificate_anew(
    pki: Pki, tmp_path: pathlib.Path, expect_log: ExpectLog, processes: int | None
) -> None:
    """It does not wait until a client comes, and of worker processes the new ones have it."""
    files = Certificate(*(str(shutil.copy(each, tmp_path)) for each in pki.a))
    tls = sockserve.TLS(*files, check_every=None)
    expect_log(20, "TLS: loaded", at_least=0)

    def script(operator: Operator) -> None:
        assert certificate_of(operator.server, pki) == "a.test"
        for source, target in zip(pki.b, files, strict=True):
            shutil.copy(source, target)
        operator.signal(signal.SIGHUP)
        wait_until(lambda: certificate_of(operator.server, pki) == "b.test")
        operator.signal()

    serve_with(script, Tell, "tls://127.0.0.1:0", tls=tls, processes=processes)


def test_the_words_of_the_command_become_tls(pki: Pki) -> None:
    """Hosts have certificates of their own; a file that has both parts needs no key."""
    words = [
        f"--tls-cert={pki.a.certificate}", f"--tls-key={pki.a.key}", f"--tls-client-ca={pki.authority.certificate}",
        "--tls-alpn=h2,http/1.1", f"--tls-host=b.test={pki.b.certificate},{pki.b.key}", "--proxy-from=10.0.0.0/8,unix",
        "--direct-from=127.0.0.1", "tls://127.0.0.1:0",
    ]  # fmt: skip
    options = command_line.read_arguments(words)
    assert options.tls.context_for("b.test") is not options.tls.context
    assert options.tls.context_for("b.test").verify_mode == ssl.CERT_REQUIRED
    assert options.tls.answer_plain.startswith(b"HTTP/1.1 400 ")
    assert (options.proxy_from, options.direct_from) == (["10.0.0.0/8", "unix"], ["127.0.0.1"])
    assert command_line.read_arguments(["tcp://:0"]).tls is None


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--tls-key=x"], "--tls-key is for --tls-cert"),
        (["--tls-host=a=b"], "--tls-host is for --tls-cert"),
        (["tls://127.0.0.1:0"], "needs tls, a certificate"),
        (["--tls-cert=/nowhere.pem", "tls://127.0.0.1:0"], "'/nowhere.pem': No such file or directory"),
        (["--proxy-from=10.0.0.0/33"], "'10.0.0.0/33' is not a network"),
        (["--direct-from="], "'' is not a network"),
    ],
)
def test_words_that_make_no_sense_are_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    """With status 2, before anything is bound."""
    with pytest.raises(SystemExit) as end:
        command_line.read_arguments(words)
    assert end.value.code == 2
    assert reason in capsys.readouterr().err


def test_a_host_without_a_certificate_is_refused(pki: Pki, capsys: pytest.CaptureFixture[str]) -> None:
    """``--tls-host`` says what it takes."""
    with pytest.raises(SystemExit):
        command_line.read_arguments([f"--tls-cert={pki.a.certificate}", "--tls-host=b.test", "tls://127.0.0.1:0"])
    assert "--tls-host 'b.test' is not a name" in capsys.readouterr().err


def test_the_client_for_people_speaks_tls_behind_a_header(
    running: Running, pki: Pki, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """A ``tls://`` address needs no ``--tls``, and the header comes before."""
    attributes = {"tls": sockserve.TLS(*pki.a), "proxy_from": ("127.0.0.1",)}
    server = running(type("Server", (sockserve.ThreadingTCPServer,), attributes)(("127.0.0.1", 0), Tell))
    address = f"tls://127.0.0.1:{server.server_address[1]}"
    words = [address, "--insecure", "--proxy-header=192.0.2.1:56324,198.51.100.9:443", "--line=hello"]
    assert client.main(words) == 0
    assert capfdbinary.readouterr().out.startswith(str(SOURCE).encode())


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("local", lambda header: (header.command, header.source)),
        ("192.0.2.1:1,192.0.2.9:2", lambda header: (header.command, header.source)),
        ("[2001:db8::1]:1,[2001:db8::9]:2", lambda header: (header.command, header.source)),
    ],
)
def test_a_header_can_be_asked_of_the_client(text: str, read: Callable[[Any], Any]) -> None:
    """For streams and datagrams."""
    for address in ("tcp://127.0.0.1:1", "udp://127.0.0.1:1"):
        data = client.read_arguments([address, f"--proxy-header={text}"]).proxy_header
        header, size = read_header(data, is_datagram=address.startswith("udp"))
        assert size == len(data)
        source = None if text == "local" else text.strip("[").partition("]" if "[" in text else ":")[0]
        assert read(header)[0] == ("LOCAL" if source is None else "PROXY")
        assert source is None or read(header)[1][0] == source


@pytest.mark.parametrize("text", ["", "nonsense", "1.2.3.4:5", "1.2.3.4:5,[::1]:6", "host:1,host:2"])
def test_a_header_that_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """With status 2."""
    with pytest.raises(SystemExit) as end:
        client.read_arguments(["tcp://127.0.0.1:1", f"--proxy-header={text}"])
    assert end.value.code == 2
    assert "--proxy-header: " in capsys.readouterr().err


def test_the_fixture_makes_certificates(running: Running, certificate_authority: testing.CertificateAuthority) -> None:
    """For localhost and its addresses."""
    tls = sockserve.TLS(*certificate_authority.sign("localhost"))
    server = running(type("Server", (sockserve.ThreadingTCPServer,), {"tls": tls})(("127.0.0.1", 0), Tell))
    context = certificate_authority.client_context()
    with (
        socket.create_connection(server.server_address, LIMIT) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        wrapped.sendall(b"hello\n")
        assert wrapped.recv(1000).endswith(b"hello\n")


def test_certificates_need_openssl(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the program, or if it fails, the error says so."""
    with pytest.raises(RuntimeError, match="openssl failed: "):
        testing.CertificateAuthority(tmp_path / "missing")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="the program openssl is needed"):
        testing.CertificateAuthority(tmp_path)
