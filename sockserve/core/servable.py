"""What the core needs of a server: the hooks of ``socketserver``, which a standard library's server has as well."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

__all__ = ["Address", "AnyServer", "Preparing", "Request", "Servable"]

Request: TypeAlias = Any
"""What ``get_request()`` took: a connection, a datagram with its socket, or what a subclass makes of either."""

Address: TypeAlias = Any
"""The address of a client, as ``get_request()`` told it."""


AnyServer: TypeAlias = Any
"""A server of sockserve, or of the standard library, or an object that a test has instead of one."""


class Servable(Protocol):
    """A server whose requests can be served. Its hooks are called with positions alone: overrides name them freely."""

    def verify_request(self, request: Request, client_address: Address, /) -> object:
        """Say whether the request may be served."""

    def process_request(self, request: Request, client_address: Address, /) -> object:
        """Serve the request, or give it to a worker."""

    def finish_request(self, request: Request, client_address: Address, /) -> object:
        """Run the handler."""

    def handle_error(self, request: Request, client_address: Address, /) -> object:
        """Report the exception being handled."""

    def shutdown_request(self, request: Request, /) -> object:
        """End the request and close it."""


class Preparing(Servable, Protocol):
    """A server of sockserve: it makes a request ready for its handler, too, and can tell one that a drain begins."""

    def prepare_request(self, request: Request, client_address: Address, /) -> tuple[Request, Address]:
        """Make the request ready; return it and its client's address, perhaps replaced."""
        ...

    def verify_client(self, request: Request, client_address: Address, /) -> object:
        """Say whether the client may be served, now that it is known."""

    def drain_request(self, request: Request, /) -> object:
        """Let the handler see that a drain has begun."""
