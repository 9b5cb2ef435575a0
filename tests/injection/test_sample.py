"""A sample of all injections leaves every server in order; which ones they are another seed decides each time."""

from __future__ import annotations

import os
import pathlib
import random
import subprocess
import sys

import pytest
from support.under_test import LIMIT

TRIES = 100
"""Places of one sample: each Python and each run tries others."""

SECONDS = 30.0
"""Of processor time, after which no more are tried."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each injection needs a process of its own, by fork(2)")
def test_a_sample_of_injections_finds_nothing() -> None:
    """At a sample of places a call fails or a signal comes, and nothing hangs, nothing is left, clients are served."""
    seed = os.environ.get("INJECTION_SEED") or str(random.SystemRandom().randrange(10**6))
    command = [sys.executable, str(pathlib.Path(__file__).with_name("run.py")), "--seed", seed, "--tries", str(TRIES)]
    done = subprocess.run(
        [*command, "--seconds", str(SECONDS), "--limit", str(LIMIT / 2)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"again with INJECTION_SEED={seed}:\n{done.stdout}"
