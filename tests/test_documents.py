"""What the documents say is so: their code runs, their tables are the code's, their links lead somewhere."""

from __future__ import annotations

import os
import pathlib
import re
import runpy
import signal
import socketserver
import subprocess
import sys
import threading
import tomllib
import types
from typing import Any

import pytest
import test_words
from support.handlers import handlers
from support.under_test import LIMIT

import sockserve
from sockserve import testing
from sockserve.net import accept_errors
from sockserve.pytest_plugin import Running

ROOT = pathlib.Path(sockserve.__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
COMPATIBILITY = (ROOT / "docs/explanation/compatibility.md").read_text("utf-8")
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/NOTEBOOK.md")),
    *(ROOT / "docs").rglob("*.md"),
]


@pytest.mark.parametrize("model", [None, "pool"])
def test_the_program_in_the_readme_runs(model: str | None, tmp_path: pathlib.Path) -> None:
    """As it stands there, run as a script and by the command, but for the place that it listens on."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (command,) = re.findall(r"^    sockserve (.*)$", README, re.MULTILINE)
    path = f"unix:{tmp_path}/shout.sock"
    places = {"tcp://127.0.0.1:9000": "tcp://127.0.0.1:0", "unix:/tmp/shout.sock": path}
    for place, free in places.items():
        assert place in code
        assert place in command
        code, command = code.replace(place, free), command.replace(place, free)
    (tmp_path / "shout.py").write_text(code)
    arguments = ["shout.py"] if model is None else ["-m", "sockserve", *command.split()]
    assert model is None or ["--model", model] == arguments[-2:]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, *arguments], cwd=tmp_path, env=environment) as process:
        try:
            _wait_for(tmp_path / "shout.sock", process)
            assert testing.ask(path, b"hello\nyou\n") == b"HELLO\nYOU\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT) == 0
        finally:
            process.kill()


def _wait_for(path: pathlib.Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(int(LIMIT / 0.01)):
        try:
            testing.connect(f"unix:{path}").close()
        except OSError:
            try:
                process.wait(0.01)
            except subprocess.TimeoutExpired:
                continue
        else:
            return
        break
    raise TimeoutError(f"no server listens on {path}")


def test_the_pictures_are_those_of_their_source() -> None:
    """Each SVG file is what the program beside it draws, and there is no other."""
    folder = ROOT / "docs/pictures"
    drawn = runpy.run_path(str(folder / "draw.py"))["PICTURES"]
    assert {path.stem: path.read_text("utf-8") for path in folder.glob("*.svg")} == {
        name: draw().svg() for name, draw in drawn.items()
    }


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_a_document_speaks_of_things_and_of_its_reader(document: pathlib.Path) -> None:
    """Not of persons: with a concrete subject a sentence needs no second reading, as in ``test_words``."""
    lines = document.read_text("utf-8").splitlines()
    assert not [line for line in lines if test_words.FOUND.search(line)]


def test_examples_and_benchmarks_speak_of_things_too() -> None:
    """No docstring, comment or text of these programs has a person as its subject."""
    programs = [path for folder in ("examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    found = {path.name: test_words.persons(path.read_text("utf-8")) for path in programs}
    assert not {name: words for name, words in found.items() if words}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: pathlib.Path) -> None:
    """Every relative link names a file or a folder of the repository."""
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text("utf-8"))
    missing = [target for target in targets if "://" not in target and not (document.parent / target).exists()]
    assert not missing


def test_the_folders_in_the_architecture_are_those_of_the_package() -> None:
    """Each module that the listing and the table name is there, and no folder of the package is missing."""
    page = (ROOT / "docs/explanation/architecture.md").read_text("utf-8")
    listing = page.partition("```text\nsockserve/\n")[2].partition("```")[0]
    there = {path.stem for path in (ROOT / "sockserve").rglob("*.py")} | {f"{name}/" for name in _folders()}
    left = [re.split(r" {3,}", line.strip())[0] if re.match(r" {2,4}\S", line) else "" for line in listing.splitlines()]
    named = {name for column in left for name in column.split()}
    assert named <= there, named - there
    assert _folders() <= {name.rstrip("/") for name in named}
    table = page.partition("### Where a change belongs")[2].partition("\n## ")[0]
    paths = re.findall(r"`((?:concurrency|net|core|run|prefork|pool|cooperative)/\w+)`", table)
    files = [path.relative_to(ROOT).with_suffix("").as_posix() for path in (ROOT / "sockserve").rglob("*.py")]
    assert len(paths) > 10
    assert not [path for path in paths if not any(file.endswith(f"/{path}") for file in files)]


def _folders() -> set[str]:
    return {path.parent.name for path in (ROOT / "sockserve").rglob("*.py")} - {"sockserve", "dropin_startup"}


def test_a_request_takes_the_way_that_the_document_shows(running: Running) -> None:
    """The functions of its two lists are called in their order, those of a list in one thread."""
    page = (ROOT / "docs/explanation/life-of-a-request.md").read_text("utf-8").partition("function by function")[2]
    row = re.compile(r"^\| `([\w/]+)` \| `([\w.<>]+)` \|", re.MULTILINE)
    promised = [row.findall(part) for part in page.split("In the request's")]
    assert [len(each) > 8 for each in promised] == [True, True]
    called: dict[int, list[tuple[str, str]]] = {}

    def note(frame: types.FrameType, event: str, _: object) -> None:
        module = frame.f_code.co_filename.partition(f"{ROOT}/sockserve/")[2].removesuffix(".py")
        if event == "call" and module:
            called.setdefault(threading.get_ident(), []).append((module, frame.f_code.co_qualname))

    before = threading.getprofile()
    threading.setprofile(note)
    try:
        server = running(sockserve.ThreadingTCPServer(("127.0.0.1", 0), handlers(sockserve).EchoStream))
        assert testing.ask(server, b"hello\n") == b"hello\n"
        assert server.wait_idle(LIMIT)
        server.shutdown()
    finally:
        threading.setprofile(before)
    for functions in promised:
        assert any(_in_this_order(functions, calls) for calls in called.values()), (functions, called)


def _in_this_order(wanted: list[tuple[str, str]], calls: list[tuple[str, str]]) -> bool:
    rest = iter(calls)
    return all(each in rest for each in wanted)


def test_where_pypi_shows_the_readme_its_links_are_absolute() -> None:
    """Each relative link becomes one to the project's source, and none is left; what it named is there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    hook = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    shown = README
    for each in hook["substitutions"]:
        shown = re.sub(each["pattern"], each["replacement"], shown)
    source = project["project"]["urls"]["Source"] + "/"
    targets = re.findall(r"\]\(([^)]*)\)", shown)
    own = [target.removeprefix(source) for target in targets if target.startswith(source)]
    assert len(own) > 5
    assert not [target for target in targets if not re.match("https?://", target)]
    assert not [target for target in own if not (ROOT / target).exists()]
    assert re.search(r"!\[[^]]+\]\(https?://", shown)
    urls = [url.removeprefix(source) for url in project["project"]["urls"].values() if url.startswith(source)]
    assert not [url for url in urls if not (ROOT / url).exists()]


