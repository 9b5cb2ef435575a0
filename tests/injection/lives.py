"""A server's life that an injection disturbs: begin, accept, serve, park, drain, end; and what must hold after it.

Rule 1. Nothing is waited for without a limit: what takes longer is the finding.
Rule 2. A client may lose its answer. It may not wait for ever, and when all is over nothing may be left.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import sockserve
from injection.failures import Failure
from injection.interrupts import Interrupt
from sockserve.testing import leaks

__all__ = ["LIVES", "MODELS", "Findings"]

Injection = Interrupt | Failure


class Handler(sockserve.StreamRequestHandler):
    """Answers a line, and keeps the connection unless it was the last one."""

    def handle(self) -> None:
        """Answer."""
        line = self.rfile.readline()
        if line:
            self.wfile.write(line.upper())
            if line != b"last\n":
                self.keep_open()


class Prefork(sockserve.PreForkMixIn, sockserve.ThreadingTCPServer):
    """One worker process, in which threads serve."""

    processes = 1


MODELS: dict[str, Any] = {
    "inline": sockserve.TCPServer,
    "thread": sockserve.ThreadingTCPServer,
    "pool": sockserve.ThreadPoolTCPServer,
    "fork": sockserve.ForkingTCPServer,
    "greenlet": getattr(sockserve, "GreenletTCPServer", None),
    "prefork": Prefork,
}


class Findings(list[str]):
    """What did not hold."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def ends(self, thread: threading.Thread, what: str) -> bool:
        """Expect that a thread ends."""
        thread.join(self.limit)
        if thread.is_alive():
            stack = "".join(leaks.stack_of(thread)[-3:])
            self.append(f"{what} does not return:\n{stack}")
        return not thread.is_alive()


class Clients:
    """Clients of one server, which another thread can end."""

    def __init__(self, address: Any, findings: Findings) -> None:
        self._address = address
        self._findings = findings
        self._open: socket.socket | None = None
        self._is_over = False

    def talk(self, *lines: bytes) -> bool:
        """Say whether each line got its answer; a wait without end is a finding."""
        family = socket.AF_UNIX if isinstance(self._address, str) else socket.AF_INET
        with socket.socket(family) as client:
            client.settimeout(self._findings.limit)
            self._open = client
            try:
                if not self._is_over:
                    client.connect(self._address)
                    for line in lines:
                        client.sendall(line)
                        if not self._is_over and client.recv(100) != line.upper():
                            return False
            except TimeoutError:
                if not self._is_over:
                    self._findings.append(f"a client that sent {lines!r} is neither answered nor closed")
                return False
            except OSError:
                return False
            finally:
                self._open = None
                hang_up(client)
            return not self._is_over

    def end(self) -> None:
        """End the one that talks."""
        self._is_over = True
        client = self._open
        if client is not None:
            hang_up(client)

    def visit(self, injection: Injection | None) -> None:
        """Two that talk; then, as long as the server runs, one more has to be answered after what has failed."""
        self.talk(b"one\n", b"last\n")
        self.talk(b"two\n", b"three\n", b"last\n")
        if isinstance(injection, Interrupt) or self._is_over:
            return
        if not any(self.talk(b"last\n") for _ in range(3)) and not self._is_over:
            self._findings.append("no client is answered any more")


def hang_up(client: socket.socket) -> None:
    """End a client's connection, also if a child of the server has a copy of its socket, made by fork(2)."""
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)


def serve(injection: Injection, model: str, findings: Findings) -> None:
    """``serve_forever()`` and ``server_close()`` in the main thread, ``shutdown()`` in another one."""
    server = None
    try:
        with injection.active():
            server = MODELS[model](("127.0.0.1", 0), Handler)
    except (OSError, KeyboardInterrupt) as error:
        _check_error(error, injection, findings)
    if server is None:
        return
    address = server.server_address
    blocks = server.socket.gettimeout()
    if _run_once(server, Clients(address, findings), injection, findings):
        if server.socket.gettimeout() != blocks and model != "prefork":
            findings.append(f"the listener's time-out is {server.socket.gettimeout()}")
        if injection.place:
            # Whatever came, it can be served again.
            _run_once(server, Clients(address, findings), None, findings)
        _close(server, injection, findings)


def _run_once(server: Any, clients: Clients, injection: Injection | None, findings: Findings) -> bool:
    """One ``serve_forever()``; false: it makes no sense to go on."""
    is_over = threading.Event()
    has_served = threading.Event()

    def operate() -> None:
        while not is_over.is_set() and not server.wait_until_serving(0.02):
            pass
        if not is_over.is_set():
            has_served.set()
            clients.visit(injection)
        server.shutdown()

    operator = threading.Thread(target=operate, name="operator", daemon=True)
    operator.start()
    error: BaseException | None = None
    try:
        with injection.active() if injection is not None else contextlib.nullcontext():
            server.serve_forever()
    except BaseException as raised:  # whatever comes is judged
        error = raised.with_traceback(None)
    is_over.set()
    clients.end()
    if injection is None:
        if error is not None:
            findings.append(f"it cannot be served again: {error!r}")
    else:
        _check_error(error, injection, findings)
        if has_served.is_set() and isinstance(error, (OSError, RuntimeError)):
            findings.append(f"serve_forever() ended while it served: {error!r}")
    return findings.ends(operator, "shutdown()")


