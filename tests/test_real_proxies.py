"""HAProxy, nginx, curl and openssl themselves: what they say of their clients is what the handler knows."""

from __future__ import annotations

import contextlib
import http.server
import logging
import os
import pathlib
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.certificates import Pki
from support.log_watch import ExpectLog
from support.preparing import Tell, make, say
from support.under_test import LIMIT

import sockserve
from sockserve.pytest_plugin import Running

HAPROXY = """
global
    maxconn 50
defaults
    mode tcp
    timeout connect 10s
    timeout client 10s
    timeout server 10s
    default-server inter 50ms
frontend clients
    bind fd@{fd} {bind}
    unique-id-format %ci-%cp
    default_backend servers
backend servers
    server one 127.0.0.1:{port} {server}
"""
NGINX_MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"
"""Debian's package libnginx-mod-stream, which brings nginx along."""

NGINX = (
    f"load_module {NGINX_MODULE};"
    """
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 50; }}
stream {{
    server {{
        listen 127.0.0.1:{listens}{kind};
        proxy_pass 127.0.0.1:{port};
        proxy_protocol on;
    }}
}}
"""
)


def needs(program: str) -> pytest.MarkDecorator:
    """A program of Debian's; in CI a test whose program is missing fails."""
    is_there = shutil.which(program) is not None and (program != "nginx" or os.path.exists(NGINX_MODULE))
    is_missing = not is_there and os.environ.get("CI") != "true"
    return pytest.mark.skipif(is_missing, reason=f"there is no {program}")


Start = Callable[..., Any]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Certificates for several hosts."""
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def front() -> Iterator[socket.socket]:
    """Where a proxy accepts: it inherits the socket, and who connects before it has begun waits in the backlog."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@contextlib.contextmanager