def test_what_is_said_to_be_tested_is_what_ci_runs() -> None:
    """The README names the Pythons of .ci/run, as the hosted workflow does; the classifiers have all that it names."""
    script = (ROOT / ".ci/run").read_text("utf-8")
    (versions,) = re.findall(r'^VERSIONS="([\d. ]+)"$', script, re.MULTILINE)
    in_ci = versions.split()
    workflow = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    assert sorted(re.findall(r"^ +(3\.\d+)$", workflow, re.MULTILINE)) == in_ci
    assert "run: bash .ci/run\n" in workflow
    section = README.partition("\n## Where it runs\n")[2].partition("\n## ")[0]
    each_change, by_hand = (
        re.findall(rf"^\| {when} \| (.*?) \|", section, re.MULTILINE) for when in ("each change", "by hand")
    )
    assert re.findall(r"3\.\d+", each_change[0]) == in_ci
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["classifiers"]
    named = [each.rpartition(" ")[2] for each in classifiers if re.search(r"Python :: 3\.\d+$", each)]
    assert named == in_ci + [each for each in re.findall(r"3\.\d+(?!\d|t)", by_hand[0]) if each not in in_ci]
    assert [each for each in classifiers if each.startswith("Operating System")] == [
        "Operating System :: POSIX :: Linux"
    ]


