"""The client for people: every kind of address, what is typed, what comes back, and why nothing does."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import certificates
from support.handlers import Signal, handlers
from support.under_test import LIMIT
from support.waiting import wait_until_blocked

import sockserve
from sockserve.client import command_line
from sockserve.net.address import format_address, parse_address
from sockserve.pytest_plugin import Running

ROOT = pathlib.Path(sockserve.__file__).parent.parent
H = handlers(sockserve)


def command(*arguments: str) -> list[str]:
    """The command line that runs it."""
    return [sys.executable, "-m", "sockserve.client", *arguments]


def client(*arguments: str, data: bytes | None = None, status: int = 0, **options: Any) -> bytes:
    """What it prints, given its standard input; the other output is for errors, and then it is all there is."""
    done = subprocess.run(
        command(*arguments), input=data or b"", capture_output=True, timeout=LIMIT, check=False, **options
    )
    assert done.returncode == status, done.stderr
    assert not (done.stdout and done.stderr)
    return done.stdout or done.stderr


def address_of(server: Any) -> str:
    """The text for where a server listens."""
    return format_address(server.socket)


@pytest.fixture(params=["tcp", "tcp6", "everywhere", "unix", "abstract"])
def stream_server(request: pytest.FixtureRequest, running: Running, tmp_path: pathlib.Path) -> str:
    """The address of a server that echoes over some kind of stream."""
    if request.param == "everywhere":
        server = running(sockserve.ThreadingTCPServer(("", 0), H.Echo))
        return f"tcp://:{server.server_address[1]}"
    if request.param.startswith("tcp"):
        host = "::1" if request.param == "tcp6" else "127.0.0.1"
        return address_of(running(sockserve.ThreadingTCPServer((host, 0), H.Echo)))
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("abstract names exist on Linux only")
    path = f"\0sockserve-client-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "s")
    running(sockserve.ThreadingUnixStreamServer(path, H.Echo))
    return f"unix:{path}".replace("\0", "@")


@pytest.fixture(params=["udp", "unix-dgram"])
def datagram_server(request: pytest.FixtureRequest, running: Running, tmp_path: pathlib.Path) -> str:
    """The address of a server that echoes over some kind of datagrams."""
    if request.param == "udp":
        return address_of(running(sockserve.ThreadingUDPServer(("127.0.0.1", 0), H.EchoDatagram)))
    return address_of(running(sockserve.ThreadingUnixDatagramServer(str(tmp_path / "d"), H.EchoDatagram)))


def test_a_line_and_the_input_go_over_a_stream(stream_server: str) -> None:
    """--line is sent with a line end, the input as it is, and what comes back is printed as it is."""
    assert client(stream_server, "--line", "hello") == b"hello\n"
    assert client(stream_server, data=b"\0\xff no end") == b"\0\xff no end"


def test_each_line_is_a_datagram(datagram_server: str, tmp_path: pathlib.Path) -> None:
    """Each is sent without its end, and its answer is a line; what was made to be answered is removed."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    before = set(tmp_path.iterdir())
    assert client(datagram_server, "--line", "hello", env=environment) == b"hello\n"
    assert client(datagram_server, data=b"one\n\xfftwo", env=environment) == b"one\n\xfftwo\n"
    assert set(tmp_path.iterdir()) == before


def test_an_inherited_descriptor_is_talked_to() -> None:
    """fd:N, a connected socket of either kind."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        ours, theirs = socket.socketpair(type=kind)
        with ours, theirs:
            ours.send(b"answer\n")
            if kind == socket.SOCK_STREAM:
                ours.shutdown(socket.SHUT_WR)
            fd = theirs.fileno()
            assert client(f"fd:{fd}", "--line", "question", pass_fds=[fd]) == b"answer\n"
            assert ours.recv(100) == b"question" + (b"\n" if kind == socket.SOCK_STREAM else b"")


def test_more_than_all_buffers_hold(running: Running) -> None:
    """What is sent and what comes back do not wait for each other."""
    data = os.urandom(1024) * 2048

    class Echo64K(sockserve.BaseRequestHandler):
        def handle(self) -> None:
            while piece := self.request.recv(65536):
                self.request.sendall(piece)

    address = address_of(running(sockserve.ThreadingTCPServer(("127.0.0.1", 0), Echo64K)))
    assert client(address, data=data) == data


def test_a_server_that_answers_without_reading_has_answered(running: Running) -> None:
    """It is not held against it that it closed before it had read everything."""

    class Thanks(sockserve.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"thanks")

    address = address_of(running(sockserve.ThreadingTCPServer(("127.0.0.1", 0), Thanks)))
    assert client(address, data=bytes(10_000)) == b"thanks"


# no answer


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_nobody_listens(scheme: str) -> None:
    """One line that names the address and the reason, and status 1."""
    kind = socket.SOCK_STREAM if scheme == "tcp" else socket.SOCK_DGRAM
    with socket.socket(type=kind) as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"{scheme}://127.0.0.1:{taken.getsockname()[1]}"
        if scheme == "udp":
            taken.close()
        said = client(address, "--line", "x", status=1).decode()
    assert said == f"sockserve.client: no answer from {address}: Connection refused\n"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("unix:/nowhere/at all", "No such file or directory"),
        ("unix-dgram:/nowhere", "No such file or directory"),
        ("tcp://nobody.invalid:1", ""),
        ("fd:999", "descriptor 999 is not an open socket"),
    ],
)
def test_there_is_no_such_place(address: str, reason: str) -> None:
    """The same for a path, a host and a descriptor that do not exist."""
    said = client(address, "--line", "x", status=1).decode()
    assert said.startswith(f"sockserve.client: no answer from {address}: {reason}")
    assert said.count("\n") == 1


def test_a_datagram_without_an_answer(running: Running) -> None:
    """After --wait seconds that is an error, unless they are none."""
    address = address_of(running(sockserve.ThreadingUDPServer(("127.0.0.1", 0), sockserve.DatagramRequestHandler)))
    said = client(address, "--line", "x", "--wait", "0.05", status=1).decode()
    assert said == f"sockserve.client: no answer from {address}: not within 0.05 s\n"
    assert client(address, "--line", "x", "--wait", "0") == b""


def test_a_connection_that_breaks() -> None:
    """A reset is told in one line."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reset() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        thread = threading.Thread(target=reset)
        thread.start()
        address = format_address(listener)
        said = client(address, "--line", "hello", status=1).decode()
        thread.join()
    assert said == f"sockserve.client: lost the connection to {address}: Connection reset by peer\n"


