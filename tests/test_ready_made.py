"""The ready-made servers are what their names say, and each can be found by a model and a scheme."""

from __future__ import annotations

import itertools
import re

import pytest
from support.models import BESIDE_THE_LOOP, MIX_INS, mix_ins

import sockserve
from sockserve.ready_made import MODELS, server_class

KINDS = ["TCPServer", "UDPServer", "UnixStreamServer", "UnixDatagramServer", "UnixSeqpacketServer"]
PREFIXES = {model: mix_in.removesuffix("MixIn") for model, mix_in in MIX_INS.items()}
NAMES = {
    "tcp": "TCPServer",
    "udp": "UDPServer",
    "unix": "UnixStreamServer",
    "unix-dgram": "UnixDatagramServer",
    "unix-seqpacket": "UnixSeqpacketServer",
}


@pytest.mark.parametrize(("model", "kind"), list(itertools.product(BESIDE_THE_LOOP, KINDS)))
def test_each_is_its_mix_in_before_its_server(model: str, kind: str) -> None:
    """``ThreadingTCPServer`` is a ThreadingMixIn and a TCPServer, in this order, with nothing of its own."""
    made = getattr(sockserve, PREFIXES[model] + kind)
    assert made.__bases__ == (*mix_ins(model), getattr(sockserve, kind))
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
