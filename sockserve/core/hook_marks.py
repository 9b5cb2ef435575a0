"""Marks that a hook can have, which tell the loop how to treat it; an override has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["drains", "has_no_ticks", "needs_no_poll", "never_waits"]

Hook = TypeVar("Hook", bound=Callable[..., object])


def drains(get_request: Hook) -> Hook:
    """Mark a ``get_request`` that raises BlockingIOError instead of waiting: the loop may call it repeatedly."""
    get_request.__dict__["never_waits"] = True
    return get_request


def never_waits(get_request: object) -> bool:
    """Whether a ``get_request`` has that mark."""
    return getattr(get_request, "never_waits", False)


def needs_no_poll(service_actions: Hook) -> Hook:
    """Mark a ``service_actions`` that has nothing to do while nothing happens, so that an idle loop may sleep."""
    service_actions.__dict__["needs_no_poll"] = True
    return service_actions


def has_no_ticks(service_actions: object) -> bool:
    """Whether a ``service_actions`` has that mark."""
    return getattr(service_actions, "needs_no_poll", False)
