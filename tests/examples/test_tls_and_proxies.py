"""TLS with client certificates, STARTTLS, and an example behind a balancer: with openssl, ssl and curl as clients."""

from __future__ import annotations

import socket
import ssl

import pytest
from example import Example, host_and_port, run
from support.under_test import LIMIT

from sockserve import testing


def test_tls_echo(certificate_authority: testing.CertificateAuthority) -> None:
    """A client with a certificate is greeted and answered; one without is refused."""
    server, alice = certificate_authority.sign("localhost"), certificate_authority.sign("alice")
    with Example("tls_echo.py", *server, certificate_authority.certificate, "tls://127.0.0.1:0") as example:
        host, port = host_and_port(example.address())

        def connect(certificate: testing.Certificate | None) -> ssl.SSLSocket:
            plain = socket.create_connection((host, int(port)), LIMIT)
            return certificate_authority.client_context(certificate).wrap_socket(plain, server_hostname="localhost")

        with connect(alice) as client:
            client.sendall(b"hello\n")
            assert client.recv(100) == b"hello alice\n"
            assert client.recv(100) == b"hello\n"
        with connect(None) as client, pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
            client.recv(100)
        assert "did not return a certificate" in example.end()


def test_starttls(certificate_authority: testing.CertificateAuthority) -> None:
    """A password is taken over TLS only."""
    with Example("starttls.py", *certificate_authority.sign("localhost"), "tcp://127.0.0.1:0") as example:
        host, port = host_and_port(example.address())
        with socket.create_connection((host, int(port)), LIMIT) as plain:
            for line, answer in ((b"LOGIN x\r\n", b"530 STARTTLS first\r\n"), (b"STARTTLS\r\n", b"220 go ahead\r\n")):
                plain.sendall(line)
                assert plain.recv(100) == answer
            context = certificate_authority.client_context()
            with context.wrap_socket(plain, server_hostname="localhost") as client:
                for line, answer in ((b"LOGIN x\r\n", b"235 welcome\r\n"), (b"QUIT\r\n", b"221 bye\r\n")):
                    client.sendall(line)
                    assert client.recv(100) == answer
        example.end()


def test_behind_balancer() -> None:
    """The client's address is the one in the header; without a header it is refused."""
    with Example("behind_balancer.py", "127.0.0.0/8", "tcp://127.0.0.1:0") as example:
        url = example.address().replace("tcp:", "http:")
        assert run("curl", "--silent", "--haproxy-protocol", url) == "127.0.0.1 by 127.0.0.1\n"
        header = b"PROXY TCP4 192.0.2.1 192.0.2.9 5000 80\r\n"
        request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert testing.ask(url.replace("http:", "tcp:"), header + request).endswith(b"\r\n\r\n192.0.2.1 by 127.0.0.1\n")
        # Refused: an empty reply.
        run("curl", "--silent", url, status=52)
        assert "PROXY header: there is none" in example.end()
