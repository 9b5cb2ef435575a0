"""The files over a connection: nothing is lost and nothing comes twice, wherever time-outs fall."""

from __future__ import annotations

import array
import contextlib
import io
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.under_test import LIMIT

from sockserve.core.streams import SocketWriter, open_reader
from sockserve.errors import PeerTimeoutError


class Scripted(socket.socket):
    """A socket whose peer sends what a script says; None stands for a time-out that passes without a byte."""

    def __init__(self, script: list[bytes | None]) -> None:
        super().__init__()
        self.script = script[::-1]

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive the next chunk, or as much of it as fits."""
        if not self.script:
            return 0
        chunk = self.script.pop()
        if chunk is None:
            raise TimeoutError("timed out")
        room = memoryview(buffer).nbytes
        if len(chunk) > room:
            self.script.append(chunk[room:])
        buffer[: len(chunk[:room])] = chunk[:room]
        return len(chunk[:room])


class Call(NamedTuple):
    """An operation on the file, with its size; None: without one."""

    name: str
    size: int | None


sizes = st.none() | st.integers(min_value=0, max_value=30)
calls = st.one_of(
    st.builds(Call, st.sampled_from(["readline", "read", "read1", "peek"]), sizes),
    st.builds(Call, st.sampled_from(["readinto", "readinto1"]), st.integers(min_value=0, max_value=30)),
)
chunks = st.binary(min_size=1, max_size=20) | st.sampled_from([b"\n", b"ab\ncd\n", b"x" * 40])


def until_it_succeeds(call: Callable[[], Any], script: list[bytes | None]) -> Any:
    """Repeat a call that a time-out interrupts; each of them must be one of the script's."""
    while True:
        left = len(script)
        try:
            return call()
        except PeerTimeoutError:
            assert len(script) < left


def perform(file: Any, call: Call) -> bytes:
    """Make a call and return what it read."""
    if call.name.startswith("readinto"):
        assert call.size is not None
        buffer = bytearray(call.size)
        return bytes(buffer[: getattr(file, call.name)(buffer)])
    result: bytes = getattr(file, call.name)(*([] if call.size is None else [call.size]))
    return result


def expect(call: Call, rest: bytes) -> bytes | None:
    """What a call has to return, if ``rest`` is all that still comes; None: any beginning of it."""
    size = len(rest) if call.size is None else call.size
    match call.name:
        case "readline":
            return rest[: rest.find(b"\n") + 1 or None][:size]
        case "read" | "readinto":
            return rest[:size]
        case _:
            return b"" if not rest or (size == 0 and call.name != "peek") else None


@given(
    script=st.lists(chunks | st.none(), max_size=15),
    sequence=st.lists(calls, max_size=15),
    buffer_size=st.integers(min_value=1, max_value=16) | st.just(-1),
)
def test_any_sequence_of_calls_reads_what_was_sent(
    script: list[bytes | None], sequence: list[Call], buffer_size: int
) -> None:
    """Repeated until it succeeds each call returns what it would have returned without the time-outs."""
    with Scripted(script) as connection, open_reader(connection, buffer_size) as file:
        rest = b"".join(chunk for chunk in script if chunk is not None)
        for call in [*sequence, Call("read", None)]:
            result = until_it_succeeds(lambda call=call: perform(file, call), connection.script)
            expected = expect(call, rest)
            if expected is None:
                # At least a byte, and no more than was asked for, but for peek(), which may show more.
                assert result
                assert rest.startswith(result)
                assert call.size is None or call.name == "peek" or len(result) <= call.size
            else:
                assert result == expected
            if call.name != "peek":
                rest = rest[len(result) :]
        assert rest == b""


