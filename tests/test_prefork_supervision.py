"""What the supervisor does about workers that end, hang or cannot begin, and about signals."""

from __future__ import annotations

import re
import signal
import threading

from support.prefork_program import HANGS_SOON, TURNS_OFTEN, Prefork, is_alive
from support.under_test import LIMIT
from support.waiting import stop_process, wait_until, wait_until_arrived, wait_until_blocked

from sockserve.concurrency.prefork.worker_main import ORPHAN_DRAIN, ORPHAN_END
from sockserve.testing import call_within

IN_A_HURRY = "import sockserve.concurrency.prefork.places as places\nplaces.BACK_OFF_FIRST = 0.01"

LOOKS = 0.5
"""Seconds in which a supervisor looks at least once for workers that hang after 0.4 seconds, if they are awake."""

ORPHANS_IN_A_HURRY = """
import sockserve.concurrency.prefork.worker_main as worker_main
worker_main.ORPHAN_DRAIN = 0.4
worker_main.ORPHAN_END = 0.1
"""


def test_sigterm_ends_it_in_order() -> None:
    """With nothing in progress it ends at once, with nobody left and nothing but information in the log."""
    with Prefork() as server:
        workers = server.wait_for_workers()
        server.send(signal.SIGTERM)
        assert server.status() == 0
        assert server.program.line() == "ended"
        assert not any(map(is_alive, workers))
        assert set(re.findall(r"^\w+", server.errors(), re.MULTILINE)) == {"INFO"}


def test_sigterm_drains() -> None:
    """A request in progress gets end-of-file and may answer; the port is free meanwhile."""
    with Prefork() as server, server.connect() as client:
        client.sendall(b"who")
        wait_until_arrived(client)
        server.wait_for_workers()
        server.send(signal.SIGTERM)
        assert client.recv(100)
        assert server.status() == 0


def test_a_second_sigterm_cuts() -> None:
    """What does not end is killed, and the program ends."""
    with Prefork("drain_timeout = None") as server, server.connect() as client:
        workers = server.wait_for_workers()
        client.sendall(b"hang\n")
        wait_until_arrived(client)
        server.send(signal.SIGTERM)
        wait_until(lambda: len(server.workers()) == 1)
        server.send(signal.SIGTERM)
        assert server.status() == 0
        assert client.recv(1) == b""
        assert not any(map(is_alive, workers))


def test_a_killed_worker_is_replaced() -> None:
    """The one that dies loses its request only; its successor has its number."""
    with Prefork() as server:
        before = server.wait_for_workers()
        assert server.tell(b"die\n") == b""
        wait_until(lambda: "was killed by SIGKILL" in server.errors())
        after = server.wait_for_workers()
        assert len(set(before) & set(after)) == 1
        assert re.search(r"WARNING .*worker \d .*was killed by SIGKILL, with 1 request in progress", server.errors())
        assert {server.who()[0] for _ in range(4)} <= {0, 1}


def test_a_crash_loop_is_given_up() -> None:
    """When no worker can begin, serve_forever() raises an error that names the cause, and the program ends with it."""
    with Prefork(IN_A_HURRY, "def setup_worker(self): raise LookupError('no database')") as server:
        assert server.status() == 1
        last = server.errors().strip().splitlines()[-1]
        assert last.startswith("sockserve.CrashLoopError")
        assert last.endswith("before it was ready")
        assert "ended with exit status 1: LookupError: no database" in last


def test_workers_that_end_as_soon_as_they_serve_are_a_crash_loop_too() -> None:
    """It is no service if each lives for a moment."""
    short = "def service_actions(self): raise LookupError('no service')"
    with Prefork(IN_A_HURRY, TURNS_OFTEN, short) as server:
        assert server.status() == 1
        last = server.errors().strip().splitlines()[-1]
        assert last.startswith("sockserve.CrashLoopError")
        assert last.endswith("ended with exit status 1: LookupError: no service")