# a person who has enough


def interrupted(*arguments: str, until: Signal | None) -> tuple[int, bytes, bytes]:
    """Status and output of a client that gets Ctrl-C once ``until`` is set, or once it has printed something."""
    with subprocess.Popen(
        command(*arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            said = b""
            if until is None:
                said = process.stdout.readline()
            else:
                assert until.take()
            wait_until_blocked(process.pid)
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    return process.returncode, said + rest, errors


def test_ctrl_c_while_the_server_is_silent(running: Running) -> None:
    """It leaves with status 130 and says nothing, whatever it waits for: an answer over a stream, or a datagram."""
    gate = handlers(sockserve).Gate
    stream = running(sockserve.ThreadingTCPServer(("127.0.0.1", 0), gate))
    datagrams = running(sockserve.ThreadingUDPServer(("127.0.0.1", 0), gate))
    assert interrupted(address_of(stream), "--line", "x", until=gate.begun) == (130, b"", b"")
    assert interrupted(address_of(datagrams), "--line", "x", "--wait", "60", until=gate.begun) == (130, b"", b"")
    gate.opened.set()


def test_ctrl_c_at_an_open_terminal(running: Running) -> None:
    """The same while it waits for something to be typed, over a stream that has greeted."""
    server = running(sockserve.ThreadingTCPServer(("127.0.0.1", 0), H.WriteFirst))
    assert interrupted(address_of(server), until=None) == (130, b"hello\n", b"")


def test_who_reads_its_output_has_enough(running: Running) -> None:
    """When its output is closed it leaves, quietly."""
    address = address_of(running(sockserve.ThreadingTCPServer(("127.0.0.1", 0), H.Echo)))
    read, write = os.pipe()
    with subprocess.Popen(command(address), stdin=subprocess.PIPE, stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        os.close(read)
        _, errors = process.communicate(b"x" * 1000, timeout=LIMIT)
    assert (process.returncode, errors) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a full disk is needed")
def test_an_output_that_takes_nothing(running: Running) -> None:
    """That is told in one line, and is not the server's fault."""
    address = address_of(running(sockserve.ThreadingTCPServer(("127.0.0.1", 0), H.Echo)))
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command(address, "--line", "x"), stdout=full, stderr=subprocess.PIPE, timeout=LIMIT, check=False
        )
    assert (done.returncode, done.stderr) == (
        1,
        b"sockserve.client: cannot print the answer: No space left on device\n",
    )


# TLS


def tls_server(running: Running, context: ssl.SSLContext, handler: Any) -> str:
    """The address of a server that speaks TLS."""
    server = sockserve.ThreadingTCPServer(("127.0.0.1", 0), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return address_of(running(server))


class Late(sockserve.StreamRequestHandler):
    """Greets, then answers when the client has said that this was all."""

    def handle(self) -> None:
        """Serve one client."""
        self.wfile.write(b"hello\n")
        self.wfile.write(self.rfile.read())


@pytest.mark.parametrize("version", certificates.VERSIONS, ids=lambda version: version.name)
def test_tls(running: Running, certificate: pathlib.Path, version: ssl.TLSVersion) -> None:
    """The end of the input is told under TLS too, and an answer that is longer than any buffer still arrives."""
    address = tls_server(running, certificates.server_context(certificate, version), Late)
    trust = ("--tls", "--cafile", str(certificate))
    assert client(address, *trust, "--line", "x") == b"hello\nx\n"
    data = os.urandom(1024) * 1024
    assert client(address, *trust, data=data) == b"hello\n" + data


def test_what_comes_with_the_end_of_the_handshake_is_no_error(certificate: pathlib.Path) -> None:
    """In TLS 1.2 the server speaks last, and may greet in the same segment: before the client has said its line."""
    context = certificates.server_context(certificate, ssl.TLSVersion.TLSv1_2)
    received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(received, to_send, server_side=True)

    def take(connection: socket.socket) -> None:
        data = connection.recv(65536)
        received.write(data) if data else received.write_eof()

    def serve() -> None:
        connection = listener.accept()[0]
        with connection:
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    connection.sendall(to_send.read())
                    take(connection)
            tls.write(b"hello\n")
            connection.sendall(to_send.read())
            while not heard.endswith(b"\n"):
                with contextlib.suppress(ssl.SSLWantReadError):
                    heard.extend(tls.read(100))
                    continue
                take(connection)
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.unwrap()
            connection.sendall(to_send.read())

    heard = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)
        serving = threading.Thread(target=serve)
        serving.start()
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        assert client(address, "--tls", "--cafile", str(certificate), "--line", "x") == b"hello\n"
        serving.join(LIMIT)
    assert heard == b"x\n"


def test_whom_tls_trusts(running: Running, certificate: pathlib.Path) -> None:
    """Not a certificate that nobody vouches for, unless told so."""
    address = tls_server(running, certificates.server_context(certificate), Late)
    said = client(address, "--tls", "--line", "x", status=1).decode()
    assert said == (
        f"sockserve.client: no answer from {address}: self-signed certificate (see --cafile and --insecure)\n"
    )
    assert client(address, "--tls", "--insecure", "--line", "x") == b"hello\nx\n"


def test_tls_with_a_server_that_does_not_speak_it(running: Running) -> None:
    """One line says that it was not TLS."""
    address = address_of(running(sockserve.ThreadingTCPServer(("127.0.0.1", 0), H.WriteFirst)))
    said = client(address, "--tls", "--line", "x", status=1).decode()
    assert said.startswith(f"sockserve.client: no answer from {address}: TLS failed: ")
    assert said.count("\n") == 1


def test_an_answer_that_was_cut_off(certificate: pathlib.Path) -> None:
    """A server that closes without close_notify may not have said all: that is an error."""
    context = certificates.server_context(certificate)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def cut() -> None:
            connection, _ = listener.accept()
            with context.wrap_socket(connection, server_side=True) as tls:
                while tls.recv(100):
                    pass
                tls.sendall(b"half an ans")

        thread = threading.Thread(target=cut)
        thread.start()
        address = format_address(listener)
        arguments = command(address, "--tls", "--cafile", str(certificate), "--line", "x")
        done = subprocess.run(arguments, capture_output=True, timeout=LIMIT, check=False)
        thread.join()
    assert (done.returncode, done.stdout) == (1, b"half an ans")
    assert done.stderr.decode().startswith(f"sockserve.client: lost the connection to {address}: TLS failed: ")


# arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: ADDRESS"),
        ("localhost:80", "'localhost:80' is not an address"),
        ("tcp://:1 tcp://:2", "unrecognized arguments: tcp://:2"),
        ("tcp://:1 --wait 1", "--wait is for datagrams"),
        ("udp://:1 --wait soon", "'soon' is not a time in seconds"),
        ("udp://:1 --wait nan", "'nan' is not a time in seconds"),
        ("udp://:1 --tls", "--tls is for streams"),
        ("tcp://:1 --insecure", "which certificates --tls trusts"),
        ("tcp://:1 --tls --cafile /nowhere", "--cafile /nowhere: No such file or directory"),
    ],
)
def test_arguments_that_make_no_sense_are_usage_errors(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, and a message that says what would."""
    with pytest.raises(SystemExit) as end:
        command_line.read_arguments(arguments.split())
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_help_tells_all() -> None:
    """--help ends well, and has every option, every form of an address and examples."""
    said = client("--help").decode()
    for word in ("--line", "--tls", "--cafile", "--insecure", "--wait", "unix-dgram:", "examples:", "130"):
        assert word in said
    assert max(map(len, said.splitlines())) <= 120


WORDS = st.sampled_from(
    ["tcp://127.0.0.1:1", "tcp://:1", "udp://[::1%lo]:1", "unix:@x", "unix-dgram:x", "fd:3", "", "-", "--"]
)
OPTIONS = st.sampled_from(["--line", "--tls", "--insecure", "--wait", "--wait=0", "--line=", "--wait=1e9", "-h", "-x"])


@settings(deadline=None)
@given(st.lists(WORDS | OPTIONS | st.text(st.characters(exclude_categories=()), max_size=8), max_size=5))
def test_any_arguments_are_accepted_or_a_usage_error(arguments: list[str]) -> None:
    """Whatever is typed is read as one address and values within their limits, or ends with status 2."""
    status: object = None
    try:
        options = command_line.read_arguments(arguments)
    except SystemExit as end:
        status = end.code
    if status is not None:
        assert status == 2 or (status == 0 and "-h" in arguments)
        return
    assert parse_address(str(options.address)) == options.address
    assert options.line is None or isinstance(options.line, bytes)
    assert 0 <= options.wait <= threading.TIMEOUT_MAX
    assert options.tls is None or options.address.type != socket.SOCK_DGRAM
