"""The drop-in around a program: it sees what Python would have shown it, and its children get sockserve too."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterator

import pytest
from support.pythons import ENVIRONMENT, PACKAGE, python
from support.under_test import LIMIT

# All that a program can see of how it was started.
PROBE = """\
import json, os, sys
print(json.dumps({
    "main": {name: str(value) for name, value in sorted(vars().items()) if name not in ("json", "os", "sys")},
    "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path, "flags": str(sys.flags), "xoptions": sys._xoptions,
    "warnings": sys.warnoptions, "environment": dict(os.environ), "parent": os.getppid(),
}))
sys.exit(3)
"""
# Prints who supplies socketserver in this process and in one that it starts.
SUPPLIERS = """\
import socketserver, subprocess, sys
print(socketserver.TCPServer.__module__, flush=True)
if sys.argv[1:]:
    subprocess.run([sys.executable, sys.argv[0], *sys.argv[2:]], check=True)
"""


@pytest.fixture
def copy(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A directory with a copy of the package in it, for changes; the current directory meanwhile."""
    shutil.copytree(PACKAGE, tmp_path / "sockserve", ignore=shutil.ignore_patterns("__pycache__"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        yield tmp_path


@pytest.fixture(params=["script", "-m", "-c", "directory", "zip", "stdin"])
def program(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> tuple[list[str], str]:
    """Each way to name a program to Python: the arguments, and the input."""
    directory = tmp_path / "directory"
    directory.mkdir()
    for name in ("__main__.py", "program.py"):
        (directory / name).write_text(PROBE)
    archive = tmp_path / "program.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(directory / "__main__.py", "__main__.py")
    ways = {
        "script": [str(directory / "program.py")],
        "-m": ["-m", "directory.program"],
        "-c": ["-c", PROBE],
        "directory": [str(directory)],
        "zip": [str(archive)],
        "stdin": ["-"],
    }
    return [*ways[request.param], "--children", "-h", "x y"], PROBE if request.param == "stdin" else ""


def test_a_program_sees_what_python_would_have_shown_it(
    program: tuple[list[str], str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arguments, path, main module, flags, environment and exit status are those of a plain start."""
    arguments, text = program
    monkeypatch.chdir(tmp_path)
    options = ["-X", "dev", "-W", "ignore"]
    plain, ours = (python(*options, *extra, *arguments, text=text) for extra in ([], ["-m", "sockserve.dropin"]))
    assert plain.returncode == 3, plain.stderr
    assert ours.returncode == 3, ours.stderr
    seen, expected = json.loads(ours.stdout), json.loads(plain.stdout)
    for each in (seen, expected):
        for name in ("__loader__", "__spec__"):  # Their text has an address in memory.
            each["main"][name] = each["main"][name].partition(" object at ")[0]
    assert seen == expected


@pytest.mark.parametrize(
    "code",
    [
        "raise SystemExit(7)",
        "raise SystemExit('a message')",
        "def f(): raise ValueError(1)\nf()",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
        "syntax error",
    ],
)
def test_a_program_ends_as_it_would_under_python(code: str) -> None:
    """Exit status, deadly signals and tracebacks are the same."""
    plain, ours = python("-c", code), python("-m", "sockserve.dropin", "-c", code)
    assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)
    assert plain.returncode != 0


@pytest.mark.parametrize("start", [["-um", "sockserve.dropin"], ["-u", "-msockserve.dropin"], ["-umsockserve.dropin"]])
def test_options_of_python_stay_however_they_are_written(start: list[str]) -> None:
    """An option in the same argument as -m is not lost with it."""
    run = python(*start, "-c", "import sys, socketserver as s; print(sys.orig_argv[1:3], s.BaseServer.__module__)")
    assert run.stdout.startswith("['-u', '-c'] sockserve"), run.stderr


@pytest.mark.parametrize(
    ("options", "suppliers"),
    [([], ["sockserve", "socketserver", "socketserver"]), (["--children"], ["sockserve", "sockserve", "sockserve"])],
    ids=["alone", "--children"],
)
def test_children_are_replaced_on_demand(options: list[str], suppliers: list[str], tmp_path: pathlib.Path) -> None:
    """With --children a program's child and that one's child have sockserve too, else the program only."""
    script = tmp_path / "program.py"
    script.write_text(SUPPLIERS)
    run = python("-m", "sockserve.dropin", *options, script, "child", "grandchild")
    assert run.stdout.split() == suppliers, run.stderr


def test_a_program_without_children_option_in_one_with_it(tmp_path: pathlib.Path) -> None:
    """The inner one takes back only its own part of PYTHONPATH."""
    script = tmp_path / "program.py"
    script.write_text(SUPPLIERS)
    inner = f"""
import subprocess, sys
subprocess.run([sys.executable, "-m", "sockserve.dropin", {str(script)!r}, "child"], check=True)
"""
    run = python("-m", "sockserve.dropin", "--children", "-c", inner)
    assert run.stdout.split() == ["sockserve", "sockserve"], run.stderr


def test_children_find_the_sockserve_that_their_parent_found(copy: pathlib.Path) -> None:
    """It need not be installed, nor on the path of the child, nor does it get there."""
    child = "import sys, sockserve; print(sockserve.__file__, sys.path)"
    code = f"import os, subprocess, sys; os.chdir('/'); subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = python("-m", "sockserve.dropin", "--children", "-c", code, environment=environment)
    assert run.stdout.startswith(str(copy / "sockserve" / "__init__.py")), run.stderr
    assert str(copy) not in run.stdout.partition(" ")[2]


def test_the_sitecustomize_of_the_machine_runs_too(tmp_path: pathlib.Path) -> None:
    """What the drop-in's own shadows is imported after it, under its name; of ours nothing is left to see."""
    (tmp_path / "sitecustomize.py").write_text("import http.server")
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PACKAGE.parent}"}
    code = """
import sys, sitecustomize
print(sitecustomize.__file__, sitecustomize.http.server.HTTPServer.__base__.__module__)
assert not any("dropin_startup" in entry for entry in sys.path)
"""
    run = python("-m", "sockserve.dropin", "-c", code, environment=environment)
    assert run.stdout.split() == [str(tmp_path / "sitecustomize.py"), "sockserve"], run.stderr


def test_an_error_in_the_sitecustomize_of_the_machine_is_reported_as_ever(tmp_path: pathlib.Path) -> None:
    """Python says what is wrong with it and goes on, with the drop-in in force."""
    (tmp_path / "sitecustomize.py").write_text("import no_such_module")
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PACKAGE.parent}"}
    code = "import socketserver; print(socketserver.BaseServer.__module__)"
    plain, run = (python(*extra, "-c", code, environment=environment) for extra in ([], ["-m", "sockserve.dropin"]))
    assert (plain.stdout, run.stdout) == ("socketserver\n", "sockserve\n")
    assert "no_such_module" in plain.stderr
    # Once for the Python that only prepares the start, once for the program's.
    assert run.stderr == 2 * plain.stderr


@pytest.mark.parametrize(("option", "child"), [([], "socketserver"), (["--children"], "sockserve")])
def test_it_works_from_a_zip_file(
    option: list[str], child: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that Python imports from an archive is found there by the program, and by its children if asked for."""
    archive = tmp_path / "packages.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in PACKAGE.rglob("*.py"):
            file.write(path, path.relative_to(PACKAGE.parent))
    script = tmp_path / "suppliers.py"
    # Not the package in the current directory, nor an installed one.
    monkeypatch.chdir(tmp_path)
    script.write_text(f"{SUPPLIERS}import sockserve\nassert {str(archive)!r} in sockserve.__file__\n")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(archive)}
    run = python("-m", "sockserve.dropin", *option, str(script), "child", environment=environment)
    assert (run.returncode, run.stdout.split()) == (0, ["sockserve", child]), run.stderr


def test_a_program_does_not_run_if_the_drop_in_cannot_work(copy: pathlib.Path) -> None:
    """Status 1 and a line that says why, where socketserver's classes are in use when the program is to start."""
    with (copy / "sockserve" / "__init__.py").open("a") as file:
        file.write('\nimport sys\nif "sockserve.dropin" not in sys.orig_argv:\n    import http.server\n')
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = python("-m", "sockserve.dropin", "-c", "print('ran')", environment=environment)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("sockserve.dropin: DropInError: cannot replace socketserver")
    assert run.stderr.count("\n") == 1


def test_a_child_runs_even_if_the_drop_in_cannot_work(copy: pathlib.Path) -> None:
    """Python reports why; a child may be a program for which nobody meant the drop-in."""
    with (copy / "sockserve" / "__init__.py").open("a") as file:
        file.write('\nimport sys\nif "the child" in sys.orig_argv:\n    import http.server\n')
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(\"ran\")', 'the child'], check=True)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = python("-m", "sockserve.dropin", "--children", "-c", code, environment=environment)
    assert (run.returncode, run.stdout) == (0, "ran\n")
    assert "DropInError: cannot replace socketserver" in run.stderr


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ([], [], "name a program to run"),
        ([], ["--children"], "name a program to run"),
        ([], ["--child", "x.py"], "unrecognized arguments: --child"),
        ([], ["-x", "x.py"], "unrecognized option: -x"),
        (["-E"], ["x.py"], "does not work under python -E, -I or -S"),
        (["-S"], ["x.py"], "does not work under python -E, -I or -S"),
    ],
)
def test_wrong_usage_exits_with_2(
    before: list[str], after: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what is wrong, after a line with the usage."""
    # -E hides what is on PYTHONPATH, -S what is installed: the package is found in the current directory.
    monkeypatch.chdir(PACKAGE.parent)
    run = python(*before, "-m", "sockserve.dropin", *after)
    assert run.returncode == 2, run.stderr
    assert run.stderr.startswith("usage: python -m sockserve.dropin [-h] [--children] (-m MODULE")
    assert complaint in run.stderr


def test_help_shows_examples_that_are_commands() -> None:
    """-h and --help print to stdout; each example names this program and one to run."""
    short, long = (python("-m", "sockserve.dropin", option) for option in ("-h", "--help"))
    assert (short.returncode, short.stdout) == (long.returncode, long.stdout) == (0, short.stdout)
    examples = [line.split() for line in long.stdout.partition("examples:")[2].splitlines() if line]
    assert len(examples) >= 3
    for words in examples:
        assert words[0] == "python"
        assert "sockserve.dropin" in words[:-1]


def test_the_web_server_of_the_standard_library_answers(tmp_path: pathlib.Path) -> None:
    """Run by the drop-in, http.server serves a file, and ends at Ctrl-C as it always did."""
    (tmp_path / "greeting.txt").write_text("hello")
    command = ["-um", "sockserve.dropin", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", tmp_path]
    with subprocess.Popen(
        [sys.executable, *command], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().split()[5]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/greeting.txt", timeout=LIMIT) as answer:
                assert answer.read() == b"hello"
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert "Keyboard interrupt received" in output
    assert "GET /greeting.txt" in errors


@pytest.mark.parametrize(
    ("before", "after", "is_told"),
    [([], [], True), (["--children"], [], False), ([], ["--noreload"], False)],
    ids=["reloading", "--children", "--noreload"],
)
def test_a_server_that_reloads_is_told_of_children(
    before: list[str], after: list[str], is_told: bool, tmp_path: pathlib.Path
) -> None:
    """Django's ``runserver`` serves in a child: without ``--children`` one line says that it has no drop-in."""
    (tmp_path / "manage.py").write_text("")
    run = python("-m", "sockserve.dropin", *before, str(tmp_path / "manage.py"), "runserver", *after)
    assert run.returncode == 0
    assert ("--children" in run.stderr) is is_told
    assert run.stderr.count("\n") == is_told
