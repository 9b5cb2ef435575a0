"""Puts sockserve in the place of the standard library's ``socketserver``, for programs that cannot be changed.

In a program, before anything subclasses ``socketserver``'s classes::

    import sockserve.dropin

    sockserve.dropin.install()

Around a program: ``python -m sockserve.dropin -m http.server 8000``; ``--help`` tells the rest.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, NoReturn

import sockserve
from sockserve import errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

__all__ = ["install", "is_installed"]

# Python 3.11 lacks them.
_NEWER_PUBLIC_NAMES = ("ForkingUnixStreamServer", "ForkingUnixDatagramServer")
# Programs use them in spite of their names.
_PRIVATE_NAMES = ("_ServerSelector", "_SocketWriter")

_STARTUP_DIRECTORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "dropin_startup")


def install() -> None:
    """From here on, every module that uses ``socketserver.TCPServer``, or any other public name, gets sockserve's.

    The attributes of the module are replaced, not the module: code that imported it earlier sees the new ones, and what
    a test patches through it (``socketserver.threading.Thread``) is still what runs. A second call does nothing.

    Raises DropInError if a module already holds or subclasses one of the old classes (``http.server`` and
    ``logging.config`` do, for example), or if ``socketserver`` has a public name that sockserve lacks. Nothing is
    replaced then. Call it while no other thread imports modules.
    """
    module = _stdlib_module()
    replacements = _replacements(module)
    if missing := sorted(set(module.__all__) - replacements.keys()):
        message = f"cannot replace socketserver: sockserve has no {', '.join(missing)}"
        raise errors.DropInError(message)
    if users := _users(module):
        message = (
            f"cannot replace socketserver: its classes are already used by {', '.join(users)}. Call"
            " sockserve.dropin.install() before they are imported, or run the program by python -m sockserve.dropin"
        )
        raise errors.DropInError(message)
    public_names = [*module.__all__, *(name for name in _NEWER_PUBLIC_NAMES if name in replacements)]
    vars(module).update(replacements, __all__=list(dict.fromkeys(public_names)))


def is_installed() -> bool:
    """Whether ``socketserver``'s names are sockserve's at this moment, by ``install()`` or in another way."""
    namespace = vars(_stdlib_module())
    return all(namespace.get(name) is replacement for name, replacement in _replacements(_stdlib_module()).items())


def _stdlib_module() -> ModuleType:
    # Looked up each time: a program may have replaced the module in sys.modules.
    return importlib.import_module("socketserver")


def _replacements(module: ModuleType) -> dict[str, object]:
    names = (*module.__all__, *_NEWER_PUBLIC_NAMES, *_PRIVATE_NAMES)
    return {name: getattr(sockserve, name) for name in names if hasattr(sockserve, name)}


def _users(module: ModuleType) -> list[str]:
    """Return the names of the modules that keep an old class, which a replacement would not reach."""
    old_classes = [value for value in vars(module).values() if isinstance(value, type) and _is_from(module, value)]
    users = {cls.__module__ for old in old_classes for cls in _subclasses(old) if not _is_from(module, cls)}
    identities = {id(cls) for cls in old_classes}
    for name, other in list(sys.modules.items()):
        try:
            # Not vars(other): of a lazy module (importlib.util.LazyLoader) that would run the import.
            namespace = object.__getattribute__(other, "__dict__")
        except AttributeError:
            continue
        if other is not module and any(id(value) in identities for value in list(namespace.values())):
            users.add(name)
    return sorted(users)


def _is_from(module: ModuleType, cls: type) -> bool:
    return cls.__module__ == module.__name__


def _subclasses(cls: type[object]) -> Iterator[type[object]]:
    subclasses: list[type[object]] = cls.__subclasses__()
    for subclass in subclasses:
        yield subclass
        yield from _subclasses(subclass)


# the command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sockserve.dropin",
        usage="%(prog)s [-h] [--children] (-m MODULE | -c CODE | SCRIPT) [ARGUMENT ...]",
        description="Run a Python program with sockserve in the place of socketserver.",
        epilog=textwrap.dedent("""\
            What follows the options is handed to Python unchanged.

            examples:
              python -m sockserve.dropin -m http.server 8000
              python -m sockserve.dropin manage.py runserver --noreload
              python -m sockserve.dropin --children manage.py runserver
              python -X dev -m sockserve.dropin -m xmlrpc.server
            """),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--children",
        action="store_true",
        help="also in every Python that the program starts, unless with -E, -I, -S or another PYTHONPATH",
    )
    return parser


def _main() -> NoReturn:
    """Replace this process by a Python that installs the drop-in while it starts, then runs the program.

    A new interpreter: ``sys.argv``, ``sys.path``, ``__main__`` and all else that a program sees are as without us.
    """
    parser = _parser()
    own = list(itertools.takewhile(lambda argument: argument.startswith("--") or argument == "-h", sys.argv[1:]))
    program = sys.argv[1 + len(own) :]
    options = parser.parse_args(own)
    if not program:
        parser.error("name a program to run")
    if program[0].startswith("-") and program[0] != "-" and program[0][:2] not in ("-c", "-m"):
        parser.error(f"unrecognized option: {program[0]}")
    if sys.flags.ignore_environment or sys.flags.no_site:
        parser.error("does not work under python -E, -I or -S: sitecustomize, found by PYTHONPATH, does the work")

    # The options for Python itself, such as -X dev: all that precedes our own -m, -um, -msockserve.dropin...
    interpreter_options = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])]
    if not interpreter_options[-1].startswith("-"):
        interpreter_options.pop()
    if flags := interpreter_options.pop().partition("m")[0].strip("-"):
        interpreter_options.append(f"-{flags}")
    command = [sys.executable, *interpreter_options, *program]
    search_path = filter(None, [_STARTUP_DIRECTORY, os.environ.get("PYTHONPATH")])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(search_path),
        "SOCKSERVE_DROPIN": "children" if options.children else "program",
    }
    if "runserver" in program and "--noreload" not in program and not options.children:
        # Django: this process only watches files, and serves in a child.
        sys.stderr.write(
            "sockserve.dropin: the child that reloads runs without the drop-in; with --children it has it\n"
        )
    if os.name == "nt":  # There, exec returns to the shell while the program still runs.
        sys.exit(subprocess.call(command, env=environment))
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    _main()
