"""The benchmark harness: it reads what the load generators print, knows a process tree's time, and judges rightly."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import socket
import sys
from collections.abc import Collection
from typing import Any

import pytest
from support.programs import Program
from support.under_test import LIMIT
from support.waiting import wait_until

from benchmarks import calls, contenders, loads, page, processes, report, targets, works
from benchmarks.__main__ import selected
from benchmarks.processes import ControlGroup, ServerDiedError, ServerProcess, control_groups
from benchmarks.targets import Figure, Limit
from sockserve import testing

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = (ROOT / "docs" / page.RESULTS_PAGE).read_text("utf-8")

REDIS = """\
"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
"PING_INLINE","25510.21","1.874","0.008","1.127","5.983","10.335","50.207"
"""

AB = """\
Concurrency Level:      50
Time taken for tests:   0.199 seconds
Complete requests:      3000
Failed requests:        0
Total transferred:      123000 bytes
Requests per second:    15046.27 [#/sec] (mean)
Time per request:       3.323 [ms] (mean)
"""
AB_PERCENTILES = "Percentage served,Time in ms\n0,1.226\n1,2.243\n50,3.1\n98,4.272\n99,6.252\n100,6.579\n"

WRK = """\
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.06ms    2.57ms  46.19ms   92.58%
  Latency Distribution
     50%  980.00us
     75%    2.55ms
     99%   10.35ms
  13041 requests in 1.10s, 1.42MB read
Requests/sec:  11854.01
Transfer/sec:      1.29MB
"""

DNSPERF = """\
Statistics:

  Queries sent:         5000
  Queries completed:    5000 (100.00%)
  Queries lost:         0 (0.00%)

  Response codes:       NOERROR 5000 (100.00%)
  Run time (s):         0.055573
  Queries per second:   89971.748871

  Average Latency (s):  0.000420 (min 0.000026, max 0.004157)
"""


def test_what_redis_benchmark_prints_is_read() -> None:
    """Its throughput and percentiles; anything else is an error."""
    assert loads.read_redis_benchmark(REDIS, 50, 5000) == (5000, 25510.21, 1.127, 10.335)
    with pytest.raises(loads.LoadError):
        loads.read_redis_benchmark("Could not connect", 50, 5000)
    with pytest.raises(loads.LoadError, match="starve"):
        loads.read_redis_benchmark(REDIS, 2000, 100_000)


def test_what_ab_prints_is_read() -> None:
    """Its throughput and percentiles; a request that failed or is missing is an error."""
    assert loads.read_ab(AB, AB_PERCENTILES, 3000) == (3000, 15046.27, 3.1, 6.252)
    for wrong in (
        AB.replace("requests:        0", "requests:        1"),
        AB.replace("3000", "2999"),
        AB + "Non-2xx responses:      7\n",
    ):
        with pytest.raises(loads.LoadError):
            loads.read_ab(wrong, AB_PERCENTILES, 3000)


def test_what_wrk_prints_is_read() -> None:
    """Its number of requests, throughput, and percentiles in whatever unit; socket errors are errors."""
    assert loads.read_wrk(WRK, 20) == (13041, 11854.01, 0.98, 10.35)
    with pytest.raises(loads.LoadError):
        loads.read_wrk(WRK + "  Socket errors: connect 0, read 3, write 0, timeout 0\n", 20)
    with pytest.raises(loads.LoadError, match="starve"):
        loads.read_wrk(WRK, 1000)


def test_what_dnsperf_prints_is_read() -> None:
    """Its number of answers and throughput; more than a stray lost query is an error."""
    assert loads.read_dnsperf(DNSPERF) == (5000, pytest.approx(89971.75), None, None)
    with pytest.raises(loads.LoadError):
        loads.read_dnsperf(DNSPERF.replace("lost:         0", "lost:        50"))


STRACE = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 63.04    0.009999           9      1000           sendto
 30.00    0.005863           5      1100       100 recvfrom
  6.96    0.000100           1         4           ioctl
------ ----------- ----------- --------- --------- ----------------
100.00    0.015862           7      2104       100 total
"""


def test_what_strace_counts_is_read() -> None:
    """Calls per request, the most frequent first; what is rare is not worth a word."""
    counts = calls.read_summary(STRACE)
    assert counts == {"recvfrom": 1.1, "sendto": 1.0, "ioctl": 0.004}
    assert calls.words(counts) == "recvfrom 1.10, sendto 1.00"


def test_a_load_that_fails_is_an_error_that_shows_what_it_said() -> None:
    """Its status, and the end of its output."""
    with pytest.raises(loads.LoadError, match="status 7: no such server"):
        loads.run([sys.executable, "-c", "import sys; sys.stderr.write('no such server'); sys.exit(7)"])


BUSY_TREE = """
import os, time
def burn(seconds):
    while time.process_time() < seconds:
        pass
child = os.fork()
if child == 0:
    burn(0.15)
    os._exit(0)
os.waitpid(child, 0)
burn(0.1)
print(1, flush=True)
if os.fork():
    os.wait()
else:
    os.read(os.open(os.environ["FIFO"], os.O_RDONLY), 1)
"""


@pytest.fixture
def tree(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, in_group: bool) -> Any:
    """A process that has computed for 0.1 seconds, had a child that did for 0.15, and waits for another that blocks."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    monkeypatch.setenv("FIFO", str(fifo))
    parent = control_groups() if in_group else None
    if in_group and parent is None:
        pytest.skip("no control group may be made here")
    group = None if parent is None else ControlGroup(parent, f"sockserve-test-{os.getpid()}")
    with ServerProcess([sys.executable, "-c", BUSY_TREE], os.sched_getaffinity(0), group) as made:
        wait_until(lambda: len(made.pids()) == 2)
        yield made


@pytest.mark.parametrize("in_group", [False, True])
def test_the_processor_time_is_that_of_the_whole_tree(tree: ServerProcess) -> None:
    """Children that ended, and the process itself, by its clock as by a control group."""
    # Both besides start an interpreter.
    assert 0.24 <= tree.cpu_seconds() <= 3.0


@pytest.mark.parametrize("in_group", [False])
def test_memory_threads_and_wakeups_are_those_of_the_tree(tree: ServerProcess) -> None:
    """Two processes with a thread each, which sleep."""
    assert tree.threads() == 2
    assert tree.memory() > 2**20
    assert works.settle(tree) >= 0.24
    before = tree.sleeps()
    processes.pause(0.1)
    assert processes.wakeups(before, tree.sleeps()) == 0


def test_every_thread_that_was_woken_counts() -> None:
    """One that woke and slept again, one that ended, one that is new."""
    assert processes.wakeups({1: 5, 2: 7}, {1: 8, 3: 2}) == 3 + 1 + 2


@pytest.mark.parametrize("in_group", [False])
def test_nothing_of_a_stopped_tree_remains(tree: ServerProcess) -> None:
    """The child that blocked is gone as well, and to stop it again has no effect."""
    tree.stop()
    assert not [pid for pid in tree.pids() if pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()]
    tree.stop()


def test_a_server_that_does_not_start_says_why() -> None:
    """The exception has its status and what it wrote to its standard error."""
    command = contenders.BY_NAME["thread"].command("ping")
    command[command.index("thread")] = "telepathy"
    with pytest.raises(ServerDiedError) as caught:
        ServerProcess(command, os.sched_getaffinity(0), None)
    assert caught.value.status == contenders.NO_SUCH_MODEL
    assert "telepathy" in caught.value.said


def _ask(port: int, _clients: int, requests: int) -> loads.Result:
    for _ in range(requests):
        assert testing.ask(("127.0.0.1", port), b"GET / HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\nok\n")
    return loads.Result(requests, 1.0, None, None)


@pytest.mark.parametrize("name", ["stdlib-thread", "inline", "pool", "asyncio"])
def test_a_server_is_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One from each program that needs no other package, for some requests."""
    monkeypatch.setenv("PYTHONPATH", contenders.python_path())
    work = works.Rate("connect", "connect", _ask, clients=1, requests=200, turns=1)
    cores = os.sched_getaffinity(0)
    places = works.Places(min(cores), max(cores), (min(cores), max(cores)))

    def start(each: contenders.Contender, protocol: str, cores: Collection[int]) -> ServerProcess:
        return ServerProcess(each.command(protocol), cores, None)

    figures = work.measure([contenders.BY_NAME[name]], start, places, works.SMOKE)
    assert figures[name]["cpu_us"] > 0
    assert figures[name]["mib"] > 1


def test_twins_have_further_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """All have the first turns; after them only those that are compared to a twentieth have some."""
    monkeypatch.setenv("PYTHONPATH", contenders.python_path())
    asked: list[processes.Place] = []

    def load(place: processes.Place, _clients: int, requests: int) -> loads.Result:
        asked.append(place)
        return loads.Result(requests, 1.0, None, None)

    cores = os.sched_getaffinity(0)
    places = works.Places(min(cores), max(cores), (min(cores), max(cores)))
    started: dict[str, processes.Place] = {}

    def start(each: contenders.Contender, protocol: str, cores: Collection[int]) -> ServerProcess:
        server = ServerProcess(each.command(protocol), cores, None)
        started[each.name] = server.place
        return server

    work = works.Rate("connect", "connect", load, clients=1, requests=200, turns=2, further=3)
    effort = works.FULL._replace(warms_up=False)
    work.measure([contenders.BY_NAME[name] for name in ("stdlib-thread", "pool", "thread")], start, places, effort)
    names = {place: name for name, place in started.items()}
    first, second = ["stdlib-thread", "pool", "thread"], ["stdlib-thread", "thread"]
    assert [names[place] for place in asked] == [*first, *first[::-1], *second, *second[::-1], *second]


STOPPED_RUN = """
import sys, threading
from benchmarks import __main__ as bench, contenders, loads, works

def ab(place, *_):
    print(place)
    while True:
        threading.Event().wait(0.05)

works.CONTENDERS = [contenders.BY_NAME["inline"]]
loads.ab = ab
sys.argv = ["benchmarks", "--smoke", "--work", "wakeups"]
sys.exit(bench.main())
"""


def test_a_run_that_is_told_to_stop_takes_its_servers_along() -> None:
    """SIGTERM, as a service manager or a time limit sends it."""
    with Program(STOPPED_RUN) as program:
        port = int(program.line())
        program.send(signal.SIGTERM)
        assert program.status(LIMIT) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


ROUNDS = {
    "connect": {
        "pool": [{"cpu_us": 24.0}, {"cpu_us": 90.0}, {"cpu_us": 25.0}],
        "floor": [{"cpu_us": 20.0}, {"cpu_us": 21.0}, {"cpu_us": 20.0}],
    }
}


def test_a_limit_compares_medians() -> None:
    """One bad round does not decide; ``at_least`` turns it round; without another figure it is about the figure."""
    pool, floor = Figure("connect", "pool"), Figure("connect", "floor")
    assert Limit("P", pool, 1.25, floor).judge(ROUNDS)[1:3] == (1.25, True)
    assert Limit("P", pool, 1.24, floor).judge(ROUNDS).word == "MISSED"
    assert Limit("P", pool, 1.3, floor, at_least=True).judge(ROUNDS).holds is False
    assert Limit("P", pool, 25.0).judge(ROUNDS).holds is True
    assert Limit("P", Figure("connect", "trio"), 1.0, floor).judge(ROUNDS).word == "not measured"


def test_a_target_holds_only_if_all_its_limits_do() -> None:
    """One that was not measured leaves it open, one that was missed misses it."""
    pool, floor = Figure("connect", "pool"), Figure("connect", "floor")
    held, missed, open_ = (
        Limit("P", *rest).judge(ROUNDS)
        for rest in ((pool, 2.0, floor), (pool, 1.0, floor), (Figure("connect", "trio"), 1.0))
    )
    assert targets.word_of([held, held]) == "holds"
    assert targets.word_of([held, open_]) == "holds, as far as measured"
    assert targets.word_of([held, open_, missed]) == "MISSED"
    assert targets.word_of([open_]) == "not measured"


def test_too_few_rounds_or_connections_are_said() -> None:
    """Beside the verdicts."""
    assert targets.caveats(ROUNDS) == ["medians of 3 rounds: the targets are about at least 5"]
    many = {"idle": {"pool": [{"connections": 60.0}] * 5}}
    assert targets.caveats(many) == ["60 idle connections: the targets are about 10000"]


def test_the_limits_are_about_what_is_measured() -> None:
    """Each names a work and a server that takes part in it, and all thirteen targets have one."""
    taking_part = {(work.name, each.name) for work in works.WORKS for each in work.contenders()}
    for limit in targets.LIMITS:
        for figure in (limit.figure, limit.other):
            assert figure is None or (figure.work, figure.server) in taking_part
    assert tuple(f"P{number}" for number in range(1, 14)) == targets.TARGETS


def test_the_tables_are_readable() -> None:
    """A line for each server with its ratio to the floor, and one for each limit that was measured."""
    lines = list(report.work_table("connect", "cpu_us", ROUNDS["connect"]))
    assert re.search(r"^  pool +25\.00 +1\.25 +61\.7 +24\.00-90\.00$", lines[1])
    assert any("P1 " in line for line in report.verdict_table(targets.judge(ROUNDS)))


RUN = {
    "cores": 2,
    "processor": "a processor",
    "system": "a system",
    "python": "3.11.7 (main)",
    "packages": {},
    "begun": "today",
    "commit": "abc",
    "caveats": [],
    "left_out": {"trio": "needs it"},
    "rounds": ROUNDS,
}


def test_what_runs_found_is_written_between_the_markers(tmp_path: pathlib.Path) -> None:
    """The medians of each run and the misses with their figures, and again the same if it is there already."""
    document = tmp_path / "page.md"
    document.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n", "utf-8")
    page.replace(document, page.performance([RUN, RUN]))
    written = document.read_text("utf-8")
    assert written.startswith(f"before\n{page.BEGIN}\n\nMeasured on 2 cores")
    assert written.endswith(f"\n\n{page.END}\nafter\n")
    assert "| pool | 25.00 · 25.00 |" in written
    assert "| P1 | `connect` pool / floor | ≤ 1.25 | 1.25 ± 61.7 % | 1.25 ± 61.7 % |" in written
    page.replace(document, page.performance([RUN, RUN]))
    assert document.read_text("utf-8") == written
    assert "| `pool` | 25.00 µs for a connection |" in list(page.choice([RUN]))
    assert "| sockserve, `pool` | 25.00 |  |  |  |" in list(page.summary([RUN]))
    document.write_text("no markers", "utf-8")
    with pytest.raises(ValueError, match="no markers"):
        page.replace(document, [])


def test_every_document_gets_its_part(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real ones have the markers, and between them then stand the figures; so have the system calls their place."""
    names = ("README.md", "docs/index.md", "docs/explanation/performance.md", "docs/how-to/choose-a-model.md")
    for name in (*names, f"docs/{page.RESULTS_PAGE}"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text("utf-8"), "utf-8")
    drawn: list[pathlib.Path] = []
    monkeypatch.setattr(page.plots, "draw", lambda _rounds, _units, folder, _bars: drawn.append(folder))
    monkeypatch.setattr(page.plots, "draw_glance", lambda _bars, folder: drawn.append(folder))
    page.write([RUN], tmp_path / "docs")
    assert drawn == [tmp_path / "docs/pictures/measured"] * 2
    for name in (*names, f"docs/{page.RESULTS_PAGE}"):
        text = (tmp_path / name).read_text("utf-8")
        between = text.partition(page.BEGIN)[2].partition(page.END)[0]
        assert re.search(r"\b2[05]\.00\b", between), name
        for picture in re.findall(r"\]\((.*?\.svg)\)", between):
            assert ((ROOT / name).parent / picture).exists()
    page.replace(tmp_path / "docs" / page.RESULTS_PAGE, ["counted"], calls.BEGIN, calls.END)


def test_the_first_screen_is_short_and_has_its_plot() -> None:
    """The page for users has a picture among its first lines, and is no longer than can be read in one go."""
    lines = (ROOT / "docs/explanation/performance.md").read_text("utf-8").splitlines()
    assert len(lines) <= 150
    assert any("at-a-glance.svg" in line for line in lines[:12])


def test_a_figure_of_zero_is_a_figure() -> None:
    """The tables show 0.00 for it; only what no run measured is left empty."""
    rounds = {"wakeups": {"pool": [{"per_minute": 0.0}]}, "connect": {"pool": [{"cpu_us": 0.0}], "floor": [{}]}}
    pool = Figure("wakeups", "pool", "per_minute")
    assert page.of_each_run([rounds, rounds], pool) == "0.00 · 0.00"
    assert page.of_each_run([rounds, {}], pool) == "0.00 · -"
    assert not page.of_each_run([{}, {}], pool)
    rows = list(page.summary([RUN | {"rounds": rounds}]))
    assert "| sockserve, `pool` | 0.00 |  |  |  |" in rows
    assert not any("a C program" in row for row in rows)


def test_a_percentile_is_the_nearest_rank() -> None:
    """Of a hundred values the ninety-ninth, of few the last."""
    assert works.percentile(list(range(1, 101)), 99) == 99
    assert works.percentile([1.0, 2.0, 3.0], 99) == 3.0
    assert works.percentile([1.0], 1) == 1.0


def test_a_part_can_be_asked_for() -> None:
    """By name, or by the name of a family that is no work's."""
    assert [work.name for work in selected(["ping50"])] == ["ping50"]
    assert {"ping1", "ping50", "ping500"} <= {work.name for work in selected(["ping"])}
    assert [work.name for work in selected(["connect"])] == ["connect"]
    assert selected([]) == list(works.WORKS)


def test_the_document_names_every_work_and_target() -> None:
    """And no others."""
    promised = RESULTS.partition("## What was found")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", promised, re.MULTILINE)) == {work.name for work in works.WORKS}
    assert set(re.findall(r"^\| (P\d+) \|", promised, re.MULTILINE)) == set(targets.TARGETS)
