"""The house stays a house: each module imports only from layers before its own, nothing imports in a circle.

An import counts wherever it stands, inside a function or under ``if TYPE_CHECKING:`` too: a reader of the module has to
know the other one all the same.
"""

from __future__ import annotations

import ast
import graphlib
import http.server
import inspect
import logging
import pathlib
import re
import socket
import socketserver
import ssl
from collections.abc import Iterator

import pytest

import sockserve

HOUSE = pathlib.Path(sockserve.__file__).parent
LAYERS = (
    "log",
    "seconds",
    "errors",
    "net",
    "core",
    "http_body",
    "http_keep_alive",
    "concurrency",
    "greenlets",
    "ready_made",
    "http",
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


# attributes that are named by string, which the import statements do not show

CONCURRENCY = ("dispatch", "threads", "children", "forks")
ROOMS = ("pool", "cooperative", "prefork")


def floor(module: str) -> tuple[int, int]:
    """Where a module lives: its layer, and in ``concurrency`` whether in the common part or in a room of it."""
    parts = module.split(".")
    return layer(module), int(parts[1:2] == ["concurrency"] and parts[2] not in CONCURRENCY)


def is_seen(module: str, owner: str) -> bool:
    """Whether a module may know what another one defines: it is below, or in the same room."""
    if parts_of(module) == parts_of(owner):
        return True
    return floor(owner) < floor(module) or (floor(owner) == floor(module) and not floor(module)[1])


def parts_of(module: str) -> list[str]:
    """The layer of a module; in ``concurrency`` its room."""
    parts = module.split(".")
    return parts[1:3] if parts[1:2] == ["concurrency"] and parts[2] in ROOMS else parts[1:2]


def defined(tree: ast.AST) -> Iterator[str]:
    """The attributes that classes of a module define, or that its functions set on objects."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for each in node.body:
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield each.name
                elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                    yield each.target.id
                elif isinstance(each, ast.Assign):
                    yield from (target.id for target in each.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def texts(*nodes: ast.AST) -> Iterator[str]:
    """The identifiers among string literals."""
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value


def is_dict_of_attributes(node: ast.AST) -> bool:
    """Whether an expression is ``vars(x)`` or ``x.__dict__``."""
    is_vars = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "vars"
    return is_vars or (isinstance(node, ast.Attribute) and node.attr == "__dict__")


def named_by_string(tree: ast.AST) -> Iterator[str]:
    """The attributes that a module looks up by a string, and all strings that are names of this package's own kind."""
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        yield from (text for text in texts(node) if text.startswith(("_serving_", "_BaseServer__")))
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id in ("getattr", "hasattr", "setattr", "delattr"):
                of_module = isinstance(node.args[0], ast.Name) and node.args[0].id in modules
                yield from () if of_module else texts(*node.args[1:2])
            elif isinstance(function, ast.Attribute) and is_dict_of_attributes(function.value):
                yield from texts(*node.args[:1])
        elif isinstance(node, ast.Subscript) and is_dict_of_attributes(node.value):
            yield from texts(node.slice)
        elif isinstance(node, ast.Compare) and any(map(is_dict_of_attributes, node.comparators)):
            yield from texts(node.left)


TREES = {module: ast.parse(path.read_bytes()) for module, path in MODULES.items()}
OWNERS: dict[str, set[str]] = {}
for name_, tree_ in TREES.items():
    for attribute_ in defined(tree_):
        OWNERS.setdefault(attribute_, set()).add(name_)


# What servers, handlers and sockets of the standard library have may be named anywhere.
OF_SERVERS = set(defined(ast.parse(inspect.getsource(socketserver))))


def of_upper_floors(module: str, tree: ast.AST) -> list[str]:
    """The attributes named by string that only modules define of which this one must know nothing."""
    standard = (socket.socket, ssl.SSLSocket, http.server.BaseHTTPRequestHandler, OSError, logging.Logger)
    return [
        name
        for name in named_by_string(tree)
        if not any(is_seen(module, owner) for owner in OWNERS.get(name, {module}))
        and name not in OF_SERVERS
        and not any(hasattr(each, name) for each in standard)
    ]


def test_no_module_names_an_attribute_of_an_upper_floor_by_string() -> None:
    """A string that names an attribute is as good as an import: it goes down, and never from one room to another."""
    assert not {module: found for module, tree in TREES.items() if (found := of_upper_floors(module, tree))}


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("sockserve.core.accepting", 'getattr(server, "_serving_dispatcher", None)'),
        ("sockserve.core.accepting", 'NAMES = ("_serving_dispatcher", "name")'),
        ("sockserve.core.handlers", 'getattr(type(connection), "wait_writable", None)'),
        ("sockserve.net.tls", 'hasattr(server, "active_requests")'),
        ("sockserve.core.loop", 'vars(server)["make_dispatcher"]'),
        ("sockserve.core.loop", '"make_dispatcher" in vars(server)'),
        ("sockserve.core.loop", 'server.__dict__.pop("make_dispatcher")'),
        ("sockserve.concurrency.prefork.mix_in", 'hasattr(self, "_serving_pool")'),
    ],
)
def test_such_a_name_is_found(module: str, line: str) -> None:
    """Each way to name an attribute of an upper floor or of another room, and what can hide it, is recognised."""
    if "wait_writable" in line:
        # The base in net is what the core may name.
        assert not of_upper_floors(module, ast.parse(line))
    else:
        assert of_upper_floors(module, ast.parse(line))


def test_few_private_names_are_in_quotes() -> None:
    """A private name in quotes hides from readers and type checkers: at most 15, each with its reason beside it."""
    quoted = re.compile(r'"_(?:serving|BaseServer_)_\w+"')
    assert sum(len(quoted.findall(path.read_text("utf-8"))) for path in MODULES.values()) <= 15
