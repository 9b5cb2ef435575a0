"""``HTTPKeepAliveMixIn``: handlers of ``http.server`` that wait for their next request by ``keep_open()``."""

from __future__ import annotations

import http.client
import http.server
import itertools
import pathlib
import socket
from typing import Any

import pytest
from support.pages import PathPage, StandardPool
from support.under_test import LIMIT
from support.waiting import wait_until

import sockserve
from sockserve.core.serving import table_of
from sockserve.pytest_plugin import Running
from sockserve.testing import connect

LOOPBACK = ("127.0.0.1", 0)


class Page(sockserve.HTTPKeepAliveMixIn, PathPage):
    """Answers with its path."""

    timeout = LIMIT


HTTP_SERVERS = [
    StandardPool,
    sockserve.ThreadPoolTCPServer,
    sockserve.ThreadingTCPServer,
    sockserve.ForkingTCPServer,
    http.server.ThreadingHTTPServer,
]


@pytest.mark.parametrize("server_class", HTTP_SERVERS)
def test_http_servers_handlers_keep_their_connections(running: Running, server_class: Any) -> None:
    """``HTTPKeepAliveMixIn`` answers request after request on one connection, whatever runs the handler."""
    server = running(server_class(LOOPBACK, Page), poll_interval=0.01)
    clients = [http.client.HTTPConnection(*server.server_address, timeout=LIMIT) for _ in range(5)]
    for path, client in itertools.product(("/a", "/b", "/c"), clients):
        client.request("GET", path)
        assert client.getresponse().read() == path.encode()
    if server_class in (StandardPool, sockserve.ThreadPoolTCPServer):
        wait_until(lambda: [live.state for live in table_of(server).all()] == ["parked"] * 5)
    for client in clients:
        assert client.sock is not None
        # The children are forked by the process of the clients, and hold copies of these sockets.
        client.sock.shutdown(socket.SHUT_RDWR)
        client.close()


def test_pipelined_http_requests_are_answered(running: Running) -> None:
    """Those that were read ahead too, and the last one closes as it asks."""
    server = running(StandardPool(LOOPBACK, Page))
    requests = b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\nConnection: close\r\n\r\n"
    with connect(server.server_address, timeout=LIMIT) as client:
        client.sendall(requests)
        answer = b"".join(iter(lambda: client.recv(1000), b""))
    assert [answer.count(each) for each in (b"200 OK", b"/a", b"/b", b"/c")] == [3, 1, 1, 1]


def test_nagles_algorithm_is_left_alone_where_there_is_none(running: Running, tmp_path: pathlib.Path) -> None:
    """A handler that asks for TCP_NODELAY, which the standard library's sets on any socket, serves Unix sockets too."""

    class Prompt(Page):
        disable_nagle_algorithm = True

        def do_GET(self) -> None:  # noqa: N802 - the standard library's name
            """Answer with what the socket was told."""
            is_tcp = self.connection.family == socket.AF_INET
            self.path = str(is_tcp and bool(self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
            super().do_GET()

    def ask_for_a_page(server: Any) -> bytes:
        with connect(server, timeout=LIMIT) as client:
            client.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
            return b"".join(iter(lambda: client.recv(1000), b""))

    unix = running(sockserve.ThreadPoolUnixStreamServer(f"{tmp_path}/http.sock", Prompt))
    assert ask_for_a_page(unix).endswith(b"\r\n\r\nFalse")
    tcp = running(sockserve.ThreadPoolTCPServer(LOOPBACK, Prompt))
    assert ask_for_a_page(tcp).endswith(b"\r\n\r\nTrue")
