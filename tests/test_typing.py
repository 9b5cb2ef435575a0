"""What is written for type checkers also runs, and the type checkers are shown it."""

from __future__ import annotations

import importlib.util
import pathlib
import tomllib
import types

SAMPLES = pathlib.Path(__file__).parent / "typing"
PROJECT = SAMPLES.parent.parent / "pyproject.toml"


def sample(name: str) -> types.ModuleType:
    """Import one of the samples, whose directory is named like a module of the standard library."""
    spec = importlib.util.spec_from_file_location(name, SAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_type_checkers_look_at_the_samples() -> None:
    """Both of them, strictly: each ``assert_type`` and each error that is to be one is checked with the package."""
    tools = tomllib.loads(PROJECT.read_text())["tool"]
    assert {"sockserve", "tests/typing"} <= set(tools["mypy"]["files"])
    assert {"sockserve", "tests/typing"} <= set(tools["pyright"]["include"])
    assert tools["mypy"]["strict"] is True
    assert tools["pyright"]["typeCheckingMode"] == "strict"


def test_code_as_before_runs(tmp_path: pathlib.Path) -> None:
    """The servers of the sample can be made, and closed."""
    for server in sample("as_before").make_servers(str(tmp_path / "s")):
        server.server_close()


def test_code_with_types_runs() -> None:
    """A handler of the sample answers."""
    sample("with_types").try_it()
