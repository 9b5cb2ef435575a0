"""Tools for testing your own handlers and servers: real sockets, nothing to install, no test framework needed.

    with running(sockserve.ThreadingTCPServer(("127.0.0.1", 0), MyHandler)) as server:
        assert ask(server, b"hello") == b"HELLO"

They work with the servers of the standard library as well. For pytest there are the fixtures ``running``
and ``certificate_authority``.
"""

from __future__ import annotations

from sockserve.net.connecting import connect
from sockserve.testing.certificates import Certificate, CertificateAuthority
from sockserve.testing.clients import HalfClose, HalfHandshake, Reset, Stall, Trickle, ask
from sockserve.testing.leaks import LeakError, leak_guard
from sockserve.testing.servers import call_within, running

__all__ = [
    "Certificate",
    "CertificateAuthority",
    "HalfClose",
    "HalfHandshake",
    "LeakError",
    "Reset",
    "Stall",
    "Trickle",
    "ask",
    "call_within",
    "connect",
    "leak_guard",
    "running",
]

for _name in __all__:
    # Tracebacks name a thing by where it is public.
    globals()[_name].__module__ = __name__
