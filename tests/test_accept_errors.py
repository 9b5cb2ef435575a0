"""The table that says what an error of accept(2) asks of the loop."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable

import pytest
from support.scripts import run_script

import sockserve
from sockserve.net.accept_errors import BACK_OFF_FIRST, BACK_OFF_LAST, Verdict, judge


def judge_number(number: int) -> Verdict:
    """Judge an error as the kernel gives it."""
    return judge(OSError(number, os.strerror(number)))


@pytest.mark.parametrize(
    "name",
    [
        # accept(2): errors of the network that were pending; but for EOPNOTSUPP, which is the listener's too.
        *("ENETDOWN", "EPROTO", "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH", "ENETUNREACH"),
        # accept(2): aborted by the peer.
        "ECONNABORTED",
    ],
)
def test_what_one_peer_caused_is_ignored(name: str) -> None:
    """An error that was pending on the new connection is no reason not to take the next one."""
    if hasattr(errno, name):
        assert judge_number(getattr(errno, name)) is Verdict.IGNORE


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM])
def test_what_lacks_a_resource_is_tried_later(number: int) -> None:
    """An error that would come again at once asks for a pause: EPERM of a sandbox comes for ever."""
    assert judge_number(number) is Verdict.BACK_OFF


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR])
def test_what_found_nothing_is_no_error(number: int) -> None:
    """Somebody else took the connection, or a signal came."""
    assert judge_number(number) is Verdict.NOTHING_THERE


def closed() -> None:
    """Accept on a socket that is closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pass
    listener.accept()


def silent() -> None:
    """Accept on a socket that does not listen."""
    with socket.socket() as sock:
        sock.accept()


def datagram() -> None:
    """Accept on a socket that cannot listen."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.accept()


def pipe() -> None:
    """Accept on what is no socket."""
    reader, writer = os.pipe()
    with socket.socket() as sock:
        os.dup2(reader, sock.fileno())
        os.close(reader)
        os.close(writer)
        sock.accept()


@pytest.mark.parametrize("accept", [closed, silent, datagram, pipe])
def test_what_is_wrong_with_the_listener_ends_it(accept: Callable[[], None]) -> None:
    """What the kernel says about a listener that never will accept anything is fatal."""
    with pytest.raises(OSError, match=r".") as caught:
        accept()
    assert judge(caught.value) is Verdict.FATAL


def test_what_a_datagrams_peer_caused_is_ignored() -> None:
    """A connection refused, reported on the socket that somebody wrote to, is that somebody's."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        with socket.socket(type=socket.SOCK_DGRAM) as gone:
            gone.bind(("127.0.0.1", 0))
            sock.connect(gone.getsockname())
        sock.settimeout(10)
        sock.send(b"hello")
        with pytest.raises(ConnectionRefusedError) as caught:
            sock.recv(10)
    assert judge(caught.value) is Verdict.IGNORE


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (ConnectionResetError(), Verdict.IGNORE),
        (TimeoutError("timed out"), Verdict.IGNORE),
        (OSError("no number"), Verdict.BACK_OFF),
        (sockserve.DatagramTruncatedError(100, ("127.0.0.1", 1)), Verdict.IGNORE),
        # OpenSSL's numbers are not the kernel's: this one would read EPERM, the next ENOENT.
        (ssl.SSLError(1, "wrong version number"), Verdict.IGNORE),
        (ssl.SSLWantReadError(2, "the operation did not complete"), Verdict.IGNORE),
        (ssl.SSLError("Closed before TLS handshake with data in recv buffer."), Verdict.IGNORE),
    ],
    ids=repr,
)
def test_errors_that_a_subclass_may_raise(error: OSError, verdict: Verdict) -> None:
    """Errors without a number of the kernel are judged by their class."""
    assert judge(error) is verdict


def test_what_nobody_foresaw_is_tried_later() -> None:
    """Every other number, known to this system or not, asks for a pause: it may come again at once."""
    unforeseen = [errno.EIO, errno.ENOSPC, errno.EACCES, 99_999]
    assert {judge(OSError(number, "?")) for number in unforeseen} == {Verdict.BACK_OFF}


@pytest.mark.parametrize(
    ("name", "number", "verdict"),
    [("WSAECONNRESET", 10054, "IGNORE"), ("WSAEMFILE", 10024, "BACK_OFF"), ("WSAENOTSOCK", 10038, "FATAL")],
)
def test_windows_numbers_have_twins(name: str, number: int, verdict: str) -> None:
    """Where the system has a number of its own for an error, that one is judged alike."""
    output = run_script(f"""
import errno, sys
for module in [name for name in sys.modules if name.partition(".")[0] == "sockserve"]:
    del sys.modules[module]
errno.{name} = {number}
from sockserve.net.accept_errors import judge
print(judge(OSError({number}, "?")).name)
""")
    assert output.strip() == verdict


def test_pauses_grow_from_unnoticed_to_bearable() -> None:
    """The first pause is too short to be noticed, the last one shorter than any client's patience."""
    assert 0 < BACK_OFF_FIRST < 0.05
    assert BACK_OFF_FIRST < BACK_OFF_LAST <= 1
