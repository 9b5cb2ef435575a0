"""Times shutdown(): ``shutdown_server.py TIMES``, and then as blocking.py.

Writes its port, and two lines of JSON, the milliseconds of each: of as many times without clients, and of as many after
those have had a moment to begin.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from blocking import NO_SUCH_MODEL, announce_server, make_server

ASLEEP = 0.03
"""Seconds after which a loop that has begun is in the middle of what it does: waiting, or serving."""

SPREAD = 0.01
"""Seconds by which the first and the last of the shutdowns differ in that."""

POLL_INTERVAL = 0.5
"""Of the standard library's loop. Asked at some point in it, for its shutdown() takes what is left of it."""

CLIENTS_BEGIN = 0.5


def shutdown_once(server: Any, seconds: float) -> float:
    """Serve for a while, and stop; return how many milliseconds ``shutdown()`` took."""
    loop = threading.Thread(target=server.serve_forever)
    loop.start()
    threading.Event().wait(seconds)
    before = time.perf_counter()
    server.shutdown()
    took = time.perf_counter() - before
    loop.join()
    return took * 1000


def main() -> None:
    """All of them."""
    times, module_name, model, work, *numbers = sys.argv[1:]
    try:
        server = make_server(module_name, model, work, *map(int, numbers))
    except (AttributeError, ImportError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(NO_SUCH_MODEL)
    announce_server(server)
    spread = POLL_INTERVAL if module_name == "socketserver" else SPREAD
    for first in (ASLEEP, CLIENTS_BEGIN):
        shutdown_once(server, first)
        took = [shutdown_once(server, ASLEEP + spread * each / int(times)) for each in range(int(times))]
        sys.stdout.write(f"{json.dumps(took)}\n")
        sys.stdout.flush()
    server.server_close()


main()
