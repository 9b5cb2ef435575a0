"""Programs that run as a process of their own, with the module under test as ``S``."""

from __future__ import annotations

import os
import subprocess
import sys

from support.programs import SEARCH_PATH
from support.under_test import LIMIT, NAME

__all__ = ["run_script"]


def run_script(program: str, timeout: float = LIMIT) -> str:
    """Return what a program prints. CalledProcessError: it failed; TimeoutExpired: it took longer than that."""
    environment = {**os.environ, "PYTHONPATH": SEARCH_PATH}
    # What it prints is to be buffered, as it is for users.
    environment.pop("PYTHONUNBUFFERED", None)
    command = [sys.executable, "-c", f"import {NAME} as S\n{program}"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True, timeout=timeout)
    return done.stdout
