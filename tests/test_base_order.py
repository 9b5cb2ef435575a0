"""A mix-in that would have no effect where it stands is refused, and nothing else is."""

from __future__ import annotations

import http.server
import socketserver
import types
import xmlrpc.server
from typing import Any

import pytest

import sockserve


def make(*bases: type) -> type:
    """Make a class."""
    return types.new_class("Server", bases)


class AlsoServes:
    """A mix-in that has its own idea of how a server waits."""

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Wait in another way."""


class AlsoProcesses:
    """A mix-in that has its own idea of who serves a request."""

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve it in another way."""


class TakesOne:
    """A mix-in that counts what is taken."""

    def _handle_request_noblock(self) -> Any:
        return super()._handle_request_noblock()  # type: ignore[misc]


class Unrelated:
    """A base that has nothing to do with serving."""


MIX_INS = [sockserve.ThreadingMixIn, sockserve.ForkingMixIn, AlsoServes, AlsoProcesses]


@pytest.mark.parametrize("server", [sockserve.TCPServer, sockserve.UnixDatagramServer], ids=lambda each: each.__name__)
@pytest.mark.parametrize("mix_in", [*MIX_INS, socketserver.ThreadingMixIn], ids=lambda each: each.__name__)
def test_a_mix_in_behind_a_server_is_refused(mix_in: type, server: type) -> None:
    """The message names the mix-in and shows the line that works, which does."""
    with pytest.raises(TypeError) as caught:
        make(Unrelated, server, mix_in)
    assert f"Server: {mix_in.__name__} has no effect behind a server class" in str(caught.value)
    assert f"write class Server(Unrelated, {mix_in.__name__}, {server.__name__})" in str(caught.value)
    make(Unrelated, mix_in, server)


@pytest.mark.parametrize("mix_in", [sockserve.ThreadingMixIn, sockserve.ForkingMixIn], ids=lambda each: each.__name__)
@pytest.mark.parametrize(
    "server",
    [socketserver.TCPServer, http.server.HTTPServer, xmlrpc.server.SimpleXMLRPCServer],
    ids=lambda s: s.__name__,
)
def test_our_mix_ins_are_refused_behind_the_stdlibs_servers(mix_in: type, server: type) -> None:
    """Our mix-in notices where it stands, whoever made the server class."""
    with pytest.raises(TypeError, match=rf"write class Server\({mix_in.__name__}, {server.__name__}\)"):
        make(server, mix_in)
    make(mix_in, server)


def test_a_deeper_class_is_looked_through() -> None:
    """The mistake is found in a subclass of a subclass, and the order that works may be made at any depth."""

    class Base(sockserve.TCPServer):
        pass

    class Mixed(sockserve.ThreadingMixIn):
        pass

    with pytest.raises(TypeError, match=r"write class Server\(Mixed, Base\)"):
        make(Base, Mixed)
    make(make(Mixed, Base), Unrelated)
    make(sockserve.ThreadingTCPServer, Unrelated)
    # Behind a class that has the mix-in already it does no harm.
    make(sockserve.ThreadingTCPServer, sockserve.ThreadingMixIn)


def test_a_server_may_override_the_hooks_itself() -> None:
    """A server class that processes or waits in its own way needs no mix-in, nor do those that derive from it."""

    class Own(sockserve.TCPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            super().process_request(request, client_address)

        def serve_forever(self, poll_interval: float = 0.5) -> None:
            super().serve_forever(poll_interval)

        def _handle_request_noblock(self) -> Any:
            return super()._handle_request_noblock()

    make(Own, Unrelated)
    make(sockserve.ThreadingMixIn, Own)


@pytest.mark.parametrize("mix_in", MIX_INS, ids=lambda each: each.__name__)
def test_a_mix_in_may_override_how_one_request_is_taken(mix_in: type) -> None:
    """A mix-in in front that has ``_handle_request_noblock()`` is no server: what stands behind it has its effect."""
    make(TakesOne, sockserve.TCPServer)
    make(TakesOne, mix_in, sockserve.TCPServer)
    make(mix_in, TakesOne, sockserve.TCPServer)
    with pytest.raises(TypeError, match=mix_in.__name__):
        make(TakesOne, sockserve.TCPServer, mix_in)


def test_arguments_of_the_class_statement_reach_other_bases() -> None:
    """Both of our bases pass on what ``__init_subclass__`` of another one takes."""
    seen = []

    class Takes:
        def __init_subclass__(cls, *, colour: str, **kwargs: Any) -> None:
            seen.append(colour)
            super().__init_subclass__(**kwargs)

    types.new_class("Server", (sockserve.ThreadingMixIn, sockserve.TCPServer, Takes), {"colour": "red"})
    assert seen == ["red"]
