"""Type variables with a default, which ``typing`` has since Python 3.13, without a package from elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import TypeVar
elif sys.version_info >= (3, 13):
    from typing import TypeVar
else:
    import typing

    def TypeVar(name: str, *, default: object, **options: object) -> typing.TypeVar:  # noqa: N802 - what it stands in for
        """Make one that knows its default, as the class of the same name of later Pythons does."""
        variable = typing.TypeVar(name, **options)
        variable.__default__ = default
        variable.__module__ = sys._getframe(1).f_globals["__name__"]  # noqa: SLF001 - as typing itself does
        return variable


__all__ = ["TypeVar", "filled_up"]


def filled_up(cls: Any, arguments: Any) -> tuple[Any, ...]:
    """The arguments of ``cls[...]``, and the defaults of the parameters that they leave out."""
    given: tuple[Any, ...] = arguments if isinstance(arguments, tuple) else (arguments,)  # pyright: ignore[reportUnknownVariableType]
    missing = cls.__parameters__[len(given) :]
    # One without a default is typing's to complain about.
    return given + tuple(each.__default__ for each in missing if hasattr(each, "__default__"))
