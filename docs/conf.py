"""Sphinx's settings: ``make docs`` builds these pages, with every warning an error."""

from __future__ import annotations

import pathlib
import re
from typing import Any

from sphinx.pycode import ModuleAnalyzer

import sockserve

project = "sockserve"
author = "the sockserve contributors"
project_copyright = "the sockserve contributors"
version = release = sockserve.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
myst_heading_anchors = 3

# A public name is documented once, in the reference; what a class has from its bases stands with these.
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
# Units and meaning stand in the docstrings; the full types of hooks that take anything would bury them.
autodoc_typehints = "none"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"sockserve {version}"
# What a console block shows is typed without its prompt.
copybutton_prompt_text = "$ "
html_show_sourcelink = False
html_show_copyright = False
html_static_path = ["pictures/tables.css"]
html_css_files = ["tables.css"]

_HOUSE = pathlib.Path(sockserve.__file__).parent
_ARGUMENTS = re.compile(r"([a-z_\d]+(?:, [a-z_\d]+)*): ")


def _let_comments_be_found() -> None:
    # A public class says that it is sockserve's, and not which module it is written in: there Sphinx would look for the
    # text below each attribute.
    found = ModuleAnalyzer.for_module("sockserve")
    found.analyze()
    for path in _HOUSE.rglob("*.py"):
        name = ".".join(("sockserve", *path.relative_to(_HOUSE).with_suffix("").parts)).removesuffix(".__init__")
        if path.parent.name != "dropin_startup" and name != "sockserve":
            # By its file: not everything that is documented nowhere can be imported here.
            module = ModuleAnalyzer.for_file(str(path), name)
            module.analyze()
            found.attr_docs.update(module.attr_docs)
            found.tagorder.update(module.tagorder)


def _mark_arguments(*event: Any) -> None:
    """Make ``name: what it is`` at the beginning of a line the description of an argument, or of those."""
    _, what, *_, lines = event
    if what in ("function", "class"):
        # A field's name may have a type before it, and so no blank within.
        lines[:] = [
            _ARGUMENTS.sub(lambda names: f":param {names[1].replace(', ', '/')}: ", line, count=1)
            if _ARGUMENTS.match(line)
            else line
            for line in lines
        ]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    _let_comments_be_found()
    app.connect("autodoc-process-docstring", _mark_arguments)
