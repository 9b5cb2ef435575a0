"""The house stays a house: each module imports only from layers before its own, nothing imports in a circle.

An import counts wherever it stands, inside a function or under ``if TYPE_CHECKING:`` too: a reader of the module has to
know the other one all the same.
"""

from __future__ import annotations

import ast
import graphlib
import pathlib
from collections.abc import Iterator

import sockserve

HOUSE = pathlib.Path(sockserve.__file__).parent
LAYERS = (
    "log",
    "seconds",
    "errors",
    "net",
    "core",
    "http",
    "concurrency",
    "greenlets",
    "ready_made",
    "run",
    "testing",
    "pytest_plugin",
)
# What people import or start stands on top of all layers, the last on the ones before it.
FACES = ("", "dropin", "dropin_startup", "client", "__main__")
MODULES = {
    ".".join(("sockserve", *path.relative_to(HOUSE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in HOUSE.rglob("*.py")
}


def layer(module: str) -> int:
    """The place of a module of the package in the order of layers; ValueError for one that has none."""
    return (LAYERS + FACES).index((module + "..").split(".")[1])


def imports(module: str) -> Iterator[str]:
    """The modules of this package that a module names in its import statements."""
    for node in ast.walk(ast.parse(MODULES[module].read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            inside = (f"{node.module}.{alias.name}" for alias in node.names)
            names = [name if name in MODULES else str(node.module) for name in inside]
        else:
            continue
        yield from (name for name in names if name in MODULES)


GRAPH = {module: set(imports(module)) for module in MODULES}


def test_the_graph_has_the_house_in_it() -> None:
    """The import statements were found: the package's own, those between folders, those inside one."""
    assert "sockserve.errors" in GRAPH["sockserve"]
    assert "sockserve.net.accept_errors" in GRAPH["sockserve.core.accepting"]
    assert "sockserve.core.base_server" in GRAPH["sockserve.core.handlers"]


def test_each_module_imports_only_from_its_own_layer_and_those_before_it() -> None:
    """Folders are layers, and each module has its place in them."""
    place = {module: layer(module) for module in MODULES}
    wrong = [f"{a} -> {b}" for a, imported in GRAPH.items() for b in imported if place[b] > place[a]]
    assert not wrong


def test_programs_do_not_rest_on_tools_for_tests() -> None:
    """The client for people, and all below, import nothing of ``testing``."""
    apart = ("sockserve.testing", "sockserve.pytest_plugin")
    assert not [f"{a} -> {b}" for a in GRAPH if not a.startswith(apart) for b in GRAPH[a] if b.startswith(apart)]


def test_no_module_imports_itself_in_a_circle() -> None:
    """The modules, those of one folder included, have an order in which each needs only earlier ones."""
    order = list(graphlib.TopologicalSorter(GRAPH).static_order())
    assert set(order) == set(MODULES)


def test_no_file_is_two_things() -> None:
    """No file of the package or of its tests is above 450 lines."""
    files = [*MODULES.values(), *pathlib.Path(__file__).parent.rglob("*.py")]
    assert not [path.name for path in files if path.read_text("utf-8").count("\n") > 450]