def test_one_bad_place_does_not_end_the_others() -> None:
    """While one worker serves, those that cannot begin are tried again and again, later each time."""
    bad = "def setup_worker(self):\n    if self.worker_id: sys.exit('no')"
    with Prefork(IN_A_HURRY, bad) as server:
        wait_until(lambda: server.errors().count("SystemExit: no, before it was ready") >= 3)
        assert server.who()[0] == 0
        server.send(signal.SIGTERM)
        assert server.status() == 0


def test_sighup_replaces_all_workers() -> None:
    """All are new after it, each was ready before its predecessor left, and a client of an old one goes on."""
    with Prefork() as server, server.connect() as client:
        before = server.wait_for_workers()
        client.sendall(b"w")
        server.send(signal.SIGHUP)
        wait_until(lambda: len(server.workers()) == 3 and server.errors().count("is ready") == 4)
        assert server.who()[1] not in before
        client.sendall(b"ho\n")
        assert int(client.recv(100).split()[1]) in before
        after = server.wait_for_workers(other_than=before)
        assert server.who()[1] in after


def test_a_rolling_restart_that_cannot_begin_changes_nothing() -> None:
    """The old workers go on."""
    bad = "def setup_worker(self):\n    if self._serving_link.orders.is_anew: sys.exit('broken')"
    with Prefork(bad) as server:
        before = server.wait_for_workers()
        server.send(signal.SIGHUP)
        wait_until(lambda: "the rolling restart is given up" in server.errors())
        assert server.who()[1] in before
        assert server.wait_for_workers() == before


def test_one_more_and_one_less() -> None:
    """SIGTTIN and SIGTTOU change the number of workers, down to one."""
    with Prefork() as server:
        server.wait_for_workers()
        server.send(signal.SIGTTIN)
        server.wait_for_workers(3)
        for count in (2, 1):
            server.send(signal.SIGTTOU)
            server.wait_for_workers(count)
        server.send(signal.SIGTTOU)
        assert server.who()[0] == 0


def test_a_worker_is_replaced_after_its_number_of_requests() -> None:
    """max_requests limits what one process serves, and no request is lost for that."""
    with Prefork("max_requests = 5", "max_requests_jitter = 2") as server:
        server.wait_for_workers()
        served: set[tuple[int, int]] = set()

        def several_have_served() -> bool:
            served.update(server.who() for _ in range(10))
            return len(served) >= 4

        wait_until(several_have_served)
        assert {number for number, _ in served} <= {0, 1}


def test_sigterm_to_a_worker_replaces_it() -> None:
    """It leaves in order."""
    with Prefork() as server:
        before = server.wait_for_workers()
        server.send(signal.SIGTERM, before[0])
        after = server.wait_for_workers(other_than=before[:1])
        assert before[1] in after
        assert "WARNING" not in server.errors()


def test_a_hung_worker_is_told_from_the_log_and_replaced() -> None:
    """Its stacks show where it hangs; the others do not notice."""
    with Prefork("worker_timeout = 0.4") as server:
        before = server.wait_for_workers()
        assert call_within(LIMIT, server.tell, b"hang\n") == b""
        wait_until(lambda: "was killed by SIGKILL" in server.errors())
        after = server.wait_for_workers()
        assert len(set(before) & set(after)) == 1
        log = server.errors()
        assert re.search(r"ERROR .*worker \d .* hangs: its loop has not turned for \d\.\d seconds", log)
        assert re.search(r"File .*, line \d+ in handle", log)


def test_a_stopped_worker_is_replaced() -> None:
    """One that cannot tell where it hangs is killed all the same."""
    with Prefork(HANGS_SOON, mix_in="ThreadingMixIn") as server, server.connect() as client:
        server.wait_for_workers()
        # With a client it does not sleep: asleep it would be found only when another client waits.
        client.sendall(b"keep\n")
        _, worker = map(int, client.recv(100).split())
        stop_process(worker)
        wait_until(lambda: "was killed by SIGKILL" in server.errors())
        server.wait_for_workers(other_than=[worker])
        assert "It could not tell its stacks." in server.errors()


