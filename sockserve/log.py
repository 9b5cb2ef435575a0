"""The package's logger: a program that configures logging does not silence it, and no peer can write a line in it.

Rule 1. A configuration that disables "all other loggers" does not disable this one: ``socketserver`` printed its
reports, and a program that does not know of our logger must not lose them.
Rule 2. Text in a record may be a peer's: the name of a Unix socket, a line in an exception. It adds no line to the log
and sends nothing to a terminal but characters that can be printed.
"""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Iterator
from typing import Any

__all__ = ["Lines", "Seldom", "counted", "log", "printable", "progress"]

NAME = "sockserve"


def printable(text: str, keep: str = "") -> str:
    """Return ``text`` with a backslash escape for each character that is not printable, except those in ``keep``.

    Control characters, line separators, bidirectional marks and lone surrogates are not (``str.isprintable()``).
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape", "surrogatepass").decode("ascii")
        for each in text
    )


def counted(number: int, noun: str) -> str:
    """Return "1 request" or "2 requests"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class Lines(str):
    """Text of several lines that this package made: a record shows it as it is. Never pass text of a peer."""

    __slots__ = ()


class Seldom:
    """Limits the lines about what a peer can cause at will: the first at once, then one a minute with a count."""

    INTERVAL = 60.0
    """Seconds between two lines: a flood costs 1440 lines a day, and its end is noticed within a minute."""

    def __init__(self) -> None:
        self._last = -float("inf")
        self._unsaid = 0
        self._turn: list[None] = [None]

    def count(self) -> int:
        """Count one event. Returns 0: log nothing; else the number of events since the last line, this one included.

        In any thread: one of those that call it at the same moment gets the number, which may be too low by a few.
        """
        self._unsaid += 1
        if time.monotonic() - self._last < self.INTERVAL:
            return 0
        try:
            # Atomic, and no lock that a fork could leave held.
            self._turn.pop()
        except IndexError:
            return 0
        try:
            # Again: another thread may have had its turn since.
            now = time.monotonic()
            if now - self._last < self.INTERVAL:
                return 0
            self._last = now
            unsaid, self._unsaid = self._unsaid, 0
            return unsaid
        finally:
            self._turn.append(None)


class _Guarded(logging.Logger):
    """Adds the two rules to whatever logger class the program has."""

    @property
    def disabled(self) -> bool:
        """Whether the program disabled this logger by name (rule 1)."""
        return self.__dict__.get("disabled", False) and not _bystander.disabled

    @disabled.setter
    def disabled(self, value: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride] - one is set there
        self.__dict__["disabled"] = value

    def makeRecord(self, *args: Any, **kwargs: Any) -> logging.LogRecord:  # noqa: N802 - logging's name
        """Make a record whose text has no line break and no terminal escape of a peer's (rule 2)."""
        record = super().makeRecord(*args, **kwargs)
        if isinstance(record.args, tuple):
            record.args = tuple(map(_shown, record.args))
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = _traceback_text(record.exc_info[1])
        return record


def _shown(value: object) -> object:
    """Return the value, or its escaped text if its text is not printable."""
    if isinstance(value, (int, float, Lines)):
        return value
    try:
        text = str(value)
    except Exception:
        # The logging handler reports what str() raises, as for any record.
        return value
    shown = printable(text)
    return value if shown is text else shown


def _traceback_text(error: BaseException) -> str | None:
    """Return the traceback, escaped, if a text in it is not printable or has several lines; None: show it as usual."""
    texts = {text for each in _related(error) for text in _texts_of(each)}
    if all(text.isprintable() for text in texts):
        return None
    whole = "".join(traceback.format_exception(error))
    for text in sorted(texts, key=len, reverse=True):
        # Indented, a further line cannot be taken for a record of its own.
        whole = whole.replace(text, "\n    ".join(text.split("\n")))
    return printable(whole, keep="\n\t").removesuffix("\n")


def _related(error: BaseException) -> Iterator[BaseException]:
    """Return the exception, and all others that its traceback shows."""
    seen: dict[int, BaseException] = {}
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen[id(each)] = each
            waiting += (each.__cause__, each.__context__, *getattr(each, "exceptions", ()))
    return iter(seen.values())


def _texts_of(error: BaseException) -> Iterator[str]:
    for each in (error, *getattr(error, "__notes__", ())):
        # If str() raises, traceback.format_exception() puts a text of its own there.
        with contextlib.suppress(Exception):
            yield str(each)


_bystander = logging.getLogger(f"{NAME}.bystander")
"""A logger that no program knows: if it is disabled, a configuration has disabled every logger that existed."""


def _guarded() -> logging.Logger:
    logger = logging.getLogger(NAME)
    if not hasattr(type(logger), "_guards"):
        # Not by setLoggerClass(), which is for the program: its class stays the base, also if the logger exists.
        logger.__class__ = type("SockserveLogger", (_Guarded, type(logger)), {"_guards": True})
    return logger


log = _guarded()
"""Its reports reach standard error as long as logging is not configured (``logging.lastResort``)."""

progress = logging.getLogger(f"{NAME}.progress")
"""What a person at a terminal wants to see, and a log need not keep. Only INFO, and no text of a peer."""
