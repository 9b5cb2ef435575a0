"""What programs do to a forking server, and it to them."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from support.handlers import handlers
from support.programs import Program
from support.scripts import run_script
from support.under_test import LIMIT
from support.waiting import wait_until_blocked

import sockserve
from sockserve.testing import ask, connect, leaks

LOOPBACK = ("127.0.0.1", 0)


def test_ctrl_c_is_no_error_of_a_child() -> None:
    """A terminal's SIGINT goes to the children too: like the parent they end, and no traceback is printed for them."""
    with Program("""
        import os, signal, sockserve
        os.setpgid(0, 0)
        # Whoever starts the tests in the background of a shell makes them ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)

        class Handler(sockserve.BaseRequestHandler):
            def handle(self):
                print(os.getpid(), flush=True)
                self.request.recv(10)

        server = sockserve.ForkingTCPServer(("127.0.0.1", 0), Handler)
        print(server.server_address[1], flush=True)
        try:
            with server:
                server.serve_forever()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """) as program:
        with connect(("127.0.0.1", int(program.line()))):
            wait_until_blocked(int(program.line()))
            os.killpg(program.process.pid, signal.SIGINT)
            assert program.line() == "interrupted"
        assert program.status(LIMIT) == 0
        assert "Traceback" not in program.errors()


def test_a_signal_to_a_child_reaches_nobody_else() -> None:
    """SIGTERM to a child ends its input; neither the parent's loop, which runs in the main thread, nor stderr hears."""
    with Program("""
        import os, signal, sys, sockserve

        class Handler(sockserve.StreamRequestHandler):
            def handle(self):
                self.wfile.write(b"%d\\n" % os.getpid())
                self.wfile.write(b"goodbye" + self.rfile.readline())

        class Woken(sockserve.Observer):
            def on_tick(self, server):
                ticks.append(1)

        ticks = []
        server = sockserve.ForkingTCPServer(("127.0.0.1", 0), Handler)
        server.add_observer(Woken())
        signal.signal(signal.SIGINT, lambda *_: server.shutdown())
        print(server.server_address[1], flush=True)
        with server:
            server.serve_forever()
        print(len(ticks), flush=True)
    """) as program:
        with connect(("127.0.0.1", int(program.line()))) as client, client.makefile("rb") as answer:
            child = int(answer.readline())
            wait_until_blocked(child)
            os.kill(child, signal.SIGTERM)
            assert answer.read() == b"goodbye"
        program.send(signal.SIGINT)
        # The request, its child's end, and the stop; a kernel may tell some of them in one turn.
        assert int(program.line()) <= 4
        assert program.status(LIMIT) == 0
        assert program.errors() == ""


def test_what_the_parent_has_not_yet_written_is_written_once() -> None:
    """Output that waits in the parent, printed or logged, when it forks is not repeated by the child."""
    output = run_script("""
import logging, logging.handlers, socket, sys

class Handler(S.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"done")

log = logging.getLogger("program")
log.propagate = False
log.addHandler(logging.handlers.MemoryHandler(100, target=logging.StreamHandler(sys.stdout)))
print("printed by the parent")
log.warning("logged by the parent")
with S.ForkingTCPServer(("127.0.0.1", 0), Handler) as server:
    with socket.create_connection(server.server_address) as client:
        server.handle_request()
        assert client.recv(10) == b"done"
""")
    assert sorted(output.splitlines()) == ["logged by the parent", "printed by the parent"]


def test_a_subclass_may_fork_by_itself() -> None:
    """A process_request() that forks and enters the child in ``active_children``, as programs do, has it reaped."""

    class Server(sockserve.ForkingTCPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            pid = os.fork()
            if pid == 0:
                try:
                    self.finish_request(request, client_address)
                finally:
                    os._exit(0)
            if self.active_children is None:
                self.active_children = set()
            self.active_children.add(pid)
            self.close_request(request)

    with Server(LOOPBACK, handlers(sockserve).Echo) as server:
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        assert ask(server, b"hello") == b"hello"
        thread.join(LIMIT)
    assert leaks.child_processes() == frozenset()
