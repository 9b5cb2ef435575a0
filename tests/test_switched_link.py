"""A rolling restart after the link that the program was started in was switched to a new release."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator

import pytest
from support.programs import SEARCH_PATH
from support.under_test import LIMIT
from support.waiting import wait_until

from sockserve import testing

HANDLER = """
import sockserve, os, {imports}

class Handler(sockserve.StreamRequestHandler):
    def handle(self):
        self.wfile.write({imports}.TEXT + b" in " + os.path.basename(os.fsencode(os.getcwd())))
"""


def release(directory: pathlib.Path, text: str, imports: str = "version") -> None:
    """The files of a release: a handler, and what it imports."""
    module = directory.joinpath(*imports.split(".")).with_suffix(".py")
    module.parent.mkdir(parents=True)
    (directory / "orders.py").write_text(HANDLER.format(imports=imports))
    module.write_text(f"TEXT = b'{text}'")


def switch(link: pathlib.Path, name: str) -> None:
    """Let the link name another directory, in one step."""
    following = link.with_name("following")
    following.symlink_to(name)
    following.replace(link)


@contextlib.contextmanager
def serving(directory: pathlib.Path, path: str, **environment: str) -> Generator[subprocess.Popen[str]]:
    """The command, started in a directory, with PWD as a shell has it."""
    search = os.pathsep.join(filter(None, (environment.pop("before", ""), SEARCH_PATH)))
    environment = {"PWD": str(directory), "PYTHONPATH": search, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    arguments = "--processes", "1", "--log-level", "info", "orders:Handler", path
    with subprocess.Popen(
        [sys.executable, "-m", "sockserve", *arguments],
        cwd=directory,
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert "Listening" in process.stdout.readline()
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT) == 0
        finally:
            process.kill()


def said(path: str) -> bytes:
    """What a worker says, however long it takes to start."""
    return testing.ask(path, b"", timeout=LIMIT)


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("imports", ["version", "shop.version"])
def test_new_workers_are_of_the_release_that_the_link_names(
    tmp_path: pathlib.Path, imports: str, removed: bool
) -> None:
    """Each time it is switched, the last release kept or removed; also what is in a package without __init__.py."""
    for name in ("one", "two", "three"):
        release(tmp_path / name, name, imports)
    link = tmp_path / "current"
    link.symlink_to("one")
    path = f"unix:{tmp_path}/s"
    with serving(link, path) as process:
        assert said(path) == b"one in one"
        for old, new in (("one", "two"), ("two", "three")):
            switch(link, new)
            if removed:
                shutil.rmtree(tmp_path / old)
            process.send_signal(signal.SIGHUP)
            wait_until(lambda new=new: said(path) == b"%b in %b" % (new.encode(), new.encode()))


@pytest.mark.parametrize("removed", [False, True])
def test_what_pythonpath_has_below_the_directory_is_of_the_new_release(tmp_path: pathlib.Path, removed: bool) -> None:
    """Python makes its relative entries absolute as it starts."""
    for name in ("one", "two"):
        release(tmp_path / name, "unused")
        (tmp_path / name / "version.py").unlink()
        (tmp_path / name / "lib").mkdir()
        (tmp_path / name / "lib" / "version.py").write_text(f"TEXT = b'{name}'")
    link = tmp_path / "current"
    link.symlink_to("one")
    path = f"unix:{tmp_path}/s"
    with serving(link, path, before="lib") as process:
        assert said(path) == b"one in one"
        switch(link, "two")
        if removed:
            shutil.rmtree(tmp_path / "one")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: said(path) == b"two in two")


@pytest.mark.parametrize("name", ["", "current", "/", "/nowhere/at/all"])
def test_a_pwd_that_does_not_name_the_directory_is_not_followed(tmp_path: pathlib.Path, name: str) -> None:
    """New workers stay where the program was started, and load what is there."""
    release(tmp_path / "one", "one")
    path = f"unix:{tmp_path}/s"
    with serving(tmp_path / "one", path, PWD=name) as process:
        assert said(path) == b"one in one"
        (tmp_path / "one" / "version.py").write_text("TEXT = b'another'")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: said(path) == b"another in one")


def test_a_directory_that_is_renamed_is_followed_by_its_name(tmp_path: pathlib.Path) -> None:
    """A release may be exchanged without a link: the old one renamed, the new one given its name."""
    for name in ("current", "two"):
        release(tmp_path / name, name)
    path = f"unix:{tmp_path}/s"
    with serving(tmp_path / "current", path) as process:
        assert said(path) == b"current in current"
        (tmp_path / "current").rename(tmp_path / "one")
        (tmp_path / "two").rename(tmp_path / "current")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: said(path) == b"two in current")


def test_a_link_that_leads_nowhere_changes_nothing(tmp_path: pathlib.Path) -> None:
    """New workers stay in the release that is there."""
    release(tmp_path / "one", "one")
    link = tmp_path / "current"
    link.symlink_to("one")
    path = f"unix:{tmp_path}/s"
    with serving(link, path) as process:
        assert said(path) == b"one in one"
        switch(link, "two")
        (tmp_path / "one" / "version.py").write_text("TEXT = b'another'")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: said(path) == b"another in one")
