"""Fresh Pythons, for what a program does as a whole."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

from support.under_test import LIMIT

import sockserve

__all__ = ["ENVIRONMENT", "PACKAGE", "python", "succeed"]

PACKAGE = pathlib.Path(sockserve.__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}


def python(
    *arguments: str | os.PathLike[str], text: str = "", environment: dict[str, str] = ENVIRONMENT
) -> subprocess.CompletedProcess[str]:
    """What came of a Python with these arguments, and with this text as its input."""
    return subprocess.run(
        [sys.executable, *arguments],
        input=text,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3 * LIMIT,
        check=False,
    )


def succeed(code: str) -> str:
    """The output of a fresh Python that runs the code to its end."""
    run = python("-c", code)
    assert run.returncode == 0, run.stderr
    return run.stdout
