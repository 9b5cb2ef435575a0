"""Adds up numbers that programs report by TCP, UDP and a Unix socket, until it is stopped; then it prints the sums.

    python examples/collector.py /tmp/collector.sock

and, with the addresses that it prints:

    echo 'jobs 3' | nc -N 127.0.0.1 PORT
    echo 'jobs 1' | nc -u -w 1 127.0.0.1 PORT
    echo 'jobs 2' | nc -N -U /tmp/collector.sock

The answer is how many lines were understood. The lesson: servers of different kinds, each with its own way to run
handlers, are one ``ServerGroup``. It starts and stops as one, and what is in progress at the end is drained.
"""

from __future__ import annotations

import collections
import re
import signal
import sys
import threading

import sockserve

# What strangers may make it hold.
LONGEST_LINE = 200
MOST_NAMES = 1000

LINE = re.compile(rb"(\w{1,50}) (\d{1,9})\s*")

sums: collections.Counter[str] = collections.Counter()
lock = threading.Lock()


def take(line: bytes) -> bool:
    """Add what a line reports; say whether it was understood, and there was room for its name."""
    found = LINE.fullmatch(line)
    if found is None:
        return False
    name = found[1].decode()
    with lock:
        if name not in sums and len(sums) >= MOST_NAMES:
            return False
        sums[name] += int(found[2])
    return True


class Lines(sockserve.StreamRequestHandler):
    """Takes lines until the client has no more."""

    timeout = 60

    def handle(self) -> None:
        """Answer at the end of the input, or of the patience with a line that has none."""
        taken = 0
        while line := self.rfile.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE:
                break
            taken += take(line)
        self.wfile.write(b"%d\n" % taken)


class Packet(sockserve.DatagramRequestHandler):
    """Takes the lines of a datagram."""

    def handle(self) -> None:
        """Answer each datagram with less than it has."""
        self.wfile.write(b"%d\n" % sum(take(line) for line in self.packet.splitlines()))


def main(path: str) -> None:
    """Serve until SIGTERM or Ctrl-C, give requests in progress five seconds, and print the sums."""
    tcp = sockserve.ThreadPoolTCPServer(("127.0.0.1", 0), Lines)
    udp = sockserve.UDPServer(("127.0.0.1", 0), Packet)
    unix = sockserve.ThreadPoolUnixStreamServer(path, Lines)
    with sockserve.ServerGroup(tcp, udp, unix) as group:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: group.shutdown())
        print(f"listening on tcp://127.0.0.1:{tcp.server_address[1]}")
        print(f"listening on udp://127.0.0.1:{udp.server_address[1]}")
        print(f"listening on unix:{path}", flush=True)
        group.serve_forever()
        group.drain(5)
    for name, number in sorted(sums.items()):
        print(name, number)


if __name__ == "__main__":
    main(*sys.argv[1:])
