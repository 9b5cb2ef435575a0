"""The same handler on several addresses at once, as a program: ``serve()`` does all that ``main()`` in echo.py does.

    python examples/echo_everywhere.py
    python examples/echo_everywhere.py --fork

It binds every address or none, says where it listens, and on SIGTERM or Ctrl-C frees the ports, lets handlers that
wait for input see its end, and returns when the last request has ended. The command line does the same for any
handler:

    python -m sockserve echo:Echo tcp://127.0.0.1:9000 udp://127.0.0.1:9000
"""

from __future__ import annotations

import logging
import pathlib
import sys
import tempfile

from echo import Echo

import sockserve

log = logging.getLogger("echo")


def main() -> None:
    """Serve four addresses, then tell how many requests there were."""
    logging.basicConfig(level=logging.INFO)
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        counters = sockserve.serve(
            Echo,
            "tcp://127.0.0.1:0",
            "udp://127.0.0.1:0",
            f"unix:{directory / 'stream.sock'}",
            f"unix-dgram:{directory / 'datagram.sock'}",
            model="fork" if "--fork" in sys.argv else "thread",
            drain_timeout=10,
        )
    log.info("%d handled, %d failed", counters.handled, counters.failed)


if __name__ == "__main__":
    main()
