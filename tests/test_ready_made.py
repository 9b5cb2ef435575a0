"""The ready-made servers are what their names say, and each can be found by a model and a scheme."""

from __future__ import annotations

import itertools
import re

import pytest

import sockserve
from sockserve.ready_made import MODELS, server_class

MIX_INS = {
    "": None,
    "Threading": sockserve.ThreadingMixIn,
    "Forking": sockserve.ForkingMixIn,
    "ThreadPool": sockserve.ThreadPoolMixIn,
    "Greenlet": sockserve.GreenletMixIn,
}
KINDS = ["TCPServer", "UDPServer", "UnixStreamServer", "UnixDatagramServer"]
PREFIXES = {"inline": "", "thread": "Threading", "fork": "Forking", "pool": "ThreadPool", "greenlet": "Greenlet"}
NAMES = {"tcp": "TCPServer", "udp": "UDPServer", "unix": "UnixStreamServer", "unix-dgram": "UnixDatagramServer"}


@pytest.mark.parametrize(("prefix", "kind"), list(itertools.product([*MIX_INS][1:], KINDS)))
def test_each_is_its_mix_in_before_its_server(prefix: str, kind: str) -> None:
    """``ThreadingTCPServer`` is a ThreadingMixIn and a TCPServer, in this order, with nothing of its own."""
    made = getattr(sockserve, prefix + kind)
    assert made.__bases__ == (MIX_INS[prefix], getattr(sockserve, kind))
    assert [name for name in vars(made) if not name.startswith("__")] == []


@pytest.mark.parametrize(("model", "scheme"), list(itertools.product(PREFIXES, NAMES)))
def test_a_model_and_a_scheme_name_a_class(model: str, scheme: str) -> None:
    """What the command line and serve() look up is the public class of that name."""
    assert server_class(model, scheme) is getattr(sockserve, PREFIXES[model] + NAMES[scheme])


def test_the_models_are_those_of_this_platform() -> None:
    """On a system with fork there are five, the simplest first."""
    assert MODELS == ("inline", "thread", "pool", "fork", "greenlet")


@pytest.mark.parametrize(("model", "scheme"), [("coroutine", "tcp"), ("thread", "fd"), ("greenlet", "fd"), ("", "")])
def test_an_unknown_combination_names_the_choice(model: str, scheme: str) -> None:
    """The error says what there is."""
    expected = f"no model {model!r} for {scheme}: addresses; there are inline, thread, pool, fork, greenlet"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        server_class(model, scheme)
