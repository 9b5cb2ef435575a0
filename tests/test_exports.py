"""The package exports what ``__all__`` says and all that ``socketserver`` does, and tracebacks name the package."""

from __future__ import annotations

import os
import socket
import socketserver
import subprocess
import sys
import types

import pytest

import sockserve

EXPORTED = {name: getattr(sockserve, name) for name in sockserve.__all__}
IN_STDLIB = set(socketserver.__all__)
if hasattr(os, "fork") and hasattr(socket, "AF_UNIX"):
    # CPython has them since 3.12.
    IN_STDLIB |= {"ForkingUnixDatagramServer", "ForkingUnixStreamServer"}


def test_all_names_what_the_package_holds() -> None:
    """``__all__`` has every public name of the package once, and no other; submodules are not among them."""
    held = {
        name
        for name in dir(sockserve)
        if not name.startswith("_")
        and not isinstance(getattr(sockserve, name), types.ModuleType)
        and name not in {"annotations", *vars(socketserver)} - set(socketserver.__all__) - IN_STDLIB
        and not name.startswith("Greenlet")
    }
    assert sorted(sockserve.__all__) == sorted(held)


@pytest.mark.parametrize(
    "name", sorted(name for name, value in EXPORTED.items() if isinstance(value, type | types.FunctionType))
)
def test_tracebacks_name_the_package(name: str) -> None:
    """A public class or function is ``sockserve.X``, whatever file it is written in."""
    assert EXPORTED[name].__module__ == "sockserve"
    assert EXPORTED[name].__qualname__ == name


def test_nothing_of_socketserver_is_missing() -> None:
    """Whatever ``socketserver`` exports on this platform is exported here."""
    assert not IN_STDLIB - set(sockserve.__all__)


@pytest.mark.parametrize(("module", "name", "word"), [("os", "fork", "Forking"), ("socket", "AF_UNIX", "Unix")])
def test_a_system_that_lacks_something_lacks_its_names_only(module: str, name: str, word: str) -> None:
    """Without fork or Unix sockets the package imports, exports nothing that needs them, and all the rest."""
    program = f"""
import {module}
vars({module}).pop("{name}", None)
import socketserver, sockserve
assert not {{name for name in [*dir(sockserve), *sockserve.__all__] if "{word}" in name}}
assert not [name for name in sockserve._MODULE_OF if "{word}" in name and hasattr(sockserve, name)]
assert all(hasattr(sockserve, name) for name in sockserve.__all__)
assert set(socketserver.__all__) <= set(sockserve.__all__)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


@pytest.mark.parametrize("name", ["_NoThreads", "_ServerSelector", "_SocketWriter", "_Threads", "BufferedIOBase"])
def test_private_names_of_the_module_that_programs_use(name: str) -> None:
    """Names that are private in ``socketserver`` and used all the same exist here."""
    assert isinstance(getattr(sockserve, name), type)


def test_private_names_of_servers_that_programs_use() -> None:
    """Servers and mix-ins have what programs reach for behind the underscore or beside the documentation."""
    server = sockserve.BaseServer(("127.0.0.1", 0), sockserve.BaseRequestHandler)
    assert callable(server._handle_request_noblock)
    assert server._BaseServer__shutdown_request is False
    assert vars(server)["_BaseServer__shutdown_request"] is False
    server._BaseServer__shutdown_request = True
    assert vars(server)["_BaseServer__shutdown_request"] is True
    assert callable(server._BaseServer__is_shut_down.wait)
    assert hasattr(sockserve.ThreadingMixIn, "_threads")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_names_of_forking_servers_that_programs_use() -> None:
    """A forking server that serves nobody has the documented attributes at their documented values."""
    with sockserve.ForkingTCPServer(("127.0.0.1", 0), sockserve.BaseRequestHandler) as server:
        assert server.active_children is None
        assert server.max_children == 40
        assert callable(server.collect_children)
