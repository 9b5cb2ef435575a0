"""A server in a process of its own, with nothing of its clients in it, that tells what it holds."""

from __future__ import annotations

import json
import sys
import types
from typing import Any, Self

from support.programs import START_LIMIT, Program
from support.remote_server import State

__all__ = ["RemoteServer"]


class RemoteServer:
    """Runs ``support.remote_server.serve(model, **options)`` for the length of a block."""

    address: tuple[str, int]

    def __init__(self, model: str, **options: Any) -> None:
        self._program = Program(f"from support import remote_server; remote_server.serve({model!r}, **{options!r})")

    def __enter__(self) -> Self:
        self._program.__enter__()
        try:
            self.address = ("127.0.0.1", int(self._program.line()))
        except BaseException:
            self._program.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: types.TracebackType | None
    ) -> None:
        self._program.__exit__(kind, error, where)

    def state(self) -> State:
        """Ask what it holds now."""
        return State(*json.loads(self._program.ask("state")))

    def stop(self, limit: float = START_LIMIT) -> State:
        """Drain it, shut it down and close it; tell what it holds then. It has left nothing behind."""
        last = State(*json.loads(self._program.ask("stop", limit)))
        assert self._program.status(limit) == 0
        return last

    def errors(self) -> str:
        """What it logged, from WARNING on."""
        return self._program.errors()
