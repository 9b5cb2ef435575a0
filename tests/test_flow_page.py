"""The page that names the functions of a request's way names real ones."""

from __future__ import annotations

import importlib
import operator
import pathlib
import re

import sockserve

PAGE = pathlib.Path(sockserve.__file__).parent.parent / "docs" / "explanation" / "how-a-request-flows.md"


def test_each_function_of_the_page_exists() -> None:
    """In the module that the page says."""
    named = re.findall(r"`([\w/]+/\w+)`\s`([\w.]+)`", PAGE.read_text("utf-8"))
    assert len(named) > 20
    for module, function in named:
        found = importlib.import_module("sockserve." + module.replace("/", "."))
        assert callable(operator.attrgetter(function)(found)), (module, function)
