"""The drop-in: other programs get sockserve for socketserver, or are told why not, and cannot tell it otherwise."""

from __future__ import annotations

import json

import pytest
from support.pythons import succeed

import sockserve


def test_every_name_is_replaced_and_none_is_lost() -> None:
    """All public names and the private ones that programs use are sockserve's; __all__ says so; the rest stays."""
    print_names = "import json; print(json.dumps([socketserver.__all__, list(vars(socketserver))]))"
    before = json.loads(succeed(f"import socketserver; {print_names}"))
    code = f"""
import socketserver
import sockserve.dropin
sockserve.dropin.install()
{print_names}
for name in {{*socketserver.__all__, "_SocketWriter", "_ServerSelector"}}:
    assert getattr(socketserver, name) is getattr(sockserve, name), name
"""
    public, names = json.loads(succeed(code))
    forking_unix = ["ForkingUnixStreamServer", "ForkingUnixDatagramServer"]
    assert public[: len(before[0])] == before[0]
    assert set(public) == {*before[0], *(name for name in forking_unix if hasattr(sockserve, name))}
    assert set(names) == {*before[1], *public}


def test_a_module_that_imported_socketserver_earlier_has_the_new_classes() -> None:
    """The module object stays the same one."""
    succeed("""
import socketserver as early
import sockserve.dropin
sockserve.dropin.install()
import socketserver, http.server
assert socketserver is early
assert issubclass(http.server.HTTPServer, sockserve.TCPServer)
""")


def test_install_twice_is_install_once() -> None:
    """The second call does nothing, be the classes used by then or not; is_installed() tells."""
    succeed("""
import socketserver
from sockserve import dropin
assert not dropin.is_installed()
dropin.install()
assert dropin.is_installed()
import http.server
names = dict(vars(socketserver))
dropin.install()
assert dict(vars(socketserver)) == names
""")


def test_a_module_that_was_reloaded_can_be_replaced_again() -> None:
    """What counts is what socketserver has now."""
    succeed("""
import importlib, socketserver
from sockserve import dropin
dropin.install()
importlib.reload(socketserver)
assert not dropin.is_installed()
dropin.install()
assert dropin.is_installed()
""")


@pytest.mark.parametrize(
    ("use", "users"),
    [
        ("import logging.config, http.server, xmlrpc.server", "http.server, logging.config, xmlrpc.server"),
        ("from socketserver import ThreadingMixIn as Mixin", "__main__"),
        ("import socketserver\nclass Handler(socketserver.StreamRequestHandler): pass", "__main__"),
        ("import http.server\nclass S(http.server.HTTPServer): __module__ = 'mine'", "http.server, mine"),
    ],
    ids=["modules", "from-import", "subclass", "subclass of a subclass"],
)
def test_classes_in_use_are_not_replaced(use: str, users: str) -> None:
    """The error names the modules, sorted, and what to do; socketserver is as it was."""
    message = succeed(f"""{use}
import sys, sockserve.dropin
before = dict(vars(sys.modules["socketserver"]))
try:
    sockserve.dropin.install()
except sockserve.DropInError as error:
    print(error)
assert dict(vars(sys.modules["socketserver"])) == before
assert not sockserve.dropin.is_installed()
""")
    assert f"are already used by {users}. Call sockserve.dropin.install() before" in message


def test_a_name_that_sockserve_lacks_is_an_error() -> None:
    """A socketserver with a class that nobody here knows is left alone."""
    message = succeed("""
import socketserver, sockserve.dropin
socketserver.__all__.append("TelepathicServer")
before = dict(vars(socketserver))
try:
    sockserve.dropin.install()
except sockserve.DropInError as error:
    print(error)
assert dict(vars(socketserver)) == before
""")
    assert "sockserve has no TelepathicServer" in message


def test_looking_for_users_loads_nothing() -> None:
    """A module that is to be loaded on first use is not loaded by install()."""
    succeed("""
import importlib.util, sys
import sockserve.dropin
spec = importlib.util.find_spec("colorsys")
spec.loader = importlib.util.LazyLoader(spec.loader)
lazy = sys.modules["colorsys"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lazy)
sys.modules["not.a.module"] = 1
sockserve.dropin.install()
assert "rgb_to_hsv" not in object.__getattribute__(lazy, "__dict__")
""")


def test_what_is_patched_through_socketserver_is_what_runs() -> None:
    """mock.patch("socketserver.threading.Thread"), as test suites write it, replaces the thread of a request."""
    succeed("""
import sockserve.dropin
sockserve.dropin.install()
import socket, socketserver, threading
from unittest import mock

class Observed(threading.Thread):
    started = 0
    def start(self):
        Observed.started += 1
        super().start()

with (
    mock.patch("socketserver.threading.Thread", Observed),
    socketserver.ThreadingTCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server,
    socket.create_connection(server.server_address),
):
    server.handle_request()
assert Observed.started == 1
""")


def test_sockserve_does_not_import_what_it_replaces() -> None:
    """Neither socketserver nor anything that subclasses its classes comes along: install() would refuse."""
    added = succeed("""
import sys
before = set(sys.modules)
import sockserve, sockserve.dropin
print(*(set(sys.modules) - before))
""").split()
    assert "sockserve.dropin" in added
    assert not {"socketserver", "http.server", "xmlrpc.server", "logging.config", "wsgiref.simple_server"} & set(added)