def test_the_table_of_accept_errors_is_the_codes() -> None:
    """Each error has its row, with the verdict that the loop follows; there are no others."""
    document = (ROOT / "docs/explanation/accept-errors.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(E\w+)` \| ([\w ]+?) \|", document, re.MULTILINE))
    assert rows == {name: verdict.value for name, verdict in accept_errors._VERDICTS.items()}
    assert {f"*{verdict.value}*: " for verdict in accept_errors.Verdict} <= set(re.findall(r"\*[\w ]+\*: ", document))


def _changed_defaults() -> set[str]:
    changed = set()
    for name in socketserver.__all__:
        theirs: Any = getattr(socketserver, name)
        ours: Any = getattr(sockserve, name)
        for attribute in dir(theirs):
            before, now = getattr(theirs, attribute), getattr(ours, attribute, None)
            if not attribute.startswith("__") and not callable(before) and before != now:
                changed.add(attribute)
    return changed


def test_every_changed_default_is_in_the_table() -> None:
    """An attribute that has another value than in the standard library is in the compatibility table."""
    changed = _changed_defaults()
    assert {"allow_reuse_address", "max_packet_size"} <= changed
    rows = [line for line in COMPATIBILITY.splitlines() if line.startswith("| ")]
    assert not {name for name in changed if not any(f"`{name}`" in row.split("|")[2] for row in rows)}


def test_who_migrates_is_told_of_every_difference() -> None:
    """The tables of the how-to page have a row for each row of the explanation's, under the same heading and name."""

    def rows(document: str, column: int) -> list[str]:
        lines = re.findall(r"^(?:#+ .*|\|.*)$", document, re.MULTILINE)
        return [line.strip("# ") if line.startswith("#") else line.split("|")[column].strip() for line in lines]

    listed = rows(COMPATIBILITY.partition("\nNew, and in no program's way")[0], 2)
    migrate = rows((ROOT / "docs/how-to/migrate.md").read_text("utf-8"), 1)
    first, last = migrate.index("Defaults"), migrate.index("What you can remove")
    assert migrate[first:last] == listed[listed.index("Defaults") :]


def test_every_new_name_is_in_the_document() -> None:
    """What a subclass could collide with, a public name that the standard library's class lacks, is listed."""
    new = {
        attribute
        for name in socketserver.__all__
        for attribute in dir(getattr(sockserve, name))
        if not attribute.startswith("_") and not hasattr(getattr(socketserver, name), attribute)
    }
    assert not {name for name in new if not re.search(rf"`{name}[`(]", COMPATIBILITY)}


def test_every_repaired_flaw_is_in_the_table() -> None:
    """Each test of a flaw is named in a row, and each row names tests that exist."""
    sources = [path.read_text("utf-8") for path in (ROOT / "tests").glob("test_flaws_*.py")]
    tested = {flaw for source in sources for flaw in re.findall(r"def test_([A-Z]\d+b?)_", source)}
    # Cured in the standard library too, and tested to stay so.
    tested -= {"L15", "L16", "T1", "H5"}
    listed = {
        flaw
        for line in COMPATIBILITY.splitlines()
        if line.startswith("| ")
        for flaw in re.findall(r"\b[LTFHS]\d+b?\b", line.split("|")[1])
    } | set(re.findall(r"\(([LTFHS]\d+)\)", COMPATIBILITY))
    assert listed == tested
