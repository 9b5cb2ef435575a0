"""Which module is under test: sockserve, or with ``SOCKSERVE_UNDER_TEST=socketserver`` the one that it replaces."""

from __future__ import annotations

import importlib
import os
from typing import Any

__all__ = ["IS_STDLIB", "LIMIT", "S"]

NAME = os.environ.get("SOCKSERVE_UNDER_TEST", "sockserve")

S: Any = importlib.import_module(NAME)
"""The module under test."""

IS_STDLIB = NAME == "socketserver"
"""Whether the tests of flaws are to fail, because they run against the module that has these flaws."""

LIMIT = 2.0 if IS_STDLIB else 60.0
"""Seconds after which a wait is given up. Only a test that fails waits that long, and against the stdlib many do."""