@given(script=st.lists(chunks | st.none(), max_size=15), buffer_size=st.integers(min_value=1, max_value=16))
def test_iteration_yields_every_line(script: list[bytes | None], buffer_size: int) -> None:
    """A loop over the file that is begun anew after each time-out sees every line once."""
    lines: list[bytes] = []

    def take_lines(file: Any) -> None:
        for line in file:
            # extend() promises nothing about what it had when its argument raises.
            lines.append(line)  # noqa: PERF402

    with Scripted(script) as connection, open_reader(connection, buffer_size) as file:
        until_it_succeeds(lambda: take_lines(file), connection.script)
    data = b"".join(chunk for chunk in script if chunk is not None)
    assert lines == list(io.BytesIO(data))


@given(script=st.lists(st.sampled_from(["ä\n", "€", "😀"]).map(str.encode) | st.none(), max_size=10))
def test_text_can_be_read_through_it(script: list[bytes | None]) -> None:
    """A TextIOWrapper on top of the file decodes what was sent, if it is asked again after each time-out."""
    with Scripted(script) as connection:
        text = io.TextIOWrapper(open_reader(connection, -1), "utf-8")
        read = ""
        while True:
            character = until_it_succeeds(lambda: text.read(1), connection.script)
            if not character:
                break
            read += character
        text.close()
    assert read.encode() == b"".join(chunk for chunk in script if chunk is not None)


Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected sockets."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(LIMIT)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("buffer_size", [-1, 1, 0])
def test_a_real_time_out_can_be_followed_by_another_attempt(pair: Pair, buffer_size: int) -> None:
    """On a socket with a time-out, buffered or not, a line that was interrupted is read whole by the next attempt."""
    ours, theirs = pair
    ours.settimeout(0.01)
    theirs.send(b"first\nsec")
    with open_reader(ours, buffer_size) as file:
        assert file.readline() == b"first\n"
        for _ in range(2):
            with pytest.raises(TimeoutError):
                file.readline()
        theirs.send(b"ond\nthird")
        theirs.shutdown(socket.SHUT_WR)
        assert [file.readline(), file.readline(), file.readline()] == [b"second\n", b"third", b""]


@pytest.mark.parametrize("buffer_size", [-1, 0])
def test_a_time_out_is_the_peers(pair: Pair, buffer_size: int) -> None:
    """A reader tells the silence of its peer from any other time-out."""
    ours, _ = pair
    ours.settimeout(0.01)
    with open_reader(ours, buffer_size) as file, pytest.raises(PeerTimeoutError):
        file.read(1)


def test_a_socket_that_does_not_block_has_no_more_for_now(pair: Pair) -> None:
    """Without bytes a non-blocking socket gives None, as any raw file does, and is usable afterwards."""
    ours, theirs = pair
    ours.setblocking(False)
    with open_reader(ours, -1) as file:
        assert file.read(10) is None
        theirs.send(b"hello")
        assert file.read(10) == b"hello"


def test_without_a_buffer_nothing_is_read_ahead(pair: Pair) -> None:
    """With size 0 a line is taken from the socket and not a byte more."""
    ours, theirs = pair
    theirs.send(b"line\nrest")
    with open_reader(ours, 0) as file:
        assert file.readline() == b"line\n"
        assert ours.recv(10) == b"rest"


def test_the_reader_keeps_the_descriptor_open(pair: Pair) -> None:
    """A socket that is closed while a file reads from it lives until the file is closed, as with makefile()."""
    ours, theirs = pair
    file = open_reader(ours, -1)
    ours.close()
    theirs.send(b"hello\n")
    assert file.readline() == b"hello\n"
    file.close()
    assert ours.fileno() == -1
    with pytest.raises(ValueError, match="closed file"):
        file.read(1)


