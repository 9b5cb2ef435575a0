"""What would be published, built and tried as its users would.

The source archive and the wheel are built into ``dist/``, the wheel from the archive. Then the wheel goes into a new
environment, with what it requires and nothing else, and has to import, serve and answer there; and the archive has to
bring along all that its tests are made of.
"""

from __future__ import annotations

import contextlib
import email.message
import email.parser
import email.policy
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIST = ROOT / "dist"

# Nothing of the checkout's, or of the shell that runs this, has a say in what is tried.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}

LIMIT_SECONDS = 300
"""Ends what hangs; most of the time pip downloads."""

ONE_EACH = ("Name", "Version", "Summary", "Description-Content-Type", "Requires-Python", "License-Expression", "Author")
SEVERAL = ("Classifier", "License-File", "Project-URL", "Provides-Extra", "Requires-Dist")


def main() -> None:
    """Build, look and try. AssertionError says what is wrong."""
    for old in DIST.glob("*"):
        old.unlink()
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT)
    (archive,) = DIST.glob("*.tar.gz")
    (wheel,) = DIST.glob("*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", archive, wheel)
    version = check_metadata(wheel)
    check_contents(archive, wheel)
    with tempfile.TemporaryDirectory() as directory:
        place = pathlib.Path(directory)
        venv.create(place / "venv")
        programs = place / "venv" / ("Scripts" if os.name == "nt" else "bin")
        pip(programs, "install", "--quiet", wheel)
        check_installed(place, programs, version)
        pip(programs, "install", "--quiet", f"{wheel}[test]")
        check_tests(place, programs, archive)
    print(f"{archive.name} and {wheel.name} are complete; the wheel installs, imports and answers.")


def run(*command: object, cwd: pathlib.Path | None = None) -> str:
    """Run a program and return what it prints. If it fails, show that and exit."""
    ended = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    if ended.returncode:
        sys.exit(f"{ended.stdout}\nFAILED (status {ended.returncode}): {' '.join(map(str, command))}")
    return ended.stdout


def pip(programs: pathlib.Path, *arguments: object) -> None:
    """Do what pip does, in an environment that has none of its own, so that it takes no time to make."""
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", programs / "python", *arguments)


def check_metadata(wheel: pathlib.Path) -> str:
    """Return the version. Fails if a field is missing, or if the change log knows nothing of a release."""
    with zipfile.ZipFile(wheel) as files:
        (name,) = [name for name in files.namelist() if name.endswith(".dist-info/METADATA")]
        text = files.read(name).decode("utf-8")
    metadata: email.message.EmailMessage = email.parser.Parser(policy=email.policy.default).parsestr(text)
    missing = [field for field in (*ONE_EACH, *SEVERAL) if not metadata.get(field)]
    assert not missing, f"the metadata lacks {missing}"
    places = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL") or ())
    described = str(metadata.get_payload()).strip()
    relative = re.findall(r"\]\((?!https?://)[^)]*\)", described)
    assert not relative, f"links that PyPI cannot follow: {relative}"
    as_written = described.replace(f"]({places['Source']}/", "](")
    assert as_written == (ROOT / "README.md").read_text("utf-8").strip(), "the description is not README.md"
    if ".example/" in places["Source"]:
        print("Not to be uploaded yet: [project.urls] still has the name that stands for none.")
    version = str(metadata["Version"])
    is_release = re.fullmatch(r"[\d.]+", version)
    entry = re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changes(), re.MULTILINE)
    assert not is_release or entry, f"CHANGELOG.md has no '## [{version}] - YYYY-MM-DD'"
    return version


def changes() -> str:
    """The change log."""
    return (ROOT / "CHANGELOG.md").read_text("utf-8")


def check_contents(archive: pathlib.Path, wheel: pathlib.Path) -> None:
    """The wheel has the package, whole, and nothing else; the archive has all that is in the repository."""
    package = {name for name in repository() if name.startswith("sockserve/")}
    with zipfile.ZipFile(wheel) as files:
        in_wheel = {name for name in files.namelist() if ".dist-info/" not in name}
    assert in_wheel == package, f"wheel and package differ by {in_wheel ^ package}"
    with tarfile.open(archive) as files:
        in_archive = {member.name.partition("/")[2] for member in files.getmembers()}
    wanted = {name for name in repository() if not name.startswith(".")}
    assert not wanted - in_archive, f"the source archive lacks {wanted - in_archive}"


def repository() -> set[str]:
    """The names of the files under version control."""
    return set(run("git", "-C", ROOT, "ls-files").splitlines())


def check_installed(place: pathlib.Path, programs: pathlib.Path, version: str) -> None:
    """What was installed agrees with itself, imports without an extra, says its version, and serves a client."""
    pip(programs, "check")
    said = run(programs / "python", "-W", "error", "-c", "import sockserve; print(sockserve.__version__)", cwd=place)
    assert said.strip() == version, said
    commands: list[list[str | pathlib.Path]] = [[programs / "python", "-m", "sockserve"], [programs / "sockserve"]]
    for command in commands:
        with serving(command, place) as address:
            answer = run(programs / "python", "-m", "sockserve.client", address, "--line", "Hello!", cwd=place)
            assert answer == "Hello!\n", answer


@contextlib.contextmanager
def serving(command: list[str | pathlib.Path], place: pathlib.Path) -> Iterator[str]:
    """Run the built-in server for the time of a block, which gets its address; it has to end by SIGTERM, with 0."""
    with subprocess.Popen(command, cwd=place, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            first = process.stdout.readline()
            address = re.search(r"tcp://\S+", first)
            assert address, f"{command} said {first!r}"
            yield address[0]
            process.terminate()
            assert process.wait(LIMIT_SECONDS) == 0, f"{command} did not end well"
        finally:
            process.kill()


def check_tests(place: pathlib.Path, programs: pathlib.Path, archive: pathlib.Path) -> None:
    """The tests in the source archive can all be imported."""
    with tarfile.open(archive) as files:
        files.extractall(place, filter="data")
    source = place / archive.name.removesuffix(".tar.gz")
    collected = run(programs / "python", "-m", "pytest", "--collect-only", "--quiet", cwd=source)
    print("The source archive's tests:", collected.strip().splitlines()[-1])


if __name__ == "__main__":
    try:
        main()
    except AssertionError as error:
        sys.exit(f"FAILED: {error}")
