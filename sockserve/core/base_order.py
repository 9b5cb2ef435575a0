"""The order of base classes decides whether a mix-in has any effect; a wrong one is refused."""

from __future__ import annotations

__all__ = ["refuse_other_way", "refuse_wrong_order"]

# What only a BaseServer defines by itself, the standard library's included: a mix-in may have one of them, not both.
_SERVER = {"_handle_request_noblock", "serve_forever"}


def refuse_wrong_order(cls: type) -> None:
    """Raise TypeError if a mix-in stands behind the server class whose hook it is there to replace.

    ``class S(TCPServer, ThreadingMixIn)`` would silently serve one client at a time.
    """
    behind_server: type | None = None
    for base in cls.__mro__[1:]:
        if behind_server is None:
            if vars(base).keys() >= _SERVER:
                behind_server = base
        elif not issubclass(behind_server, base) and vars(base).keys() & {"process_request", "serve_forever"}:
            servers = [each for each in cls.__bases__ if issubclass(each, behind_server)]
            mix_ins = [each for each in cls.__bases__ if each not in servers]
            culprit = next((each for each in mix_ins if issubclass(each, base)), base)
            order = ", ".join(each.__name__ for each in (*mix_ins, *servers))
            raise TypeError(
                f"{cls.__name__}: {culprit.__name__} has no effect behind a server class; "
                f"write class {cls.__name__}({order})"
            )


def refuse_other_way(cls: type, names: set[str], reason: str) -> None:
    """Raise TypeError if a class of one of these names is among the bases: another way to run handlers.

    By name, because the standard library's are meant too, and some may not be there. ``reason`` is formatted with the
    culprit's name as ``other``.
    """
    other = next((base.__name__ for base in cls.__mro__ if base.__name__ in names), None)
    if other is not None:
        raise TypeError(f"{cls.__name__}: {reason.format(other=other)}; take one of the two")
