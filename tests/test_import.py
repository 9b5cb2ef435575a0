"""What ``import sockserve`` costs, and that a name which is imported late is as good as one that is there."""

from __future__ import annotations

import ast
import os
import pathlib
import pickle
import pydoc
import subprocess
import sys

import pytest

import sockserve

PACKAGE = pathlib.Path(sockserve.__file__)


def in_a_new_python(program: str) -> str:
    """Run a program in a Python that has imported nothing, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parents[1])}
    run = subprocess.run(
        # -S: what a site or a measurement of coverage imports is not ours.
        [sys.executable, "-S", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return run.stdout


def added(program: str) -> set[str]:
    """The modules that a program imports beside socketserver."""
    before = "import socketserver, sys; before = set(sys.modules)\n"
    return set(in_a_new_python(f"{before}{program}\nprint(*set(sys.modules) - before)").split())


def test_the_import_is_small() -> None:
    """At most 35 modules more than ``socketserver``, none of them a server, a pool or the command line."""
    modules = added("import sockserve")
    assert len(modules) <= 35
    assert {name for name in modules if name.startswith("sockserve")} == {
        "sockserve",
        "sockserve.errors",
        "sockserve.log",
    }


@pytest.mark.parametrize("name", ["TCPServer", "ThreadingTCPServer", "StreamRequestHandler", "UnixStreamServer"])
def test_a_name_brings_what_it_needs_and_no_more(name: str) -> None:
    """A server in threads loads no pool, no fork, no worker process; nothing loads a tool for programmers."""
    modules = added(f"import sockserve; sockserve.{name}")
    costly = {"typing_extensions", "dataclasses", "inspect", "ssl", "pathlib", "concurrent.futures", "argparse", "http"}
    costly |= {"ipaddress", "sockserve.net.multicast", "sockserve.net.dropped", "sockserve.net.asked_address"}
    others = {f"sockserve.concurrency.{each}" for each in ("pool", "forks", "prefork", "coordinator", "greenlets")}
    assert not modules & {*costly, *others, "sockserve.run", "sockserve.client", "sockserve.testing"}


def test_type_checkers_see_what_the_program_gets() -> None:
    """Each name is imported for type checkers from the very module that it comes from when it is asked for."""
    tree = ast.parse(PACKAGE.read_text("utf-8"))
    (block,) = (each for each in tree.body if isinstance(each, ast.If) and ast.unparse(each.test) == "_TYPE_CHECKING")
    shown = {alias.name: each.module for each in block.body if isinstance(each, ast.ImportFrom) for alias in each.names}
    assert shown == sockserve._MODULE_OF


def test_import_star_brings_every_public_name() -> None:
    """``from sockserve import *`` in a new Python gives what ``__all__`` says, and needs no extra."""
    program = "from sockserve import *\nimport sys\nprint(*set(globals()), 'greenlet' in sys.modules)"
    found = in_a_new_python(program).split()
    assert found[-1] == "False"
    assert set(sockserve.__all__) <= set(found)


def test_dir_knows_names_before_they_are_loaded() -> None:
    """Completion in a terminal offers each public name at once."""
    assert set(sockserve.__all__) <= set(in_a_new_python("import sockserve; print(*dir(sockserve))").split())


def test_a_pickled_class_is_found_in_a_python_that_has_not_loaded_it() -> None:
    """Classes pickle by their public name, also those that were reached by way of another one."""
    for name in ("ThreadPoolTCPServer", "Drained", "Dispatcher", "serve", "BindError"):
        pickled = pickle.dumps(getattr(sockserve, name))
        assert in_a_new_python(f"import pickle; print(pickle.loads({pickled!r}).__name__)").split() == [name]
    program = "import sockserve; print(*(each.__module__ for each in sockserve.ThreadingTCPServer.__mro__[:3]))"
    assert in_a_new_python(program).split() == ["sockserve"] * 3


def test_help_shows_the_package() -> None:
    """``help(sockserve)`` lists classes that have not been asked for."""
    text = in_a_new_python("import pydoc, sockserve; print(pydoc.plain(pydoc.render_doc(sockserve)))")
    assert "class ThreadPoolTCPServer" in text
    assert "max_workers" in pydoc.plain(pydoc.render_doc(sockserve.ThreadPoolTCPServer))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """A misspelt name is refused by the module."""
    program = "import sockserve, sys\ntry: sockserve.TCPSever\nexcept AttributeError as error: print(error)"
    assert in_a_new_python(program).strip() == "module 'sockserve' has no attribute 'TCPSever'"


def test_fewer_type_arguments_than_parameters() -> None:
    """A class of a program may leave out arguments, or name the base once more; too many are refused."""

    class Server(sockserve.TCPServer["tuple[str, int]"]):
        pass

    assert Server.__mro__[1] is sockserve.TCPServer
    assert sockserve.BaseRequestHandler[Server].__origin__ is sockserve.BaseRequestHandler
    assert len(sockserve.BaseRequestHandler[Server].__args__) == 3
    with pytest.raises(TypeError):
        sockserve.BaseServer[int, int, int]
