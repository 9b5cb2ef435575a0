"""A socket whose blocking methods let other greenlets run."""

# ruff: noqa: D102 - the methods promise what those of socket.socket do

from __future__ import annotations

import errno
import math
import operator
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from sockserve.concurrency.cooperative.channel import FEW, INPUT, Channel
from sockserve.concurrency.cooperative.request_greenlet import getcurrent, sleep
from sockserve.net.waiting_socket import WaitingSocket

__all__ = ["CooperativeMethods", "CooperativeSocket"]

_bare_recv = socket.socket.recv
_bare_recv_into = socket.socket.recv_into
_bare_send = socket.socket.send

_WAITALL: int = getattr(socket, "MSG_WAITALL", 0)
_DONT_WAIT: int = getattr(socket, "MSG_DONTWAIT", 0)

LONGEST_TIMEOUT = 2.0**63 / 1e9
"""Seconds that ``socket.settimeout()`` takes at most: it counts nanoseconds."""

MUCH = 4096
"""Bytes of one read, with more behind them, that count as FEW operations: they may be a thousand short lines, and a
handler that works 20 microseconds on each has run for several turns before it reads again."""

SENDFILE_BLOCK = 2**30
"""Bytes that one sendfile(2) is asked for: as many as ``socket.socket.sendfile()`` asks for."""

BUSY_LISTENER = 0.01
"""Seconds until the next try to connect to a Unix socket whose backlog is full (EAGAIN): no event tells of room."""


