"""The ready-made servers: each way to run a handler, on each kind of socket, a module for each way.

None of these modules is imported before one of its classes is asked for.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from sockserve.core.server import TCPServer

__all__ = ["MODELS", "server_class"]

_MODULES = {
    "inline": "sockserve.ready_made.inline",
    "thread": "sockserve.ready_made.threads",
    "pool": "sockserve.ready_made.pool",
    "fork": "sockserve.ready_made.forks",
    "greenlet": "sockserve.greenlets",
}
if not hasattr(os, "fork"):
    del _MODULES["fork"]

MODELS = tuple(_MODULES)
"""The ways to run a handler that this platform has."""


def server_class(model: str, scheme: str) -> type[TCPServer[Any, Any]]:
    """Return the ready-made class for a way to run a handler and an address's scheme.

    Raises ValueError, which names the choice; ImportError for a model whose extra is not installed.
    """
    try:
        module = importlib.import_module(_MODULES[model])
        classes = cast("dict[tuple[str, str], type[TCPServer[Any, Any]]]", vars(module)["CLASSES"])
        return classes[model, scheme]
    except KeyError:
        raise ValueError(f"no model {model!r} for {scheme}: addresses; there are {', '.join(MODELS)}") from None