def _check_error(error: BaseException | None, injection: Injection, findings: Findings) -> None:
    if isinstance(injection, Interrupt):
        if injection.place and not isinstance(error, KeyboardInterrupt):
            findings.append(f"KeyboardInterrupt was swallowed: {error!r}")
        elif not injection.place and error is not None:
            findings.append(f"without an interrupt: {error!r}")
    elif error is not None and not isinstance(error, (OSError, RuntimeError)):
        findings.append(f"not a clean error: {error!r}")


def _close(server: Any, injection: Injection, findings: Findings) -> None:
    had_come = bool(injection.place)
    try:
        with injection.active():
            server.server_close()
    except KeyboardInterrupt:
        # What a program does that goes on.
        server.server_close()
    except Exception as error:
        findings.append(f"server_close() raised {error!r}")
        with contextlib.suppress(Exception):
            server.server_close()
    else:
        if isinstance(injection, Interrupt) and injection.place and not had_come:
            findings.append("KeyboardInterrupt was swallowed in server_close()")


def stop(injection: Injection, model: str, findings: Findings) -> None:
    """``drain()``, ``shutdown()`` and ``server_close()`` in the main thread, ``serve_forever()`` in another one."""
    server = MODELS[model](("127.0.0.1", 0), Handler)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            server.serve_forever()
        except BaseException as error:  # whatever comes is judged
            errors.append(error.with_traceback(None))

    loop = threading.Thread(target=run, name="loop", daemon=True)
    loop.start()
    server.wait_until_serving(findings.limit)
    clients = Clients(server.server_address, findings)
    clients.talk(b"one\n", b"last\n")
    busy = socket.create_connection(server.server_address, findings.limit)
    busy.sendall(b"one\n")
    busy.recv(10)
    verbs: list[Callable[[], object]] = [lambda: server.drain(0.1), server.shutdown]
    with contextlib.suppress(KeyboardInterrupt):
        for verb in verbs:
            try:
                with injection.active():
                    verb()
            except Exception as error:
                findings.append(f"a verb raised {error!r}")
    # Without a drain the end waits for it.
    hang_up(busy)
    busy.close()
    last = threading.Thread(target=server.shutdown, name="last", daemon=True)
    last.start()
    if findings.ends(last, "shutdown()") and findings.ends(loop, "serve_forever()"):
        findings.extend(f"serve_forever() raised {error!r}" for error in errors)
        _close(server, injection, findings)


def program(injection: Injection, model: str, findings: Findings) -> None:
    """``serve()`` in the main thread, with a Unix socket's path; SIGTERM ends it."""
    processes = 1 if model == "prefork" else None
    model = "thread" if model == "prefork" else model
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/s"
        clients = Clients(path, findings)
        is_over = threading.Event()
        operators: list[threading.Thread] = []

        def operate() -> None:
            clients.visit(injection)
            if not (isinstance(injection, Interrupt) and injection.signum == signal.SIGINT and injection.place):
                os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + findings.limit
            while not is_over.wait(0.02) and time.monotonic() < deadline:
                pass
            if not is_over.is_set():
                findings.append("serve() does not return")
                _report_hang(findings)

        def ready(_: object) -> None:
            operators.append(threading.Thread(target=operate, name="operator", daemon=True))
            operators[0].start()

        error: BaseException | None = None
        try:
            with injection.active():
                sockserve.serve(
                    Handler,
                    f"unix:{path}",
                    model=model,
                    processes=processes,
                    drain_timeout=findings.limit / 4,
                    ready=ready,
                )
        except BaseException as raised:  # whatever comes is judged
            error = raised.with_traceback(None)
        is_over.set()
        clients.end()
        for each in operators:
            findings.ends(each, "the operator")
        if isinstance(injection, Interrupt):
            if error is not None and not isinstance(error, KeyboardInterrupt):
                findings.append(f"serve() raised {error!r}")
        elif error is not None and not isinstance(error, (OSError, RuntimeError, sockserve.SockserveError)):
            findings.append(f"not a clean error: {error!r}")
        elif error is not None and operators:
            findings.append(f"serve() ended while it served: {error!r}")
        # Without the memory in which processes tell each other that they serve, it stays for the next server to take.
        if pathlib.Path(path).exists() and not (model == "thread" and injection.place.startswith("mmap in _Servers")):
            findings.append("the path of the Unix socket is left")


def _report_hang(findings: Findings) -> None:
    stacks = [f"{thread.name}: " + "".join(leaks.stack_of(thread)[-3:]) for thread in threading.enumerate()]
    raise Hang("; ".join(findings) + "\n" + "\n".join(stacks))


class Hang(Exception):  # noqa: N818 - it is one
    """The main thread does not come back."""


LIVES: dict[str, Callable[[Injection, str, Findings], None]] = {"serve": serve, "stop": stop, "program": program}


@contextlib.contextmanager
def checked(findings: Findings) -> Generator[None]:
    """Look after the body whether all is as it was before."""
    before = leaks.take_inventory()
    numbers = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            findings.append(f"the handler of signal {number} is {signal.getsignal(number)!r}")
    if (fd := signal.set_wakeup_fd(-1)) != -1:
        findings.append(f"the signals' wake-up descriptor is {fd}")
    try:
        leaks.check_leaks(before, timeout=findings.limit)
    except leaks.LeakError as error:
        findings.append(str(error))