@pytest.mark.parametrize("buffer_size", [0, -1])
def test_a_reader_tells_of_itself_what_one_of_makefile_does(pair: Pair, buffer_size: int) -> None:
    """Position, descriptor, name and mode, before and after it is closed."""
    connection = pair[0]
    files: list[Any] = [connection.makefile("rb", buffer_size), open_reader(connection, buffer_size)]
    with files[0], files[1]:
        for file in files:
            assert (file.readable(), file.writable(), file.seekable()) == (True, False, False)
            raw = getattr(file, "raw", file)
            assert (file.fileno(), file.name, raw.mode) == (connection.fileno(), connection.fileno(), "rb")
            with pytest.raises(io.UnsupportedOperation):
                file.tell()
    for file in files:
        file.close()
        assert file.closed
        with pytest.raises(ValueError, match="closed"):
            file.read(1)
        with pytest.raises(ValueError, match="closed"):
            file.fileno()


def test_a_socket_with_files_of_its_own_is_asked_for_them() -> None:
    """A class that overrides makefile(), as gevent's, knows how to read without blocking others."""

    class Own(socket.socket):
        def makefile(self, mode: str = "r", buffering: int | None = None, **kwargs: Any) -> Any:
            return io.BytesIO(f"{mode} {buffering}".encode())

    with contextlib.closing(Own()) as connection:
        assert open_reader(connection, 7).read() == b"rb 7"


def test_a_broken_connection_is_an_error() -> None:
    """An error of the socket comes through, and is no end-of-file."""

    class Broken(Scripted):
        def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
            raise ConnectionResetError

    with Broken([]) as connection, open_reader(connection, -1) as file, pytest.raises(ConnectionResetError):
        file.readline()


def read_exactly(connection: socket.socket, count: int) -> bytes:
    """Return as many bytes, or all until end-of-file."""
    received = b""
    while len(received) < count and (chunk := connection.recv(65536)):
        received += chunk
    return received


@pytest.mark.parametrize(
    ("data", "sent"),
    [
        (b"bytes", b"bytes"),
        (bytearray(b"array"), b"array"),
        (memoryview(b"view"), b"view"),
        (array.array("H", [0x4142, 0x4142]), array.array("H", [0x4142, 0x4142]).tobytes()),
        (b"", b""),
    ],
)
def test_write_sends_all_and_counts_bytes(pair: Pair, data: Any, sent: bytes) -> None:
    """What has a buffer can be written, and the result is its length in bytes."""
    ours, theirs = pair
    assert SocketWriter(ours).write(data) == len(sent)
    ours.shutdown(socket.SHUT_WR)
    assert read_exactly(theirs, 100) == sent


def test_a_large_write_is_whole(pair: Pair) -> None:
    """More than the socket's buffer holds is sent while the peer reads."""
    ours, theirs = pair
    data = bytes(range(256)) * 20_000
    writer = threading.Thread(target=SocketWriter(ours).write, args=(data,))
    writer.start()
    assert read_exactly(theirs, len(data)) == data
    writer.join(LIMIT)
    assert not writer.is_alive()


def test_lines_and_text_can_be_written(pair: Pair) -> None:
    """The writer serves as a file for writelines() and, under a text layer, for print()."""
    ours, theirs = pair
    writer = SocketWriter(ours)
    writer.writelines([b"a\n", b"b\n"])
    text = io.TextIOWrapper(writer, "utf-8", write_through=True)
    print("ä", file=text)
    assert read_exactly(theirs, 7) == b"a\nb\n\xc3\xa4\n"


def test_closing_the_writer_leaves_the_socket_open(pair: Pair) -> None:
    """The connection is closed by the server, not by ``wfile.close()``."""
    ours, theirs = pair
    writer = SocketWriter(ours)
    assert writer.writable()
    assert writer.fileno() == ours.fileno()
    writer.close()
    ours.sendall(b"hello")
    assert theirs.recv(10) == b"hello"


def test_a_write_that_times_out_is_the_peers_fault(pair: Pair) -> None:
    """A peer that takes nothing for as long as the time-out says is told from any other time-out."""
    ours, _ = pair
    ours.settimeout(0.01)
    with pytest.raises(PeerTimeoutError):
        SocketWriter(ours).write(bytes(10_000_000))