def program(*command: str, listener: socket.socket, **environment: str) -> Iterator[None]:
    """Run a proxy until the end of the block."""
    process = subprocess.Popen(
        command,
        pass_fds=[listener.fileno()],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        # nginx has a process of its own that serves, and ends it.
        process.terminate()
        process.wait(LIMIT)


@contextlib.contextmanager
def haproxy(
    directory: pathlib.Path, listener: socket.socket, server: Any, options: str, bind: str = ""
) -> Iterator[None]:
    """Run HAProxy before a server."""
    port = server.server_address[1]
    text = HAPROXY.format(fd=listener.fileno(), port=port, server=options, bind=bind)
    (directory / "haproxy.cfg").write_text(text, "ascii")
    with program("haproxy", "-db", "-f", str(directory / "haproxy.cfg"), listener=listener):
        yield


@needs("haproxy")
@pytest.mark.parametrize("options", ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c"])
def test_x5_haproxy_tells_its_client(
    running: Running, front: socket.socket, tmp_path: pathlib.Path, options: str
) -> None:
    """X5: both versions, and a checksum that is HAProxy's own."""
    server = running(make("pool", Tell, proxy_from=("127.0.0.1",)))
    with haproxy(tmp_path, front, server, options), socket.create_connection(front.getsockname(), LIMIT) as client:
        told = say(client)
        assert told[:4] == [str(client.getsockname()), "True", str(client.getpeername()), "PROXY"]
        assert told[-1] == "hello\n"


class TellTls(sockserve.StreamRequestHandler[Any, Any, Any]):
    """Answers with what the proxy says of the TLS that it ended."""

    def handle(self) -> None:
        """Answer a line."""
        self.rfile.readline()
        info = self.connection_info
        header = info.proxy_header
        assert header is not None
        assert header.tls is not None
        tls, unique_id = header.tls, (header.unique_id or b"").decode()
        fields = (tls.version, tls.cn, tls.verified, header.authority, header.alpn, unique_id, info.is_secure)
        self.wfile.write("|".join(map(str, fields)).encode())


@needs("haproxy")
def test_x4_haproxy_tells_of_the_tls_that_it_ended(
    running: Running, pki: Pki, front: socket.socket, tmp_path: pathlib.Path
) -> None:
    """X4: the client's name, the host, the protocol; a client without a certificate is not verified."""
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(pathlib.Path(each).read_bytes() for each in pki.a))
    bind = f"ssl crt {both} ca-file {pki.authority.certificate} verify optional alpn two,one"
    options = "send-proxy-v2-ssl-cn proxy-v2-options crc32c,unique-id,authority"
    server = running(make("thread", TellTls, proxy_from=("127.0.0.1",)))
    with haproxy(tmp_path, front, server, options, bind):
        for certificate, name in ((pki.b, "b.test"), (None, "")):
            context = pki.client(certificate)
            context.set_alpn_protocols(["one"])
            plain = socket.create_connection(front.getsockname(), LIMIT)
            with context.wrap_socket(plain, server_hostname="a.test") as client:
                told = say(client)
                host, port = client.getsockname()
            assert told[:4] == ["TLSv1.3", name, str(bool(name)), "a.test"]
            assert told[4] in ("one", "None")
            assert told[5:] == [f"{host}-{port}", "True"]


@needs("haproxy")
def test_x3_haproxys_checks_are_its_own_connections(
    running: Running, front: socket.socket, tmp_path: pathlib.Path, expect_log: ExpectLog
) -> None:
    """X3: a check comes as LOCAL with fields behind it, and is no error, with TLS or without."""
    left = expect_log(logging.DEBUG, "left: (closed|gone) without a byte")
    commands: list[str] = []

    class Note(sockserve.StreamRequestHandler[Any, Any, Any]):
        def handle(self) -> None:
            header = self.connection_info.proxy_header
            assert header is not None
            commands.append(header.command)
            checked.set()

    checked = threading.Event()
    server = running(make("thread", Note, proxy_from=("127.0.0.1",)))
    options = "check send-proxy-v2 proxy-v2-options crc32c,unique-id"
    with haproxy(tmp_path, front, server, options):
        assert checked.wait(LIMIT)
    assert set(commands) == {"LOCAL"}
    pki = Pki(tmp_path)
    server = running(make("thread", Note, proxy_from=("127.0.0.1",), tls=sockserve.TLS(*pki.a)))
    with haproxy(tmp_path, front, server, options):
        left.wait()


@contextlib.contextmanager
def nginx(directory: pathlib.Path, listener: socket.socket, server: Any, kind: str = "") -> Iterator[None]:
    """Run nginx before a server."""
    configuration = str(directory / "nginx.conf")
    ports = {"listens": listener.getsockname()[1], "port": server.server_address[1]}
    pathlib.Path(configuration).write_text(NGINX.format(directory=directory, kind=kind, **ports), "ascii")
    command = ("nginx", "-c", configuration, "-p", str(directory), "-e", str(directory / "error.log"))
    # As nginx hands its sockets to a new version of itself.
    with program(*command, listener=listener, NGINX=f"{listener.fileno()};"):
        yield


PAGE = pathlib.Path(sockserve.__file__).parent.parent / "docs/how-to/behind-a-proxy.md"


def shown(name: str) -> str:
    """The configuration that the how-to shows."""
    (found,) = re.findall(rf":caption: {re.escape(name)}\n\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    return str(found)


@needs("haproxy")
@needs("nginx")
@pytest.mark.parametrize("name", ["haproxy", "nginx"])
def test_the_configurations_of_the_how_to_work(
    running: Running, front: socket.socket, tmp_path: pathlib.Path, name: str
) -> None:
    """As they stand there, but for the places."""
    server = running(make("pool", Tell, proxy_from=("127.0.0.1",)))
    configuration = tmp_path / "configuration"
    fd, port = front.fileno(), front.getsockname()[1]
    text = shown(f"{name}.cfg" if name == "haproxy" else "nginx.conf").replace(":9001", f":{server.server_address[1]}")
    if name == "haproxy":
        text = text.replace("bind :9000", f"bind fd@{fd}")
        command = ("haproxy", "-db", "-f", str(configuration))
    else:
        text = NGINX.partition("events")[0].format(directory=tmp_path) + text.replace(":9000", f":{port}")
        command = ("nginx", "-c", str(configuration), "-p", str(tmp_path), "-e", str(tmp_path / "error.log"))
    configuration.write_text(text, "ascii")
    with (
        program(*command, listener=front, NGINX=f"{fd};"),
        socket.create_connection(front.getsockname(), LIMIT) as client,
    ):
        assert say(client)[:4] == [str(client.getsockname()), "True", str(client.getpeername()), "PROXY"]


@needs("nginx")
def test_nginx_tells_its_client(running: Running, front: socket.socket, tmp_path: pathlib.Path) -> None:
    """Its stream module with ``proxy_protocol on``."""
    server = running(make("greenlet", Tell, proxy_from=("127.0.0.0/8",)))
    with nginx(tmp_path, front, server), socket.create_connection(front.getsockname(), LIMIT) as client:
        assert say(client)[:4] == [str(client.getsockname()), "True", str(client.getpeername()), "PROXY"]


class TellDatagram(sockserve.DatagramRequestHandler[Any, Any]):
    """Answers with the client's address and what it sent."""

    def handle(self) -> None:
        """Answer."""
        self.wfile.write(f"{self.client_address} ".encode() + self.packet)


@needs("nginx")
def test_x10_nginx_tells_of_datagrams_too(running: Running, tmp_path: pathlib.Path) -> None:
    """X10: in version 1, which has no word for them, and the answer goes back through it."""
    attributes = {"proxy_from": ("127.0.0.1",)}
    server = running(type("Server", (sockserve.ThreadingUDPServer,), attributes)(("127.0.0.1", 0), TellDatagram))
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as front,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        front.bind(("127.0.0.1", 0))
        client.settimeout(LIMIT)
        client.connect(front.getsockname())
        with nginx(tmp_path, front, server, " udp"):
            client.send(b"hello")
            assert client.recv(100) == f"{client.getsockname()} hello".encode()


class Page(sockserve.HTTPKeepAliveMixIn, http.server.BaseHTTPRequestHandler):
    """Says who asks, and how."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer."""
        header = self.connection_info.proxy_header
        body = f"{self.client_address[0]} {header is not None} {self.connection_info.is_secure}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Nothing."""


def curl(*arguments: str) -> str:
    """What curl prints."""
    command = ["curl", "--silent", "--show-error", "--max-time", "20", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@needs("curl")
def test_curl_sends_a_header_and_speaks_tls(running: Running, pki: Pki) -> None:
    """``--haproxy-protocol`` in the clear and before TLS; plain HTTP to a port of TLS gets its answer."""
    plain = running(make("pool", Page, proxy_from=("127.0.0.1",)))
    url = f"127.0.0.1:{plain.server_address[1]}/"
    assert curl("--haproxy-protocol", f"http://{url}") == "127.0.0.1 True False"
    answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n"
    tls = sockserve.TLS(*pki.a, answer_plain=answer)
    server = running(make("pool", Page, tls=tls))
    port = server.server_address[1]
    to_a = ("--cacert", pki.authority.certificate, "--resolve", f"a.test:{port}:127.0.0.1")
    assert curl(*to_a, f"https://a.test:{port}/", f"https://a.test:{port}/") == "127.0.0.1 False True" * 2
    assert curl(f"http://127.0.0.1:{port}/") == "no\n"


def s_client(server: Any, *arguments: str) -> str:
    """What ``openssl s_client`` prints, with a line as its input."""
    address = f"127.0.0.1:{server.server_address[1]}"
    command = ["openssl", "s_client", "-connect", address, "-ign_eof", *arguments]
    run = subprocess.run(command, input="hello\n", check=False, capture_output=True, text=True, timeout=60)
    return run.stdout


@needs("openssl")
@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
def test_openssl_shakes_hands(running: Running, pki: Pki, version: str) -> None:
    """Each version, with a host's name and a protocol."""
    tls = sockserve.TLS(*pki.a, hosts={"b.test": sockserve.TLS(*pki.b, alpn=["two"])})
    server = running(make("pool", Tell, tls=tls))
    trust = ("-CAfile", pki.authority.certificate, "-verify_return_error")
    said = s_client(server, f"-{version}", "-servername", "b.test", "-alpn", "one,two", *trust)
    assert "Verify return code: 0 (ok)" in said
    assert f"|TLSv1.{version[-1]} b.test two|True|b.test|hello" in said


@needs("openssl")
@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
def test_x16_openssl_resumes_no_session_at_another_host(
    running: Running, pki: Pki, tmp_path: pathlib.Path, expect_log: ExpectLog, version: str
) -> None:
    """X16: with tickets a session goes on at its host, and not at one that asks for a certificate (CVE-2025-23419)."""
    refused = expect_log(logging.INFO, "refused .*peer did not return a certificate")
    b = sockserve.TLS(*pki.b, client_ca=pki.authority.certificate, tickets=1)
    server = running(make("thread", Tell, tls=sockserve.TLS(*pki.a, hosts={"b.test": b}, tickets=1)))
    session = str(tmp_path / "session")
    assert "|hello" in s_client(server, f"-{version}", "-servername", "a.test", "-sess_out", session)
    resumed = s_client(server, f"-{version}", "-servername", "a.test", "-sess_in", session)
    assert "Reused, TLSv1." in resumed
    assert "|hello" in resumed
    assert "|hello" not in s_client(server, f"-{version}", "-servername", "b.test", "-sess_in", session)
    refused.wait()
