"""trio's streams and its datagram socket: ``trio_server.py WORK``."""

from __future__ import annotations

import sys

import trio
from answers import BACKLOG, PAGE, PONG, announce, dns_answer


async def ping(stream: trio.SocketStream) -> None:
    """Answer until the client is done."""
    while await stream.receive_some(1024):
        await stream.send_all(PONG)


async def connect(stream: trio.SocketStream) -> None:
    """Answer once; the server closes."""
    await stream.receive_some(1024)
    await stream.send_all(PAGE)


async def serve(work: str) -> None:
    """Until killed."""
    if work == "udp":
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
            await sock.bind(("127.0.0.1", 0))
            announce(sock.getsockname()[1])
            while True:
                data, address = await sock.recvfrom(65535)
                await sock.sendto(dns_answer(data), address)
    handler = {"ping": ping, "connect": connect}[work]
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=BACKLOG)
    announce(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(handler, listeners)


trio.run(serve, sys.argv[1])
