"""The table of a request's states, and that it is looked at in every test."""

from __future__ import annotations

import logging
import typing

import pytest
from support.log_watch import ExpectLog
from support.request_states import WatchedState

from sockserve.core.active_requests import ActiveRequests, LiveRequest
from sockserve.core.request_states import TRANSITIONS, RequestState

STATES = typing.get_args(RequestState)


def test_the_table_has_each_state_and_no_other() -> None:
    """As a state, and as what follows one."""
    assert set(TRANSITIONS) == set(STATES)
    assert {state for following in TRANSITIONS.values() for state in following} == set(STATES) - {"accept"}


@pytest.mark.parametrize("state", STATES)
def test_each_state_comes_to_an_end(state: RequestState) -> None:
    """From each there is a way to "shutdown", and the way there from the beginning."""

    def reached(begin: RequestState) -> set[str]:
        found, new = set[str](), {begin}
        while new:
            found |= new
            # The record of the next request is another life.
            new = {each for one in new if one != "shutdown" for each in TRANSITIONS[one]} - found  # type: ignore[index]
        return found

    assert "shutdown" in reached(state)
    assert state in reached("accept")


@pytest.mark.parametrize(
    ("states", "complaint"),
    [
        (["verify"], "accept -> verify by test_request_states"),
        (["error"], "accept -> error by test_request_states"),
        (["shutdown", "handle"], "shutdown -> handle by test_request_states"),
    ],
)
def test_a_change_that_is_not_in_the_table_fails_its_test(
    expect_log: ExpectLog, states: list[RequestState], complaint: str
) -> None:
    """The right room is asked for, too."""
    assert isinstance(vars(LiveRequest)["state"], WatchedState)
    complaints = expect_log(logging.ERROR, "request state")
    live = LiveRequest(ActiveRequests(), None, object(), "peer")
    for state in states:
        live.state = state
    assert complaints.lines[-1].text == f"request state: {complaint}"
    assert live.state == states[-1]
