"""The guard against leaks names what was left behind, and nothing else."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.handlers import Boom, Signal
from support.under_test import LIMIT

from sockserve.testing import LeakError, connect, leak_guard, leaks


@contextlib.contextmanager
def left_thread() -> Iterator[str]:
    """A thread that does not end by itself."""
    let_go = threading.Event()
    thread = threading.Thread(target=let_go.wait, name="left over")
    thread.start()
    yield r"thread 'left over' File .*threading\.py"
    let_go.set()
    thread.join()


@contextlib.contextmanager
def left_file() -> Iterator[str]:
    """A file that is not closed."""
    with pathlib.Path(__file__).open("rb") as file:
        yield f"descriptor {file.fileno()}, .*test_testing_leaks.py"


@contextlib.contextmanager
def left_connection() -> Iterator[str]:
    """A connection that is not closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener, connect(listener.getsockname()) as client:
        port = listener.getsockname()[1]
        yield rf"descriptor {client.fileno()}, .*, connected to \('127.0.0.1', {port}\)"


@contextlib.contextmanager
def left_child() -> Iterator[str]:
    """A child process that runs, and one that is a zombie."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield f"child process {child.pid}"


@contextlib.contextmanager
def left_zombie() -> Iterator[str]:
    """A child process that has ended and was not waited for."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        yield f"child process {child.pid}"


LEFT = [left_thread, left_file, left_connection, left_child, left_zombie]


@pytest.mark.parametrize("left", LEFT)
def test_a_leak_has_a_name(left: Any) -> None:
    """Each kind of leak raises an error that says what it is."""
    with contextlib.ExitStack() as until_checked, pytest.raises(LeakError) as caught, leak_guard(timeout=0):
        what = until_checked.enter_context(left())
    assert caught.match(what)


@pytest.mark.parametrize("left", LEFT)
def test_what_is_gone_at_the_end_is_no_leak(left: Any) -> None:
    """Each of them passes when the body has cleaned up."""
    with leak_guard(timeout=LIMIT), left():
        pass


def test_what_is_on_its_way_out_is_waited_for() -> None:
    """A thread that ends a little later is no leak."""
    looked = threading.Event()
    take_inventory = leaks.take_inventory
    with pytest.MonkeyPatch.context() as patch, leak_guard(timeout=LIMIT):
        threading.Thread(target=looked.wait, args=(LIMIT,)).start()

        def look() -> Any:
            found = take_inventory()
            looked.set()
            return found

        patch.setattr(leaks, "take_inventory", look)
    assert looked.is_set()


def test_garbage_is_no_leak() -> None:
    """A descriptor in a reference cycle is collected instead of reported."""

    class Holder:
        def __init__(self) -> None:
            self.me = self
            self.signal = Signal()

    with leak_guard(timeout=0):
        Holder()


def test_a_number_used_again_is_a_leak() -> None:
    """A descriptor that took the number of one that was there before is told from it."""
    reader, writer = os.pipe()
    with pytest.raises(LeakError, match=f"descriptor {reader}, /dev/null"), leak_guard(timeout=0):  # noqa: PT012
        os.close(reader)
        null = os.open(os.devnull, os.O_RDONLY)
        assert null == reader
    os.close(null)
    os.close(writer)


def test_an_error_of_the_body_is_not_masked_by_a_leak() -> None:
    """The guard lets the body's exception out as it is."""
    with contextlib.ExitStack() as until_checked, pytest.raises(Boom), leak_guard(timeout=0):  # noqa: PT012
        until_checked.enter_context(left_file())
        raise Boom


def test_without_a_list_of_descriptors_each_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system does not list descriptors, an open one is found all the same."""
    monkeypatch.setattr(leaks, "DESCRIPTOR_DIRECTORIES", (pathlib.Path("/nowhere"),))
    before = leaks.take_inventory().descriptors
    with pathlib.Path(__file__).open("rb") as file:
        number = file.fileno()
        inode = os.fstat(number).st_ino
        now = leaks.take_inventory().descriptors
    assert set(now) - set(before) == {number}
    assert f"inode {inode} " in now[number]


def test_without_a_list_of_children_ps_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system does not list child processes, ps(1) does; it is not taken for one itself."""
    monkeypatch.setattr(leaks, "TASK_DIRECTORY", pathlib.Path("/nowhere"))
    before = leaks.child_processes()
    with left_child() as child:
        assert [f"child process {pid}" for pid in leaks.child_processes() - before] == [child]
