"""Run a script with a mix-in in each of socketserver's servers: ``mixed_in.py MIXIN SCRIPT [ARGUMENT ...]``.

For a Python that sockserve's drop-in is installed in. What the script and all that it imports derive from
``socketserver.TCPServer`` then runs its handlers in a pool, in greenlets or in worker processes, and so does what
names ``ThreadingMixIn``.
"""

from __future__ import annotations

import runpy
import socketserver
import sys
from typing import Any

import sockserve

MIXINS = {"pool": "ThreadPoolMixIn", "greenlet": "GreenletMixIn", "prefork": "PreForkMixIn"}

SERVERS = ("TCPServer", "UDPServer", "UnixStreamServer", "UnixDatagramServer")

READY_MADE = ("ThreadingTCPServer", "ThreadingUDPServer", "ThreadingUnixStreamServer", "ThreadingUnixDatagramServer")


def mix_in(name: str) -> None:
    """Derive each of the module's servers from this mix-in first, and let it be ``ThreadingMixIn`` too."""
    module: Any = socketserver
    mixin = getattr(sockserve, MIXINS[name])
    # A class of its own: of the very same one, written before a server that has it already, Python makes no order.
    module.ThreadingMixIn = type(mixin.__name__, (mixin,), {})
    for server in SERVERS:
        base = getattr(sockserve, server)
        setattr(module, server, type(server, (mixin, base), {"__module__": base.__module__}))
    for ready_made in READY_MADE:
        base = getattr(module, ready_made.removeprefix("Threading"))
        setattr(module, ready_made, type(ready_made, (module.ThreadingMixIn, base), {"__module__": base.__module__}))


def main() -> None:
    """Do it, and become that script."""
    if socketserver.TCPServer is not sockserve.TCPServer:
        raise SystemExit("the drop-in is not in force: python -m sockserve.dropin mixed_in.py ...")
    name, script = sys.argv[1:3]
    mix_in(name)
    del sys.argv[:2]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