class CooperativeMethods(WaitingSocket):
    """The methods of a cooperative socket, with TLS or without.

    It has no slot for the channel: an ``ssl.SSLSocket`` can only take a ``__class__`` of the same memory layout.
    """

    __slots__ = ()

    _serving_channel: Channel

    def _serving_begin(self, limit: float | None) -> None:
        self._serving_channel = Channel(super().fileno(), limit)
        super().setblocking(False)

    # input

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        channel = self._serving_channel
        deadline = None
        if flags:
            if flags & _WAITALL:
                return self._serving_receive_all(bufsize, flags)
        elif channel.is_dry:
            reader = channel.direct
            if reader is not None and reader is getcurrent() and channel.limit is None:
                # perf: wait_input() and the read in one frame, where a kept connection waits for each of its requests.
                # NOTEBOOK.md#greenlets-and-ping500-p2
                switch = reader.hub.switch
                try:
                    told = switch()
                    # The others have had their turns: share() need not look at the clock soon.
                    channel.unwaited = 0
                    if told != INPUT:
                        channel.heard(told)
                    data = _bare_recv(self, bufsize)
                except BlockingIOError:
                    pass
                except BaseException:
                    channel.is_dry = False
                    channel.break_off()
                    raise
                else:
                    if not data or len(data) == bufsize:
                        channel.is_dry = False
                    return data
            if channel.limit != 0:
                deadline = channel.wait_input()
        else:
            channel.unwaited += 1
            if channel.unwaited > FEW:
                channel.share()
        while True:
            try:
                data = _bare_recv(self, bufsize, flags)
            except BlockingIOError:
                if channel.limit == 0 or flags & _DONT_WAIT:
                    raise
            else:
                count = len(data)
                if 0 < count < bufsize and not flags:
                    channel.dry_up()
                elif count >= MUCH:
                    channel.unwaited += FEW
                return data
            deadline = channel.wait_input(deadline)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        channel = self._serving_channel
        deadline = None
        if flags:
            if flags & _WAITALL:
                with memoryview(buffer).cast("B") as view:
                    data = self._serving_receive_all(nbytes or len(view), flags)
                    view[: len(data)] = data
                return len(data)
        elif channel.is_dry and channel.limit != 0:
            deadline = channel.wait_input()
        else:
            channel.unwaited += 1
            if channel.unwaited > FEW:
                channel.share()
        while True:
            try:
                count = _bare_recv_into(self, buffer, nbytes, flags)
            except BlockingIOError:
                if channel.limit == 0 or flags & _DONT_WAIT:
                    raise
            else:
                if 0 < count < (nbytes or memoryview(buffer).nbytes) and not flags:
                    channel.dry_up()
                elif count >= MUCH:
                    channel.unwaited += FEW
                return count
            deadline = channel.wait_input(deadline)

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> Any:
        return self._serving_retry(self._serving_channel.wait_input, flags, super().recvfrom, bufsize, flags)

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> Any:
        return self._serving_retry(
            self._serving_channel.wait_input, flags, super().recvfrom_into, buffer, nbytes, flags
        )

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        return self._serving_retry(self._serving_channel.wait_input, flags, super().recvmsg, bufsize, ancbufsize, flags)

    def recvmsg_into(self, buffers: Any, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        return self._serving_retry(
            self._serving_channel.wait_input, flags, super().recvmsg_into, buffers, ancbufsize, flags
        )

    def accept(self) -> tuple[socket.socket, Any]:
        fd, address = self._serving_retry(self._serving_channel.wait_input, 0, super()._accept)  # type: ignore[misc]
        return CooperativeSocket(self.family, self.type, self.proto, fd), address

    # output

    def send(self, data: Any, flags: int = 0, /) -> int:
        channel = self._serving_channel
        deadline = None
        channel.unwaited += 1
        if channel.unwaited > FEW:
            channel.share()
        while True:
            try:
                return _bare_send(self, data, flags)
            except BlockingIOError:
                if channel.limit == 0 or flags & _DONT_WAIT:
                    raise
            deadline = channel.wait_output(deadline)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        channel = self._serving_channel
        channel.unwaited += 1
        if channel.unwaited > FEW:
            channel.share()
        try:
            sent = _bare_send(self, data, flags)
        except BlockingIOError:
            sent = 0
        # Only bytes: len() of another buffer may count items of several bytes.
        if type(data) is not bytes or sent < len(data):
            self._serving_send_rest(memoryview(data).cast("B")[sent:], flags)

    def sendto(self, data: Any, *flags_and_address: Any) -> Any:
        flags = flags_and_address[0] if len(flags_and_address) > 1 else 0
        return self._serving_retry(self._serving_channel.wait_output, flags, super().sendto, data, *flags_and_address)

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None, /) -> int:
        sent: int = self._serving_retry(
            self._serving_channel.wait_output, flags, super().sendmsg, buffers, ancdata, flags, address
        )
        return sent

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        try:
            source = file.fileno()
            size = os.fstat(source).st_size
        except (AttributeError, OSError):
            return super()._sendfile_use_send(file, offset, count)  # type: ignore[misc,no-any-return]
        self._check_sendfile_params(file, offset, count)  # type: ignore[attr-defined]
        if not size or not hasattr(os, "sendfile"):
            return super()._sendfile_use_send(file, offset, count)  # type: ignore[misc,no-any-return]
        sent = 0
        try:
            while count is None or sent < count:
                block = SENDFILE_BLOCK if count is None else min(count - sent, SENDFILE_BLOCK)
                done = self._serving_retry(
                    self._serving_channel.wait_output, 0, os.sendfile, self.fileno(), source, offset + sent, block
                )
                if not done:
                    break
                sent += done
        finally:
            if sent and hasattr(file, "seek"):
                file.seek(offset + sent)
        return sent

    # connecting

    def connect(self, address: Any, /) -> None:
        channel = self._serving_channel
        deadline = None if channel.limit is None else channel.begin()
        while True:
            try:
                super().connect(address)
            except BlockingIOError as error:
                if channel.limit == 0:
                    raise
                if error.errno == errno.EAGAIN:
                    sleep(BUSY_LISTENER)
                    if deadline is not None and deadline <= time.monotonic():
                        raise TimeoutError("timed out") from None
                    continue
                break
            return
        while True:
            deadline = channel.wait_output(deadline)
            failure = self.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failure:
                raise OSError(failure, os.strerror(failure))
            try:
                self.getpeername()
            except OSError as error:
                if error.errno != errno.ENOTCONN:
                    raise
            else:
                return

    def connect_ex(self, address: Any, /) -> int:
        try:
            self.connect(address)
        except OSError as error:
            if error.errno is None:
                return errno.EAGAIN if isinstance(error, TimeoutError) else errno.EINVAL
            return error.errno
        return 0

    # time-outs

    def settimeout(self, value: float | None, /) -> None:
        self._serving_channel.limit = None if value is None else _seconds(value)

    def gettimeout(self) -> float | None:
        return self._serving_channel.limit

    def setblocking(self, flag: bool, /) -> None:
        self._serving_channel.limit = None if flag else 0.0

    def getblocking(self) -> bool:
        return self._serving_channel.limit != 0

    @property
    def timeout(self) -> float | None:
        return self._serving_channel.limit

    # the end

    def detach(self) -> int:
        """Close the socket object and return its descriptor, which blocks again unless there is a time-out."""
        channel = self._serving_channel
        if channel.fd >= 0:
            channel.release()
            if channel.limit is None:
                super().setblocking(True)
        return super().detach()

    def _real_close(self, *args: Any) -> None:
        self._serving_channel.close()
        super()._real_close(*args)  # type: ignore[misc]

    # helpers

    def wait_for_input(self) -> bool:
        """Wait until ``recv()`` would not wait; return whether it would give any bytes. Raises what it would raise."""
        channel = self._serving_channel
        if channel.is_dry and channel.limit != 0:
            channel.wait_input()
            if channel.has_input():
                return True
        return bool(self.recv(1, socket.MSG_PEEK))

    def wait_readable(self, timeout: float) -> bool:
        """Wait until more input has come, at most ``timeout`` seconds; say whether it may have. Raises OSError (EBADF).

        What has come before the last read, and was not taken by it, is not told of again.
        """
        deadline = time.monotonic() + timeout
        try:
            self._serving_channel.wait_input(deadline)
        except TimeoutError:
            return False
        return time.monotonic() < deadline

    def wait_writable(self, timeout: float) -> bool:
        """Wait until it takes more output, at most ``timeout`` seconds (inf: without limit); return whether it may.

        Raises ValueError if ``timeout`` is NaN.
        """
        if timeout != timeout:  # noqa: PLR0124 - NaN is what equals nothing
            raise ValueError("a timeout cannot be NaN")
        deadline = time.monotonic() + timeout
        try:
            self._serving_channel.wait_output(deadline)
        except TimeoutError:
            return False
        return time.monotonic() < deadline

    def _serving_retry(
        self, wait: Callable[[float | None], float | None], flags: int, operation: Callable[..., Any], *args: Any
    ) -> Any:
        channel = self._serving_channel
        deadline = None
        channel.unwaited += 1
        if channel.unwaited > FEW:
            channel.share()
        while True:
            try:
                return operation(*args)
            except BlockingIOError:
                if channel.limit == 0 or flags & _DONT_WAIT:
                    raise
            deadline = wait(deadline)

    def _serving_send_rest(self, rest: memoryview, flags: int) -> None:
        channel = self._serving_channel
        # One deadline for the whole, as that of socket.socket.sendall().
        deadline = channel.begin()
        while rest:
            channel.unwaited += 1
            if channel.unwaited > FEW:
                channel.share()
            try:
                rest = rest[_bare_send(self, rest, flags) :]
            except BlockingIOError:
                if channel.limit == 0 or flags & _DONT_WAIT:
                    raise
                deadline = channel.wait_output(deadline)

    def _serving_receive_all(self, size: int, flags: int) -> bytes:
        received = b""
        while len(received) < size:
            data = self.recv(size - len(received), flags & ~_WAITALL)
            received += data
            if not data or flags & socket.MSG_PEEK:
                break
        return received


