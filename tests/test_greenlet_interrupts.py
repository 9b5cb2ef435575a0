"""Ctrl-C while a greenlet is given something to do, or rests: none is waited for that never runs."""

from __future__ import annotations

import socket

import pytest
from injection.interrupts import Interrupt

import sockserve
from sockserve.concurrency.cooperative.hub import Hub
from sockserve.core.aftercare import let_linger
from sockserve.core.loop import Loop
from sockserve.core.serving import serving_of


@pytest.mark.parametrize("rests", [False, True], ids=["a new one", "one that rests"])
def test_no_worker_is_left_wherever_ctrl_c_comes(rests: bool) -> None:
    """It runs what it was given, or is forgotten; the next one runs."""
    for number in range(1, 1000):
        interrupt, calls = Interrupt(number), list[int]()
        hub = Hub()
        with Loop() as loop:
            hub.give_turns_from_here()
            hub.move_to(loop)
            hub.lets_rest = rests
            hub.begin(lambda: None)
            try:
                with interrupt.active():
                    hub.begin(calls.append, 1)
            except KeyboardInterrupt:
                pass
            assert not hub.others(), interrupt.place
            assert len(calls) <= 1, interrupt.place
            hub.begin(calls.append, 2)
            assert calls[-1:] == [2], interrupt.place
            assert not hub.others(), interrupt.place
            hub.dismiss()
        if not interrupt.place:
            assert number > 5
            return
    pytest.fail("no end of places")


def test_no_descriptor_of_a_connection_that_lingers_is_lost_wherever_ctrl_c_comes() -> None:
    """What was duplicated is kept, and closed in the end."""
    for number in range(1, 1000):
        interrupt = Interrupt(number)
        ours, theirs = socket.socketpair()
        with ours, theirs, sockserve.TCPServer(("127.0.0.1", 0), sockserve.BaseRequestHandler) as server:
            try:
                with interrupt.active():
                    let_linger(server, ours)
            except KeyboardInterrupt:
                pass
            serving_of(server).lingering.abandon()
        if not interrupt.place:
            assert number > 5
            return
    pytest.fail("no end of places")
