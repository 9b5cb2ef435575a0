"""TLS beside greenlets: what waits for a handshake, or within a connection, lets others run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pathlib
import ssl
from typing import Any

from support.certificates import client_context, server_context
from support.log_watch import ExpectLog
from support.under_test import LIMIT
from test_greenlets import LOOPBACK, Echo, handling

import sockserve
from sockserve import greenlets
from sockserve.pytest_plugin import Running
from sockserve.testing import HalfHandshake, connect


async def echo_over_tls(address: tuple[str, int], context: ssl.SSLContext, data: bytes) -> None:
    """Send while reading what comes back; not in two threads, for which an SSLSocket is not made before 3.13."""
    reader, writer = await asyncio.open_connection(*address, ssl=context, server_hostname="localhost")
    writer.write(data)
    assert await asyncio.wait_for(reader.readexactly(len(data)), LIMIT) == data
    writer.close()
    await asyncio.wait_for(writer.wait_closed(), LIMIT)


def test_a_silent_tls_client_holds_up_nobody(
    running: Running, certificate: pathlib.Path, expect_log: ExpectLog
) -> None:
    """Beside clients that never finish their handshake others are served, and data beyond any buffer passes."""
    expect_log(logging.INFO, "TLS handshake failed", at_least=0)
    expect_log(logging.WARNING, "cut .*in progress", at_least=0)
    server = sockserve.GreenletTCPServer(LOOPBACK, Echo)
    server.socket = server_context(certificate).wrap_socket(server.socket, server_side=True)
    running(server)
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(HalfHandshake(server))
        asyncio.run(echo_over_tls(server.server_address, client_context(certificate), bytes(1_000_000)))
        server.drain(0.1)


def test_a_socket_that_a_handler_wraps_can_be_made_cooperative(running: Running, certificate: pathlib.Path) -> None:
    """After STARTTLS, ``cooperative()`` makes the wrapped socket wait in turn, the handshake included."""

    def handle(self: Any) -> None:
        assert self.request.recv(8) == b"STARTTLS"
        context = server_context(certificate)
        wrapped = context.wrap_socket(self.request, server_side=True, do_handshake_on_connect=False)
        # The idle client leaves in the middle of its handshake.
        with contextlib.suppress(OSError), greenlets.cooperative(wrapped) as secure:
            secure.do_handshake()
            secure.sendall(secure.recv(100).upper())

    server = running(sockserve.GreenletTCPServer(LOOPBACK, handling(handle)))
    with connect(server, timeout=LIMIT) as idle, connect(server, timeout=LIMIT) as client:
        for each in (idle, client):
            each.sendall(b"STARTTLS")
        with client_context(certificate).wrap_socket(client, server_hostname="localhost") as secure:
            secure.sendall(b"hello")
            assert secure.recv(100) == b"HELLO"
