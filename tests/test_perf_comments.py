"""Code that is longer or odder for speed says so in a comment that names where the figure is: ``# perf: …``."""

from __future__ import annotations

import pathlib
import re

import sockserve

HOUSE = pathlib.Path(sockserve.__file__).parent
NOTEBOOK = HOUSE.parent / "benchmarks" / "NOTEBOOK.md"
COMMENT = re.compile(r"# perf: .*(?:\n *# .*)*")


def anchors() -> set[str]:
    """The anchors of the notebook's headings, as Markdown makes them."""
    headings = re.findall(r"^#+ (.*)$", NOTEBOOK.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def test_what_is_done_for_speed_names_its_figure() -> None:
    """Each such comment ends with an anchor of the notebook, and that is there."""
    comments = [
        (path.name, comment) for path in HOUSE.rglob("*.py") for comment in COMMENT.findall(path.read_text("utf-8"))
    ]
    named = [(name, re.search(r"NOTEBOOK\.md#([\w-]+)$", comment)) for name, comment in comments]
    assert len(named) > 4
    assert [(name, found and found[1]) for name, found in named if found is None or found[1] not in anchors()] == []