def test_an_idle_worker_is_not_hung_and_wakes_nobody() -> None:
    """Once it has said that it sleeps neither it nor its supervisor wakes; the next request finds it."""
    with Prefork("worker_timeout = 0.4") as server:
        before = server.wait_for_workers()
        tree = [server.pid, *before]
        wait_until(lambda: sleeps_on(tree, LOOKS))
        assert sorted(server.wait_for_workers()) == sorted(before)
        assert "hangs" not in server.errors()


def test_a_sleeping_worker_that_hangs_is_found_once_a_client_waits() -> None:
    """It does not hear its client, who is told by nobody else; its successor serves."""
    with Prefork(HANGS_SOON, "processes = 1") as server:
        (before,) = server.wait_for_workers(1)
        wait_until(lambda: sleeps_on([server.pid, before], LOOKS))
        stop_process(before)
        assert call_within(LIMIT, server.tell, b"who\n")
        assert "It could not tell its stacks." in server.errors()


def sleeps_on(pids: list[int], seconds: float) -> bool:
    """Whether none of these processes wakes for that long."""
    before = [wake_ups(pid) for pid in pids]
    threading.Event().wait(seconds)
    return [wake_ups(pid) for pid in pids] == before


def wake_ups(pid: int) -> int:
    """How often a process has slept."""
    with open(f"/proc/{pid}/status") as status:
        return int(re.findall(r"^voluntary_ctxt_switches:\s*(\d+)", status.read(), re.MULTILINE)[0])


def test_without_a_supervisor_nobody_stays() -> None:
    """After its SIGKILL a request in progress may still be answered, and within 5 seconds all workers have ended."""
    with Prefork(ORPHANS_IN_A_HURRY) as server, server.connect() as busy, server.connect() as hung:
        workers = server.wait_for_workers()
        busy.sendall(b"who")
        hung.sendall(b"hang\n")
        for each in (busy, hung):
            wait_until_arrived(each)
        server.send(signal.SIGKILL)
        server.program.process.wait(LIMIT)
        assert busy.recv(100)
        assert hung.recv(100) == b""
        assert ORPHAN_DRAIN + ORPHAN_END < 5
        wait_until(lambda: not any(map(is_alive, workers)))


def test_a_sleeping_worker_that_hangs_does_not_keep_its_supervisor_from_ending() -> None:
    """It was told to end, and answers nothing."""
    with Prefork(HANGS_SOON, "drain_timeout = None") as server:
        before = server.wait_for_workers()
        wait_until(lambda: sleeps_on([server.pid, *before], LOOKS))
        stop_process(before[0])
        server.send(signal.SIGTERM)
        assert server.status() == 0
        assert "It could not tell its stacks." in server.errors()


def test_a_worker_that_hangs_from_the_moment_of_a_drain_does_not_keep_its_supervisor_from_ending() -> None:
    """That the listeners are closed for it does not end the watch over those that are awake."""
    with Prefork(HANGS_SOON, "drain_timeout = None", mix_in="ThreadingMixIn") as server, server.connect() as client:
        server.wait_for_workers()
        client.sendall(b"keep\n")
        _, worker = map(int, client.recv(100).split())
        stop_process(worker)
        server.send(signal.SIGTERM)
        assert server.status() == 0
        assert "It could not tell its stacks." in server.errors()


def test_a_program_that_lets_the_kernel_reap_its_children_can_be_interrupted() -> None:
    """With SIGCHLD ignored nobody gets an exit status; a Ctrl-C that ends server_close() is still a Ctrl-C."""
    ignore = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    with Prefork(ignore, "drain_timeout = None") as server, server.connect() as client:
        server.wait_for_workers()
        client.sendall(b"hang\n")
        server.send(signal.SIGINT)
        wait_until(lambda: len(server.workers()) == 1)
        wait_until_blocked(server.pid)
        server.send(signal.SIGINT)
        assert server.status() != 0
        assert server.errors().strip().endswith("KeyboardInterrupt")
