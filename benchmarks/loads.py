"""The programs that make the clients, each a program made for it, and the reading of what they print."""

from __future__ import annotations

import csv
import pathlib
import re
import socket
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.processes import Place

TIME_LIMIT = 300.0
"""Seconds for one run: ends redis-benchmark, which tries without end when no server listens."""


class Result(NamedTuple):
    """What a run came to."""

    requests: int
    """Answered ones; all were, or LoadError."""
    per_second: float
    p50_ms: float | None
    p99_ms: float | None


class LoadError(Exception):
    """The clients did not get all their answers."""


def run(command: Sequence[str]) -> str:
    """What it prints; LoadError if it fails, or never ends."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired as error:
        raise LoadError(f"{' '.join(command)}: no end after {TIME_LIMIT} s") from error
    if done.returncode != 0:
        raise LoadError(f"{' '.join(command)}: status {done.returncode}: {done.stderr[-1000:]} {done.stdout[-1000:]}")
    return done.stdout


FEWEST_WAITING = 0.05
"""Of the clients: of those that wait for an answer at a time on average."""

ENOUGH_EACH = 20
"""Requests of a client, from which on the average says something."""


def _refuse_starvation(program: str, per_second: float, mean_ms: float, clients: int) -> None:
    """Raise LoadError if few of the clients were answered: then fewer wait at a time than there are (Little's law)."""
    waiting = per_second * mean_ms / 1000
    if waiting < FEWEST_WAITING * clients:
        raise LoadError(f"{program}: of {clients} clients only about {waiting:.1f} at a time waited: others starve")


def redis_benchmark(place: Place, clients: int, requests: int, keep: bool = True) -> Result:
    """A line and its answer, ``PING`` and ``+PONG``, on kept connections or, without ``keep``, each on a new one."""
    options = ["-t", "ping_inline", "--csv", "--precision", "3", "-k", str(int(keep))]
    where = ["-s", place] if isinstance(place, str) else ["-p", str(place)]
    output = run(["redis-benchmark", *where, "-c", str(clients), "-n", str(requests), *options])
    return read_redis_benchmark(output, clients, requests)


def read_redis_benchmark(output: str, clients: int, requests: int) -> Result:
    """Its ``--csv``."""
    rows = [row for row in csv.DictReader(output.splitlines()) if row["test"] == "PING_INLINE"]
    if len(rows) != 1:
        raise LoadError(f"redis-benchmark printed {output!r}")
    (row,) = rows
    if requests >= ENOUGH_EACH * clients:
        _refuse_starvation("redis-benchmark", float(row["rps"]), float(row["avg_latency_ms"]), clients)
    return Result(requests, float(row["rps"]), float(row["p50_latency_ms"]), float(row["p99_latency_ms"]))


HOLDERS = 15
"""Of sixteen workers so many are held."""


def beside_held(place: Place, clients: int, requests: int) -> Result:
    """Quick requests beside clients that hold a worker each, all the time."""
    is_over = threading.Event()

    def hold() -> None:
        with socket.create_connection(("127.0.0.1", int(place)), TIME_LIMIT) as client:
            while not is_over.is_set():
                client.sendall(b"HOLD\r\n")
                if not client.recv(100):
                    return

    holders = [threading.Thread(target=hold) for _ in range(HOLDERS)]
    for holder in holders:
        holder.start()
    try:
        return redis_benchmark(place, clients, requests)
    finally:
        is_over.set()
        for holder in holders:
            holder.join()


def ab(port: Place, clients: int, requests: int) -> Result:
    """An HTTP request, and the connection's end after it.

    LoadError also if it waited for itself, until its time limit: it leaves connections on which it sends nothing, and
    behind these, where each holds a worker, a request may be stuck ("When ab waits for itself" in
    benchmarks/NOTEBOOK.md). Worth another run.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "percentiles.csv"
        command = ["ab", "-q", "-c", str(clients), "-n", str(requests), "-e", str(path), f"http://127.0.0.1:{port}/"]
        return read_ab(run(command), path.read_text("ascii"), requests)


def read_ab(output: str, percentiles: str, requests: int) -> Result:
    """Its report, and what ``-e`` writes."""
    figures = dict(re.findall(r"^([A-Z][\w -]+):\s+([\d.]+)", output, re.MULTILINE))
    not_ok = int(figures.get("Non-2xx responses", "0"))
    if (int(figures.get("Complete requests", "0")), int(figures.get("Failed requests", "-1")), not_ok) != (
        requests,
        0,
        0,
    ):
        raise LoadError(f"ab: {output}")
    times = {row[0]: float(row[1]) for row in csv.reader(percentiles.splitlines()[1:])}
    return Result(requests, float(figures["Requests per second"]), times.get("50"), times.get("99"))


def wrk(port: Place, clients: int, seconds: float) -> Result:
    """HTTP requests on kept connections, as many as are answered in the time."""
    options = ["-t", "1", "-c", str(clients), "-d", f"{max(1, round(seconds))}s", "--latency"]
    return read_wrk(run(["wrk", *options, f"http://127.0.0.1:{port}/"]), clients)


def read_wrk(output: str, clients: int) -> Result:
    """Its report."""
    total = re.search(r"(\d+) requests in ", output)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if total is None or rate is None or "Socket errors" in output or "Non-2xx" in output:
        raise LoadError(f"wrk: {output}")
    units = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
    found = re.findall(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s|m)$", output, re.MULTILINE)
    times = {percent: float(value) * units[unit] for percent, value, unit in found}
    mean = re.search(r"^\s+Latency\s+([\d.]+)(us|ms|s|m)\b", output, re.MULTILINE)
    if mean is not None:
        _refuse_starvation("wrk", float(rate[1]), float(mean[1]) * units[mean[2]], clients)
    return Result(int(total[1]), float(rate[1]), times.get("50"), times.get("99"))


QUERY = "example.com A\n"


def dnsperf(port: Place, clients: int, requests: int) -> Result:
    """DNS queries over UDP, ``clients`` outstanding; its latency is a mean, so there are no percentiles."""
    with tempfile.NamedTemporaryFile("w", suffix=".queries") as queries:
        queries.write(QUERY * requests)
        queries.flush()
        options = ["-c", "1", "-q", str(clients), "-n", "1", "-d", queries.name, "-m", "udp"]
        return read_dnsperf(run(["dnsperf", "-s", "127.0.0.1", "-p", str(port), *options]))


def read_dnsperf(output: str) -> Result:
    """Its report."""
    figures = dict(re.findall(r"^\s+([A-Z][\w ]+):\s+([\d.]+)", output, re.MULTILINE))
    done = int(figures.get("Queries completed", "0"))
    # A datagram may be lost by right; more than a few are a server that cannot follow.
    if done == 0 or int(figures.get("Queries lost", "0")) > done // 1000 or "SERVFAIL" in output:
        raise LoadError(f"dnsperf: {output}")
    return Result(done, float(figures["Queries per second"]), None, None)
