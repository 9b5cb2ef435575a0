"""The options of ``serve()`` and of the command line: a row for each, from which both are read and checked.

Rule 1. A row is the one place of an option: its name, default, values and purpose. ``serve()`` has a keyword of that
name and default, the command line the same with dashes.
Rule 2. What a row refuses, both refuse, before anything is bound.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from sockserve.net.address import parse_address
from sockserve.net.networks import networks_of
from sockserve.ready_made import MODELS
from sockserve.seconds import limit_of

__all__ = ["OPTIONS", "Option", "check", "has_workers", "misfit", "server_attributes"]

Values: TypeAlias = Mapping[str, object]

LARGEST = 2**31 - 1
"""What listen(2) takes: a C int."""


class Kind(Protocol):
    """Which values an option takes."""

    @property
    def metavar(self) -> str | None:
        """What stands for a value in ``--help``; None: its choices do."""

    @property
    def choices(self) -> Sequence[str] | None:
        """All values; None: they cannot be listed."""

    def read(self, text: str) -> Any:
        """The value that a word of the command line means. Raises ValueError, which says what is wrong with it."""
        ...

    def check(self, name: str, value: Any) -> Any:
        """The value as it is used. Raises ValueError for one that the option does not take."""
        ...


class Word:
    """One of some words."""

    metavar = None

    def __init__(self, choices: Sequence[str]) -> None:
        self.choices = choices

    def read(self, text: str) -> str:
        """The word itself."""
        return text

    def check(self, name: str, value: Any) -> Any:
        """The word itself."""
        if value not in self.choices:
            raise ValueError(f"no {name} {value!r}; there are {', '.join(self.choices)}")
        return value


class Number:
    """A whole number, at least ``least``; None: what the thing that is counted has by itself."""

    metavar = "N"
    choices = None

    def __init__(self, least: int) -> None:
        self._least = least

    def read(self, text: str) -> int:
        """The number."""
        number = int(text) if text.isdecimal() else -1
        if not self._least <= number <= LARGEST:
            raise ValueError(f"{text!r} is not a whole number from {self._least} to {LARGEST}")
        return number

    def check(self, name: str, value: Any) -> Any:
        """The number."""
        if value is not None and not self._least <= value <= LARGEST:
            least = "a positive" if self._least else "0 or a positive"
            raise ValueError(f"{name} must be {least} whole number, {LARGEST} at most: {value!r}")
        return value


class Seconds:
    """A time; None or infinity: without limit. ``positive``: more than none at all."""

    metavar = "S"
    choices = None

    def __init__(self, *, positive: bool = False) -> None:
        self._positive = positive

    def read(self, text: str) -> float | None:
        """The time, None for ``inf``."""
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not seconds >= 0:
            raise ValueError(f"{text!r} is not a time in seconds")
        if self._positive and seconds == 0:
            raise ValueError(f"{text!r} is no time at all; inf: no limit")
        return limit_of(seconds)

    def check(self, name: str, value: Any) -> float | None:
        """The time, None without limit."""
        if value is not None and not (value > 0 if self._positive else value >= 0):
            least = "positive" if self._positive else "0 or more seconds"
            raise ValueError(f"{name} must be {least}, or None: {value!r}")
        return limit_of(value, name)


class NetworkList:
    """Networks, as "10.0.0.0/8", and "unix"."""

    metavar = "CIDR,..."
    choices = None

    def read(self, text: str) -> Sequence[str]:
        """The networks between the commas."""
        found = text.split(",")
        networks_of(found)
        return found

    def check(self, name: str, value: Any) -> Any:
        """The same networks."""
        if value is not None:
            networks_of(value)
        return value


class StreamAddress:
    """Where something listens for connections."""

    metavar = "ADDRESS"
    choices = None

    def read(self, text: str) -> str:
        """The same text."""
        address = parse_address(text)
        if address.scheme in ("tls", "udp") or address.type not in (None, socket.SOCK_STREAM):
            raise ValueError(f"{text} is not for plain connections: it takes tcp://, unix:, fd: or systemd:")
        return text

    def check(self, name: str, value: Any) -> Any:
        """The same text; None: it does not listen."""
        if value is not None:
            try:
                self.read(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return value


class UnixAddress(StreamAddress):
    """The path of a Unix stream socket."""

    metavar = "unix:PATH"

    def read(self, text: str) -> str:
        """The same text."""
        address = parse_address(text)
        if address.scheme != "unix" or str(address.sockaddr).startswith("\0"):
            raise ValueError(f"{text} is no path of a Unix socket, unix:PATH")
        return text


class Purpose(NamedTuple):
    """What an option is for: without that it makes no sense."""

    is_there: Callable[[Values], bool]
    of_command: str
    """What the command line says after "--option is for", if it is not there."""
    of_keyword: str
    """What ``serve()`` says after the name; a format of the values."""


class Option(NamedTuple):
    """One option."""

    name: str
    kind: Kind
    default: Any
    help: str
    """For the command line; %(default)s stands for the default."""
    purposes: Sequence[Purpose] = ()
    attribute: str | None = None
    """What each server has of it, unless it is the default."""

    @property
    def flag(self) -> str:
        """The word on the command line."""
        return "--" + self.name.replace("_", "-")


def _has_children(values: Values) -> bool:
    return values["model"] == "fork"


def _has_no_children(values: Values) -> bool:
    return values["model"] != "fork"


def _has_a_pool(values: Values) -> bool:
    return values["model"] == "pool"


def has_workers(values: Values) -> bool:
    """Whether worker processes serve, with a supervisor, which is what answers questions."""
    return any(values[name] is not None for name in ("processes", "health", "agent", "control"))


def _can_fork(_: Values) -> bool:
    return hasattr(os, "fork")


CHILDREN = Purpose(
    _has_children,
    "--model fork",
    "limits child processes, and the model {model!r} has none",
)
THREADS = Purpose(
    _has_a_pool,
    "--model pool",
    "limits a pool's threads, and the model {model!r} has none",
)
WORKERS = Purpose(
    has_workers,
    "--processes",
    "is for worker processes, and there are none without processes",
)
NO_CHILDREN = Purpose(
    _has_no_children,
    "the other models: --model fork has a process for each request",
    "are for the other models: with 'fork' each request has a process of its own",
)
FORK = Purpose(
    _can_fork,
    "platforms that have fork(2)",
    "need fork(2), which this platform lacks",
)

OPTIONS = (
    # what runs the handler
    Option("model", Word(MODELS), "thread", "what a handler runs in (default: %(default)s, one for each)"),
    Option("max_children", Number(1), None, "with --model fork, how many serve at once", (CHILDREN,), "max_children"),
    Option(
        "max_workers", Number(1), None, "with --model pool, how many threads serve at most", (THREADS,), "max_workers"
    ),
    # in how many processes
    Option(
        "processes",
        Number(1),
        None,
        "worker processes, each of which serves by the model (default: none, this process serves)",
        (FORK, NO_CHILDREN),
    ),
    Option(
        "max_requests",
        Number(1),
        None,
        "with --processes, after about how many requests a worker is replaced",
        (WORKERS,),
    ),
    Option(
        "worker_timeout",
        Seconds(positive=True),
        60.0,
        "with --processes, seconds after which a worker that stands still is replaced (default: 60; inf: never)",
    ),
    # how it listens
    Option(
        "backlog",
        Number(0),
        None,
        "connections that wait in the kernel until they are accepted (default: as many as the system allows)",
        attribute="request_queue_size",
    ),
    # which of its peers are proxies
    Option(
        "proxy_from",
        NetworkList(),
        (),
        "networks of proxies, and unix: from these a PROXY header must come, and is believed",
        attribute="proxy_from",
    ),
    Option(
        "direct_from",
        NetworkList(),
        None,
        "networks that come without a PROXY header; others are refused (default: all that are not in --proxy-from)",
        attribute="direct_from",
    ),
    # how it is watched
    Option(
        "health",
        StreamAddress(),
        None,
        "where /live, /ready and /metrics are answered, by a supervisor: at least --processes 1",
        (FORK,),
    ),
    Option(
        "agent",
        StreamAddress(),
        None,
        "where HAProxy's agent-check is answered, in the same way",
        (FORK,),
    ),
    Option(
        "control",
        UnixAddress(),
        None,
        "where sockserve ctl tells it what to do, a socket for its own user alone; in the same way",
        (FORK,),
    ),
    # how it ends
    Option(
        "drain_timeout",
        Seconds(),
        30.0,
        "seconds that requests in progress get to end (default: 30; inf: no limit)",
    ),
    Option(
        "lame_duck",
        Seconds(),
        0.0,
        "seconds after SIGTERM in which it still serves, and says that it will end (default: 0)",
    ),
)
"""In the order of ``--help``."""


def misfit(values: Values) -> tuple[Option, Purpose] | None:
    """The first option that was given without what it is for; None: there is none."""
    for option in OPTIONS:
        if values[option.name] is not None:
            for purpose in option.purposes:
                if not purpose.is_there(values):
                    return option, purpose
    return None


def check(values: Values) -> dict[str, Any]:
    """The values of all options as they are used. Raises ValueError for what makes no sense."""
    checked = {option.name: option.kind.check(option.name, values[option.name]) for option in OPTIONS}
    found = misfit(checked)
    if found is not None:
        option, purpose = found
        raise ValueError(f"{option.name} {purpose.of_keyword.format(**checked)}")
    return checked


def server_attributes(values: Values) -> dict[str, Any]:
    """What each server gets of them as attributes: those that were given."""
    return {
        option.attribute: values[option.name]
        for option in OPTIONS
        if option.attribute is not None and values[option.name] != option.default
    }
