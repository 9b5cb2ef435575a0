"""The standard library's ``xmlrpc.server`` on sockserve.

    python examples/xml_rpc.py tcp://127.0.0.1:8000
    python -c "import xmlrpc.client; print(xmlrpc.client.ServerProxy('http://127.0.0.1:8000').add(1, 2))"

Its handler asks its server for the functions. Here it is given them, and so runs in any server, thread or child. A
program that has a ``SimpleXMLRPCServer`` of its own mixes in what serves it, ``class Server(sockserve.ThreadingMixIn,
SimpleXMLRPCServer)``, or changes nothing at all: ``python -m sockserve.dropin program.py``.
"""

from __future__ import annotations

import logging
import sys
import xmlrpc.server

import sockserve

LARGEST_BODY = 65536


class Functions(xmlrpc.server.SimpleXMLRPCDispatcher):
    """What can be called."""

    logRequests = False  # noqa: N815 - the name that the handler looks for

    def __init__(self) -> None:
        super().__init__(allow_none=True)
        self.register_introspection_functions()
        self.register_function(lambda a, b: a + b, "add")


class XmlRpc(xmlrpc.server.SimpleXMLRPCRequestHandler):
    """Answers calls of ``Functions``."""

    timeout = 30

    def setup(self) -> None:
        """Have the functions where the handler looks for them."""
        super().setup()
        self.server = Functions()  # type: ignore[assignment]

    def do_POST(self) -> None:  # noqa: N802 - the name that http.server calls
        """Answer a call; read no body that is longer than a call needs to be."""
        length = self.headers.get("content-length", "")
        if not (length.isdecimal() and len(length) < 10 and int(length) <= LARGEST_BODY):
            self.send_error(413)
        else:
            super().do_POST()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sockserve.serve(XmlRpc, *(sys.argv[1:] or ["tcp://127.0.0.1:0"]))
