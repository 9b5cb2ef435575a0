"""The table of options: ``serve()`` and the command line have all of it, and nothing else of their own."""

from __future__ import annotations

import inspect
import math
import pathlib
from typing import Any

import pytest

import sockserve
from sockserve.run import command_line
from sockserve.run.options import LARGEST, OPTIONS, Option, check, misfit, server_attributes

PAGE = pathlib.Path(sockserve.__file__).parent.parent / "docs" / "reference" / "command-line.md"
DEFAULTS = {option.name: option.default for option in OPTIONS}
BY_NAME = {option.name: option for option in OPTIONS}

serve: Any = sockserve.serve

every_option = pytest.mark.parametrize("option", OPTIONS, ids=[option.name for option in OPTIONS])


@every_option
def test_an_option_is_a_keyword_an_argument_and_a_row_of_the_reference(option: Option) -> None:
    """Of one name and one default."""
    assert inspect.signature(sockserve.serve).parameters[option.name].default == option.default
    assert getattr(command_line.read_arguments([]), option.name) == option.default
    assert f"| `{option.flag} " in PAGE.read_text("utf-8")


def test_the_defaults_make_sense() -> None:
    """They are what ``check()`` returns."""
    assert check(DEFAULTS) == DEFAULTS
    assert misfit(DEFAULTS) is None
    assert server_attributes(DEFAULTS) == {}


VALUES = {
    "max_children": ({"model": "fork"}, [(0, "0"), (LARGEST + 1, f"{LARGEST + 1}")]),
    "max_workers": ({"model": "pool"}, [(0, "0"), (-5, "-5")]),
    "processes": ({}, [(0, "0"), (LARGEST + 1, f"{LARGEST + 1}")]),
    "max_requests": ({"processes": 2}, [(0, "0")]),
    "worker_timeout": ({}, [(0, "0"), (-1.0, "-1"), (math.nan, "nan")]),
    "backlog": ({}, [(-1, "-1"), (LARGEST + 1, f"{LARGEST + 1}")]),
    "drain_timeout": ({}, [(-0.5, "-0.5"), (math.nan, "nan")]),
}


@pytest.mark.parametrize(
    ("name", "others", "value", "text"),
    [(name, others, *wrong) for name, (others, values) in VALUES.items() for wrong in values],
)
def test_a_value_that_one_refuses_the_other_refuses_too(
    capsys: pytest.CaptureFixture[str], name: str, others: dict[str, Any], value: object, text: str
) -> None:
    """Both name the option, and nothing is bound."""
    with pytest.raises(ValueError, match=rf"^{name} must be .*: {value!r}$"):
        serve("nowhere:None", "tcp://127.0.0.1:0", **others, **{name: value})
    words = [f"{BY_NAME[each].flag}={given}" for each, given in others.items()]
    with pytest.raises(SystemExit) as end:
        command_line.read_arguments([*words, f"{BY_NAME[name].flag}={text}"])
    assert end.value.code == 2
    assert f"argument {BY_NAME[name].flag}: {text!r} is n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("max_children", {"model": "thread"}),
        ("max_workers", {"model": "fork"}),
        ("max_requests", {}),
        ("processes", {"model": "fork"}),
    ],
)
def test_an_option_without_what_it_is_for_is_refused_by_both(
    capsys: pytest.CaptureFixture[str], name: str, others: dict[str, Any]
) -> None:
    """The message says what it is for."""
    option = BY_NAME[name]
    with pytest.raises(ValueError, match=rf"^{name} .*(model|without processes)"):
        serve("nowhere:None", "tcp://127.0.0.1:0", **others, **{name: 3})
    words = [f"{BY_NAME[each].flag}={given}" for each, given in others.items()]
    with pytest.raises(SystemExit) as end:
        command_line.read_arguments([*words, f"{option.flag}=3"])
    assert end.value.code == 2
    assert f"{option.flag} is for " in capsys.readouterr().err


def test_infinity_is_no_limit_for_both() -> None:
    """As None is in a program."""
    for name in ("worker_timeout", "drain_timeout"):
        assert check({**DEFAULTS, name: math.inf})[name] is None
        assert check({**DEFAULTS, name: None})[name] is None
        assert getattr(command_line.read_arguments([f"{BY_NAME[name].flag}=inf"]), name) is None


def test_what_servers_have_of_it_are_their_attributes() -> None:
    """Only what was given: a class keeps its own default."""
    given = {**DEFAULTS, "backlog": 0, "max_workers": 3, "model": "pool"}
    assert server_attributes(check(given)) == {"request_queue_size": 0, "max_workers": 3}
