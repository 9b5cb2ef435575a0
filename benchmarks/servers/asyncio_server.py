"""asyncio streams, and its protocol for datagrams: ``asyncio_server.py WORK [uvloop]``."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from answers import BACKLOG, PAGE, PONG, announce, dns_answer


async def ping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer until the client is done."""
    while await reader.read(1024):
        writer.write(PONG)
        await writer.drain()
    writer.close()


async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer once, and close."""
    await reader.read(1024)
    writer.write(PAGE)
    await writer.drain()
    writer.close()


class Datagrams(asyncio.DatagramProtocol):
    """Answers each."""

    transport: Any

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what answers."""
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """One datagram."""
        self.transport.sendto(dns_answer(data), addr)


async def serve(work: str) -> None:
    """Until killed."""
    if work == "udp":
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Datagrams, local_addr=("127.0.0.1", 0))
        announce(transport.get_extra_info("sockname")[1])
        await asyncio.Event().wait()
    else:
        handler = {"ping": ping, "connect": connect}[work]
        server = await asyncio.start_server(handler, "127.0.0.1", 0, backlog=BACKLOG)
        announce(server.sockets[0].getsockname()[1])
        await server.serve_forever()


def main() -> None:
    """Serve the work."""
    if sys.argv[2:] == ["uvloop"]:
        import uvloop  # noqa: PLC0415 - an extra that plain asyncio does without

        uvloop.run(serve(sys.argv[1]))
    else:
        asyncio.run(serve(sys.argv[1]))


main()
