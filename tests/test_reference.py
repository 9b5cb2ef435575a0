"""The reference has every public name, option and event, and no other."""

from __future__ import annotations

import pathlib
import re

import pytest

import sockserve
import sockserve.greenlets
import sockserve.http
from sockserve import dropin, testing
from sockserve.client import command_line as client_command_line
from sockserve.core import events
from sockserve.run import command_line

REFERENCE = pathlib.Path(sockserve.__file__).parent.parent / "docs/reference"
TEXTS = {page.name: page.read_text("utf-8") for page in REFERENCE.glob("*.md")}


def _rows(page: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in TEXTS[page].splitlines() if line.startswith("| ")]


def test_every_public_name_is_documented_once_and_no_other() -> None:
    """The pages' directives name what the package and its public modules export."""
    documented = [
        name for text in TEXTS.values() for name in re.findall(r"^ *\.\. auto\w+:: ([\w.]+)$", text, re.MULTILINE)
    ]
    in_package = {*sockserve.__all__, *sockserve._in_greenlets}
    public = {f"sockserve.{name}" for name in in_package}
    for module in (sockserve.greenlets, sockserve.http, testing, dropin):
        public |= {f"{module.__name__}.{name}" for name in module.__all__ if name not in in_package}
    assert sorted(documented) == sorted(public)


def test_the_tables_of_servers_have_every_hook_that_the_docstring_names() -> None:
    """What may be overridden, as the class says, has its row."""
    promised = (sockserve.BaseServer.__doc__ or "").split("Methods that may be overridden")[1].split("Class attr")[0]
    hooks = set(re.findall(r"``(\w+)\(", promised))
    rows = {re.sub(r"`(\w+)\(.*", r"\1", row[0]) for row in _rows("servers.md")}
    assert not hooks - rows - {"handle_request"}
    assert {"prepare_request", "drain_request"} <= hooks


@pytest.mark.parametrize("page", ["servers.md", "mix-ins.md", "handlers.md"])
def test_what_the_tables_name_exists(page: str) -> None:
    """Each hook and attribute of a table is one of a public class, or set by its constructor."""
    classes = [each for each in (getattr(sockserve, name) for name in sockserve.__all__) if isinstance(each, type)] + [
        sockserve.GreenletMixIn
    ]
    attributes = {name for each in classes for name in (*dir(each), *getattr(each, "__annotations__", ()))}
    attributes |= {"packet", "socket", "prepare_request"} | {each.__name__ for each in classes}
    attributes |= set(sockserve._in_greenlets)
    words = {word for row in _rows(page) for word in re.findall(r"`(\w+)(?:\([^`]*)?`", row[0])}
    assert len(words) > 4
    assert not words - attributes


def test_the_tables_of_options_are_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command's options, as its ``--help`` lists them, have their rows."""
    for main, heading in ((command_line.main, "sockserve"), (client_command_line.main, "sockserve.client")):
        with pytest.raises(SystemExit):
            main(["--help"])
        offered = set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE))
        section = TEXTS["command-line.md"].split(f"\n## {heading}\n")[1].split("\n## ")[0]
        assert set(re.findall(r"^\| `(--[a-z-]+)", section, re.MULTILINE)) == offered


def test_the_table_of_events_has_every_word() -> None:
    """Word and method are those of the observers, in the order of a request's life."""
    rows = [(row[0], row[1].strip("`").partition("(")[0]) for row in _rows("events.md")]
    assert rows[1:] == [(word, f"on_{word}") for word in events._WORDS]


def test_the_table_of_errors_is_the_tree() -> None:
    """Each error has its row, with the built-in exception that it also is."""
    # Raised itself, beside what derives from it.
    leaves = {sockserve.PeerTimeoutError}
    rows = dict(re.findall(r"^\|[\w' ]*\| `(\w+Error)` \| `(\w+)` \|", TEXTS["errors.md"], re.MULTILINE))
    errors = {
        name: each
        for name, each in vars(sockserve).items()
        if isinstance(each, type)
        and issubclass(each, sockserve.SockserveError)
        and (each in leaves or not each.__subclasses__())
    }
    built_in = {name: [base for base in each.__mro__ if base.__module__ == "builtins"] for name, each in errors.items()}
    assert rows == {name: bases[0].__name__ for name, bases in built_in.items()}
