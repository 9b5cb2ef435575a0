"""The cooperative socket: each method of ``socket.socket`` that blocks lets other greenlets run meanwhile."""

from __future__ import annotations

import errno
import pathlib
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.running_greenlets import Greenlets
from support.under_test import LIMIT

from sockserve.concurrency.cooperative.request_greenlet import sleep
from sockserve.concurrency.cooperative.sockets import CooperativeSocket

BIG = 4_000_000
"""Bytes that no pair of sockets holds: whoever sends them has to wait."""


@pytest.fixture(params=["epoll", "selectors"])
def greenlets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Greenlets]:
    """Greenlets over each of the loop's pollers."""
    if request.param == "selectors":
        monkeypatch.delattr(select, "epoll")
        monkeypatch.setattr(selectors, "DefaultSelector", selectors.PollSelector)
    made = Greenlets()
    yield made
    made.close()


INPUTS: dict[str, Callable[[socket.socket], Any]] = {
    "recv": lambda sock: sock.recv(100),
    "recv-waitall": lambda sock: sock.recv(5, socket.MSG_WAITALL),
    "recv-peek": lambda sock: (sock.recv(5, socket.MSG_PEEK), sock.recv(100))[1],
    "recv_into": lambda sock: _filled(sock.recv_into),
    "recv_into-waitall": lambda sock: _filled(lambda buffer: sock.recv_into(buffer, 5, socket.MSG_WAITALL)),
    "recvfrom": lambda sock: sock.recvfrom(100)[0],
    "recvfrom_into": lambda sock: _filled(lambda buffer: sock.recvfrom_into(buffer)[0]),
    "recvmsg": lambda sock: sock.recvmsg(100)[0],
    "recvmsg_into": lambda sock: _filled(lambda buffer: sock.recvmsg_into([buffer])[0]),
    "makefile": lambda sock: _through_file(sock),  # noqa: PLW0108 - it is defined below
}


def _filled(receive: Callable[[bytearray], int]) -> bytes:
    buffer = bytearray(100)
    return bytes(buffer[: receive(buffer)])


def _through_file(sock: socket.socket) -> bytes:
    with sock.makefile("rb") as file:
        return file.read(5)


@pytest.mark.parametrize("receive", INPUTS.values(), ids=INPUTS)
def test_whoever_waits_for_input_lets_others_run(greenlets: Greenlets, receive: Callable[[socket.socket], Any]) -> None:
    """It is another greenlet that sends what this one waits for; several times, with the input in two parts."""
    one, other = greenlets.pair()
    turns: list[str] = []

    def read() -> list[bytes]:
        received = []
        for _ in range(3):
            turns.append("waits")
            data = receive(one)
            while len(data) < 5:
                data += receive(one)
            received.append(data)
        return received

    def write() -> None:
        for _ in range(3):
            turns.append("sends")
            other.sendall(b"12")
            sleep(0.001)
            other.sendall(b"345")
            sleep(0.001)

    if receive in (INPUTS["recv-waitall"], INPUTS["recv_into-waitall"], INPUTS["makefile"]):
        assert greenlets.run(read, write)[0] == [b"12345"] * 3
    else:
        assert b"".join(greenlets.run(read, write)[0]) == b"12345" * 3
    assert turns[:2] == ["waits", "sends"]


OUTPUTS: dict[str, Callable[[socket.socket, bytes], int | None]] = {
    "send": lambda sock, data: sock.send(data),
    "sendall": lambda sock, data: sock.sendall(data),
    "sendall-memoryview": lambda sock, data: sock.sendall(memoryview(data).cast("I")),
    "sendto": lambda sock, data: sock.send(data, 0),
    "sendmsg": lambda sock, data: sock.sendmsg([data]),
}


@pytest.mark.parametrize("send", OUTPUTS.values(), ids=OUTPUTS)
def test_whoever_waits_to_send_lets_others_run(
    greenlets: Greenlets, send: Callable[[socket.socket, bytes], int | None]
) -> None:
    """More than the buffers hold arrives whole, because the reader is a greenlet that runs meanwhile."""
    one, other = greenlets.pair()

    def write() -> None:
        rest = memoryview(bytes(BIG))
        while rest:
            sent = send(one, bytes(rest))
            rest = rest[len(rest) if sent is None else sent :]
        one.shutdown(socket.SHUT_WR)

    def read() -> int:
        return sum(map(len, iter(lambda: other.recv(100_000), b"")))

    assert greenlets.run(write, read)[1] == BIG