class CooperativeSocket(CooperativeMethods):
    """A ``socket.socket`` for handlers that run in greenlets: where it would block, other handlers go on.

    ``settimeout()`` and its kin mean what they always mean. Outside of such a greenlet it blocks like any other socket.
    Its descriptor does not block (O_NONBLOCK): a read or write of the bare ``fileno()`` fails instead (EAGAIN).
    ``detach()`` gives it back as the time-out says. Two greenlets cannot wait for input of one socket at once, nor
    send: that is a RuntimeError; one can read while another sends.
    """

    # A slot: a dict would take more memory for each connection, and CPython 3.11 reads slower from it.
    __slots__ = ("_serving_channel",)

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:  # noqa: A002
        super().__init__(family, type, proto, fileno)
        self._serving_begin(socket.socket.gettimeout(self))


def _seconds(value: Any) -> float:
    """Return a time-out as ``socket.settimeout()`` takes it; raise what that raises."""
    # Not float(), which takes text as well.
    seconds = float(value if isinstance(value, float) else operator.index(value))
    if math.isnan(seconds):
        raise ValueError("Invalid value NaN (not a number)")
    if abs(seconds) > LONGEST_TIMEOUT:
        raise OverflowError("timestamp too large to convert to C PyTime_t")
    if seconds < 0:
        raise ValueError("Timeout value out of range")
    return seconds
