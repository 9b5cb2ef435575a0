"""The ways to run a handler, in one place: tests of all of them find a new one here."""

from __future__ import annotations

import os
from typing import Any

from support.under_test import IS_STDLIB, S

__all__ = ["BESIDE_THE_LOOP", "HERE", "MIX_INS", "MODELS", "SERVERS", "counted_server", "mix_ins"]

MIX_INS = {"inline": "", "thread": "ThreadingMixIn", "fork": "ForkingMixIn"}
"""What the mix-in of each is called; inline needs none."""

if not IS_STDLIB:
    MIX_INS |= {"pool": "ThreadPoolMixIn", "greenlet": "GreenletMixIn"}
if not hasattr(os, "fork"):
    del MIX_INS["fork"]

MODELS = [*MIX_INS]

HERE = [model for model in MODELS if model != "fork"]
"""Those whose handlers run in the process of the server."""

BESIDE_THE_LOOP = [model for model in MODELS if model != "inline"]
"""Those whose handlers do not keep the loop from running."""

SERVERS: dict[str, Any] = {
    model: getattr(S, f"{mix_in.removesuffix('MixIn')}TCPServer") for model, mix_in in MIX_INS.items()
}
"""The ready-made server of each, for TCP."""


def counted_server(model: str, handler: Any, **attributes: Any) -> Any:
    """A ready-made server on loopback with these attributes, and ``counters`` of what becomes of its requests."""
    server = SERVERS[model](("127.0.0.1", 0), handler)
    vars(server).update(attributes)
    server.counters = S.Counters()
    server.add_observer(server.counters)
    return server


def mix_ins(model: str) -> tuple[type, ...]:
    """The classes to write before a server's: none for inline."""
    return (getattr(S, MIX_INS[model]),) if MIX_INS[model] else ()