def test_a_file_is_sent_while_others_run(greenlets: Greenlets, tmp_path: pathlib.Path) -> None:
    """``sendfile()`` sends what is asked for, by the system's call for it, and leaves the file's position behind it."""
    one, other = greenlets.pair()
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * (BIG // 256))

    def write() -> tuple[int, int]:
        with path.open("rb") as file:
            sent = one.sendfile(file, 256, BIG - 512)
            one.shutdown(socket.SHUT_WR)
            return sent, file.tell()

    def read() -> bytes:
        return b"".join(iter(lambda: other.recv(100_000), b""))

    (sent, position), received = greenlets.run(write, read)
    assert (sent, position) == (BIG // 256 * 256 - 512, BIG // 256 * 256 - 256)
    assert received == path.read_bytes()[256:-256]


@pytest.mark.parametrize("operation", ["recv", "send"])
def test_a_time_out_is_the_operations(greenlets: Greenlets, operation: str) -> None:
    """After ``settimeout()`` seconds without input, or without room for output, TimeoutError; not before."""
    one, _ = greenlets.pair()
    one.settimeout(0.05)
    assert one.gettimeout() == one.timeout == 0.05

    def act() -> None:
        if operation == "recv":
            one.recv(1)
        else:
            one.sendall(bytes(BIG))

    begun = time.monotonic()
    for _ in range(2):
        with pytest.raises(TimeoutError, match=r"^timed out$"):
            greenlets.run(act)
    assert time.monotonic() - begun >= 0.1


def test_a_time_out_is_over_when_the_operation_is(greenlets: Greenlets) -> None:
    """One of many short waits that each end in time does not end a later one too early."""
    one, other = greenlets.pair()
    one.settimeout(0.5)

    def read() -> bytes:
        return b"".join(one.recv(1) for _ in range(12))

    def write() -> None:
        for _ in range(12):
            sleep(0.05)
            other.sendall(b"x")

    assert greenlets.run(read, write)[0] == b"x" * 12


@pytest.mark.parametrize("how", ["setblocking", "settimeout", "MSG_DONTWAIT"])
def test_non_blocking_operations_do_not_wait(greenlets: Greenlets, how: str) -> None:
    """They raise BlockingIOError at once, also after a read that took all there was, and find what came since."""
    one, other = greenlets.pair()
    flags = socket.MSG_DONTWAIT if how == "MSG_DONTWAIT" else 0
    if how == "setblocking":
        one.setblocking(False)
    elif how == "settimeout":
        one.settimeout(0)
    assert one.getblocking() == bool(flags)

    def act() -> bytes:
        other.sendall(b"1")
        assert one.recv(100, flags) == b"1"
        with pytest.raises(BlockingIOError):
            one.recv(100, flags)
        other.sendall(b"2")
        received = one.recv(100, flags)
        with pytest.raises(BlockingIOError):
            one.sendall(bytes(BIG), flags)
        return received

    assert greenlets.run(act) == [b"2"]


def test_the_end_that_came_with_the_data_is_seen(greenlets: Greenlets) -> None:
    """Data and end of a connection that arrive at once, before or while they are waited for, are both read."""
    one, other = greenlets.pair()

    def read() -> list[bytes]:
        first = one.recv(100)
        return [first, *iter(lambda: one.recv(100), b""), one.recv(100)]

    def write() -> None:
        other.sendall(b"last words")
        other.shutdown(socket.SHUT_WR)

    assert greenlets.run(read, write)[0] == [b"last words", b""]
    one, other = greenlets.pair()
    write()
    assert greenlets.run(read) == [[b"last words", b""]]


@pytest.mark.parametrize("who", ["greenlet", "thread"])
def test_closing_a_socket_wakes_who_waits_for_it(greenlets: Greenlets, who: str) -> None:
    """A greenlet that waits for input, or to send, gets EBADF when another one, or a thread, closes the socket."""
    one, _ = greenlets.pair()
    errors = []

    def wait(operation: Callable[[], object]) -> None:
        try:
            operation()
        except OSError as error:
            errors.append(error.errno)

    def close() -> None:
        if who == "greenlet":
            one.close()
        else:
            thread = threading.Thread(target=one.close)
            thread.start()
            thread.join()

    greenlets.run(lambda: wait(lambda: one.recv(1)), lambda: wait(lambda: one.sendall(bytes(BIG))), close)
    assert errors == [errno.EBADF] * 2


def test_shutdown_wakes_who_waits(greenlets: Greenlets) -> None:
    """``shutdown(SHUT_RD)`` is end-of-file for a greenlet that waits for input."""
    one, _ = greenlets.pair()
    assert greenlets.run(lambda: one.recv(1), lambda: one.shutdown(socket.SHUT_RD))[0] == b""


def test_only_one_can_wait_for_input(greenlets: Greenlets) -> None:
    """A second greenlet that would wait for the input of the same socket is told so."""
    one, other = greenlets.pair()

    def second() -> bytes:
        with pytest.raises(RuntimeError, match="another greenlet already waits"):
            one.recv(1)
        other.sendall(b"x")
        return b"told"

    assert greenlets.run(lambda: one.recv(1), second) == [b"x", b"told"]


def test_outside_of_greenlets_it_blocks_like_any_other(greenlets: Greenlets) -> None:
    """In a thread, reads and writes wait, with their time-outs."""
    one, other = greenlets.pair()
    sender = threading.Thread(target=one.sendall, args=[bytes(BIG)])
    sender.start()
    received = 0
    while received < BIG:
        received += len(other.recv(100_000))
    sender.join(LIMIT)
    other.settimeout(0.01)
    with pytest.raises(TimeoutError):
        other.recv(1)


def test_it_goes_from_a_greenlet_to_a_thread_and_back(greenlets: Greenlets) -> None:
    """What a thread has read meanwhile does not keep a greenlet waiting for ever."""
    one, other = greenlets.pair()

    def read() -> list[bytes]:
        received = [one.recv(100)]
        me = greenlets.hub
        from sockserve.concurrency.cooperative.request_greenlet import current_request_greenlet  # noqa: PLC0415

        worker = current_request_greenlet()
        assert worker is not None
        received.append(me.run_in_thread(worker, lambda: one.recv(100)))
        received.append(one.recv(100))
        return received

    def write() -> None:
        for data in (b"1", b"2", b"3"):
            sleep(0.01)
            other.sendall(data)

    assert greenlets.run(read, write)[0] == [b"1", b"2", b"3"]
    greenlets.hub.close_threads()


def test_detach_gives_a_descriptor_that_blocks(greenlets: Greenlets) -> None:
    """Whoever takes the bare descriptor gets what it would get of any other socket."""
    one, other = greenlets.pair()
    greenlets.run(lambda: other.sendall(b"x"), lambda: one.recv(100))
    with socket.socket(fileno=one.detach()) as plain:
        assert plain.getblocking()
        other.sendall(b"y")
        assert plain.recv(1) == b"y"
    assert one.fileno() == -1


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_connecting_and_accepting_let_others_run(
    greenlets: Greenlets, tmp_path: pathlib.Path, family: socket.AddressFamily
) -> None:
    """One greenlet accepts while another connects; a refused connection is its error."""
    listener = CooperativeSocket(family)
    client = CooperativeSocket(family)
    with listener, client:
        listener.bind(("127.0.0.1", 0) if family == socket.AF_INET else f"{tmp_path}/s")
        listener.listen()
        nobody = ("127.0.0.1", 1) if family == socket.AF_INET else f"{tmp_path}/nobody"

        def accept() -> bytes:
            connection, _ = listener.accept()
            with connection:
                return connection.recv(1)

        def connect() -> None:
            with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
                client.connect(nobody)
            with CooperativeSocket(family) as another:
                assert another.connect_ex(nobody) in (errno.ECONNREFUSED, errno.ENOENT)
            with CooperativeSocket(family) as another:
                another.connect(listener.getsockname())
                another.sendall(b"x")

        assert greenlets.run(connect, accept)[1] == b"x"


def test_datagrams_wait_as_well(greenlets: Greenlets) -> None:
    """``recvfrom()`` of a datagram socket waits for another greenlet's ``sendto()``."""
    one, other = greenlets.pair(socket.SOCK_DGRAM)
    assert greenlets.run(lambda: one.recvfrom(100)[0], lambda: other.send(b"hello"))[0] == b"hello"


def test_a_hundred_thousand_switches_grow_nothing(greenlets: Greenlets) -> None:
    """Time-outs that were set and were not needed do not pile up."""
    one, other = greenlets.pair()
    one.settimeout(60)
    loops: list[Any] = []

    def read() -> None:
        for _ in range(5000):
            one.recv(1)
        loops.append(greenlets.hub.loop)

    def write() -> None:
        for _ in range(5000):
            other.sendall(b"x")
            sleep(0)

    greenlets.run(read, write)
    assert len(loops[0]._timers) < 100


def test_input_that_comes_while_its_reader_waits_for_something_else_is_there_afterwards(greenlets: Greenlets) -> None:
    """A greenlet that is told of input itself, sleeps in between, and then reads: it sleeps on, and misses none."""
    one, other = greenlets.pair()

    def read() -> list[bytes]:
        received = [one.recv(100) for _ in range(3)]
        other.sendall(b"4")
        begun = time.monotonic()
        sleep(0.05)
        assert time.monotonic() - begun >= 0.05
        received.append(one.recv(100))
        one.settimeout(LIMIT)
        received.append(one.recv(100))
        one.settimeout(None)
        received.append(one.recv(100))
        return received

    def write() -> None:
        for data in (b"1", b"2", b"3"):
            other.sendall(data)
            sleep(0.01)
        sleep(0.1)
        for data in (b"5", b"6"):
            other.sendall(data)
            sleep(0.01)

    assert greenlets.run(read, write)[0] == [b"1", b"2", b"3", b"4", b"5", b"6"]


def test_what_a_thread_reads_in_between_leaves_the_greenlets_wait_exact(greenlets: Greenlets) -> None:
    """A read larger than the buffer, one that raises, and one in a thread, each after waits for short messages."""
    one, other = greenlets.pair()

    def read() -> list[bytes]:
        received = [one.recv(100) for _ in range(2)]
        received += [one.recv(2), one.recv(2)]
        with pytest.raises(OverflowError):
            one.recv(2**80)
        received.append(one.recv(100))
        thread = threading.Thread(target=lambda: received.append(one.recv(100)))
        thread.start()
        while thread.is_alive():
            sleep(0.01)
        return [*received, one.recv(100)]

    def write() -> None:
        for data in (b"1", b"2", b"3344", b"5", b"6", b"7"):
            sleep(0.03)
            other.sendall(data)

    assert greenlets.run(read, write)[0] == [b"1", b"2", b"33", b"44", b"5", b"6", b"7"]


def test_the_end_is_seen_after_any_number_of_waits(greenlets: Greenlets) -> None:
    """End-of-file that comes alone, that comes with the last bytes, and a close by another greenlet."""
    for last in (b"", b"last"):
        one, other = greenlets.pair()

        def read(one: socket.socket = one) -> list[bytes]:
            return [one.recv(100), one.recv(100), one.recv(100), one.recv(100), one.recv(100)]

        def write(other: socket.socket = other, last: bytes = last) -> None:
            for data in (b"1", b"2", b"3"):
                other.sendall(data)
                sleep(0.01)
            other.sendall(last)
            other.close()

        assert greenlets.run(read, write)[0] == [b"1", b"2", b"3", last, b""]
    one, other = greenlets.pair()

    def read_on() -> None:
        assert one.recv(100) + one.recv(100) == b"12"
        with pytest.raises(OSError, match="descriptor") as failure:
            one.recv(100)
        assert failure.value.errno == errno.EBADF

    def close_it() -> None:
        for data in (b"1", b"2"):
            other.sendall(data)
            sleep(0.01)
        one.close()

    greenlets.run(read_on, close_it)
