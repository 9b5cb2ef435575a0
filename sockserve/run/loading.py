"""A handler class by its name, ``package.module:Class``, and once more when its source has changed."""

from __future__ import annotations

import importlib
import pathlib
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from typing import Any, cast

from sockserve.run.opening import roots_of

__all__ = ["forget_modules", "installed_places", "load_handler"]


def load_handler(word: str) -> type:
    """Import ``package.module:Class``. Raises ValueError, which says what is there instead."""
    module_name, _, path = word.partition(":")
    # The installed command has its own directory there, where `python -m` has the current one. -P, -I and
    # PYTHONSAFEPATH say that the current directory is no place to import from.
    sys.path[:0] = [""] if "" not in sys.path and not sys.flags.safe_path else []
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"there is no module {error.name!r} here or on Python's path") from None
        raise ValueError(f"{module_name} cannot be imported: {type(error).__name__}: {error}{_where(error)}") from None
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    if not _is_handler(found):
        known = ", ".join(_handlers_in(module, module_name, "")) or "none"
        raise ValueError(f"{word} is not a request handler class; in {module_name} there are: {known}")
    return cast("type", found)


def forget_modules() -> None:
    """Let the next import of the program's own modules read them anew.

    Those of Python and of installed packages stay: they change with an installation, and extension modules cannot be
    loaded twice. So do the program's main module, and sockserve.
    """
    installed = installed_places()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name == "__main__" or name.partition(".")[0] == "sockserve" or not isinstance(file, str):
            continue
        path = pathlib.Path(file).absolute()
        if not any(path.is_relative_to(place) for place in installed):
            del sys.modules[name]
    importlib.invalidate_caches()


def installed_places() -> list[pathlib.Path]:
    """The directories of Python and of installed packages."""
    return [pathlib.Path(path) for path in {*sysconfig.get_paths().values(), site.getusersitepackages()}]


def _where(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames[1:] else ""


def _is_handler(found: object) -> bool:
    roots = roots_of(found)
    return "BaseRequestHandler" in roots and getattr(found, "__name__", None) not in roots


def _handlers_in(space: object, module_name: str, prefix: str) -> Iterator[str]:
    """The names, dotted where they are nested, of the handler classes in a module or a class of it."""
    for name, value in vars(space).items():
        if _is_handler(value):
            yield f"{prefix}{name}"
        if isinstance(value, type) and (value.__module__, value.__qualname__) == (module_name, f"{prefix}{name}"):
            yield from _handlers_in(value, module_name, f"{prefix}{name}.")
