"""What the system or a handler does wrong, in every way to run a handler: the server goes on, and ends when told to."""

from __future__ import annotations

import contextlib
import re
import select
import signal

import pytest
from support.models import HERE, MIX_INS, MODELS
from support.prefork_program import Prefork
from support.programs import Program
from support.under_test import LIMIT
from support.waiting import wait_until

from sockserve.testing import ask, connect

DESCRIPTORS = 48
"""That a server may have: fewer than clients that come at once, more than it needs for itself."""

AT_ONCE = 80

PREFORKED = [f"prefork-{model}" for model in HERE]


def program(model: str, handler: str, attributes: str = "pass") -> Program:
    """Serves this handler, alone or in one worker process, and drains on SIGTERM."""
    is_preforked = model.startswith("prefork-")
    processes = 1 if is_preforked else None
    return Program(f"""
        import logging, os, resource, threading
        # Before it is imported by others: what is cut here does not end.
        from sockserve.core import lifecycle
        lifecycle.CUT_GRACE = 0.1
        import sockserve

        logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")

        class Handler(sockserve.BaseRequestHandler):
            {attributes}

            def handle(self):
                {handler}

        def ready(servers):
            print(servers[0].server_address[1])

        sockserve.serve(
            Handler, "tcp://127.0.0.1:0", model={model.removeprefix("prefork-")!r}, processes={processes},
            drain_timeout=0.2, ready=ready,
        )
        print("ended")
    """)


@pytest.mark.parametrize("model", [model for model in (*HERE, *PREFORKED) if "inline" not in model])
def test_without_descriptors_clients_wait(model: str) -> None:
    """Those that came too many are served as soon as others leave, and the log says so."""
    handler = f"""
                resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS}))
                while data := self.request.recv(100):
                    self.request.sendall(data)
                    if {model.endswith("pool")}:
                        return self.keep_open()
    """.strip()
    with program(model, handler) as server, contextlib.ExitStack() as stack:
        address = ("127.0.0.1", int(server.line()))
        assert ask(address, b"first", timeout=LIMIT) == b"first"
        waiting = [stack.enter_context(connect(address, timeout=LIMIT)) for _ in range(AT_ONCE)]
        for client in waiting:
            client.sendall(b"hello")
        wait_until(lambda: "out of descriptors" in server.errors() or "accepting pauses" in server.errors())
        while waiting:
            served = select.select(waiting, [], [], LIMIT)[0]
            assert served
            for client in served:
                assert client.recv(100) == b"hello"
                client.close()
                waiting.remove(client)
        assert ask(address, b"last", timeout=LIMIT) == b"last"
        server.send(signal.SIGTERM)
        assert server.line() == "ended"
        assert "Traceback" not in server.errors()


def test_a_supervisor_without_descriptors_goes_on_trying() -> None:
    """A worker that cannot be replaced is replaced as soon as that is possible; the other one serves meanwhile."""
    attributes = """
worker_timeout = None
def set_limit(signum, frame):
    import resource
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (3 if signum == signal.SIGUSR1 else most, most))
signal.signal(signal.SIGUSR1, set_limit)
signal.signal(signal.SIGUSR2, set_limit)
"""
    with Prefork(attributes) as server:
        before = server.wait_for_workers()
        server.send(signal.SIGUSR1)
        server.send(signal.SIGKILL, before[0])
        wait_until(lambda: "worker 0 cannot be made: [Errno 24]" in server.errors())
        assert server.who() == (1, before[1])
        server.send(signal.SIGUSR2)
        assert before[1] in server.wait_for_workers(other_than=before[:1])


@pytest.mark.parametrize(
    ("line", "how"),
    [(b"die\n", "was killed by SIGKILL"), (b"leave\n", "ended with exit status 3")],
    ids=["SIGKILL", "_exit"],
)
@pytest.mark.parametrize("mix_in", [MIX_INS[model] for model in HERE])
def test_a_worker_process_that_is_gone_takes_its_requests_along(mix_in: str, line: bytes, how: str) -> None:
    """In the middle of a request: its client sees the end, those of the other worker do not, and it is replaced."""
    with Prefork(mix_in=mix_in) as server:
        before = server.wait_for_workers()
        assert server.tell(line) == b""
        wait_until(lambda: how in server.errors())
        after = server.wait_for_workers()
        assert len(set(before) & set(after)) == 1
        assert re.search(rf"WARNING .*worker \d .*{how}, with 1 request in progress", server.errors())
        assert server.who()[1] in after


@pytest.mark.parametrize("model", [*MODELS, *PREFORKED])
def test_a_handler_that_never_returns_does_not_keep_the_program(model: str) -> None:
    """It waits for what will never come, and reads nothing: the program ends all the same when its time is up."""
    with program(model, "self.request.sendall(b'!'); threading.Event().wait()") as server:
        with connect(("127.0.0.1", int(server.line())), timeout=LIMIT) as client:
            assert client.recv(1) == b"!"
            server.send(signal.SIGTERM)
            assert server.line() == "ended"
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
        assert server.status(LIMIT) == 0
