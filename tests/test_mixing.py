"""Our classes and the standard library's in one server: whoever changes one import at a time has both for a while."""

from __future__ import annotations

import http.client
import http.server
import itertools
import logging
import socket
import socketserver
import xmlrpc.client
import xmlrpc.server
from typing import Any

import pytest
from support.handlers import handlers
from support.log_watch import ExpectLog
from support.pages import PathPage
from support.under_test import LIMIT

import sockserve
from sockserve.pytest_plugin import Running
from sockserve.testing import Stall, ask, call_within

LOOPBACK = ("127.0.0.1", 0)
MODULES = [sockserve, socketserver]
MIX_INS = ["", "ThreadingMixIn", "ForkingMixIn"]
KINDS = {"TCPServer": "EchoStream", "UDPServer": "EchoDatagram"}


def names(modules: tuple[Any, ...]) -> str:
    """How a test is told from its neighbours."""
    return "-".join(module.__name__ for module in modules)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mix_in", MIX_INS)
@pytest.mark.parametrize("modules", list(itertools.product(MODULES, repeat=3))[1:-1], ids=names)
def test_any_mix_serves(running: Running, modules: tuple[Any, Any, Any], mix_in: str, kind: str) -> None:
    """Mix-in, server and handler may each come from either module."""
    mix_ins, servers, handling = modules
    bases = (getattr(mix_ins, mix_in),) if mix_in else ()
    server_class: Any = type("Server", (*bases, getattr(servers, kind)), {})
    server = running(server_class(LOOPBACK, getattr(handlers(handling), KINDS[kind])), poll_interval=0.01)
    for number in range(5):
        assert ask(server, b"question %d\n" % number) == b"question %d\n" % number


@pytest.mark.parametrize("mix_in", [sockserve.ThreadingMixIn, sockserve.ForkingMixIn, sockserve.ThreadPoolMixIn])
def test_our_mix_ins_on_http_server(running: Running, mix_in: Any) -> None:
    """``class S(ThreadingMixIn, http.server.HTTPServer)`` serves several clients that keep their connections."""
    server: Any = running(type("Server", (mix_in, http.server.HTTPServer), {})(LOOPBACK, PathPage), poll_interval=0.01)
    clients = [http.client.HTTPConnection(*server.server_address, timeout=LIMIT) for _ in range(3)]
    for client, path in itertools.product(clients, ("/a", "/b")):
        client.request("GET", path)
        assert client.getresponse().read() == path.encode()
    for client in clients:
        # The children are forked by the process of the clients, and hold copies of these sockets.
        client.sock.shutdown(socket.SHUT_RDWR)
        client.close()


def test_closing_http_server_waits_for_an_idle_client_only_so_long(running: Running, expect_log: ExpectLog) -> None:
    """What ``drain_timeout`` promises holds on a standard library's server, too."""

    class Server(sockserve.ThreadingMixIn, http.server.HTTPServer):
        drain_timeout = 0.05

    expect_log(logging.WARNING, r": cut \('127.0.0.1', \d+\), in progress for ")
    server = running(Server(LOOPBACK, PathPage), poll_interval=0.01)
    with Stall(server, b"GET / HTTP/1.1\r\n\r\n") as idle:
        assert idle.connection.recv(100).startswith(b"HTTP/1.1 200")
        server.shutdown()
        call_within(LIMIT, server.server_close)
        assert idle.read().endswith(b"/")


def test_our_mix_in_on_xmlrpc_server(running: Running) -> None:
    """``SimpleXMLRPCServer`` has a second base that it initialises itself."""

    class Server(sockserve.ThreadingMixIn, xmlrpc.server.SimpleXMLRPCServer):
        pass

    server = running(Server(LOOPBACK, logRequests=False), poll_interval=0.01)
    server.register_function(pow)
    host, port = server.socket.getsockname()
    with xmlrpc.client.ServerProxy(f"http://{host}:{port}") as proxy:
        assert proxy.pow(2, 10) == 1024
