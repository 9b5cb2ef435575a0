"""Puts sockserve in the place of ``socketserver`` in a Python that starts with this directory on PYTHONPATH.

``python -m sockserve.dropin`` sets SOCKSERVE_DROPIN for the program that it runs, to "program" or "children". The
program's own child processes, reached through the PYTHONPATH that they inherit, do not have it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

_DIRECTORY = os.path.dirname(os.path.abspath(__file__))


def _import_sockserve() -> None:
    """Import the sockserve that this file belongs to, be it installed or not, and leave sys.path alone."""
    path = os.path.join(os.path.dirname(_DIRECTORY), "__init__.py")
    spec = importlib.util.spec_from_file_location("sockserve", path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    sys.modules["sockserve"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def _import_shadowed() -> None:
    """Import the sitecustomize that would have been found without this one."""
    this = sys.modules.pop(__name__)
    sys.path.remove(_DIRECTORY)
    try:
        importlib.import_module(__name__)
    except ModuleNotFoundError as error:
        if error.name != __name__:
            raise
        sys.modules[__name__] = this


_mode = os.environ.pop("SOCKSERVE_DROPIN", None)
if _mode == "program":
    _rest = os.environ["PYTHONPATH"].partition(os.pathsep)[2]
    if _rest:
        os.environ["PYTHONPATH"] = _rest
    else:
        del os.environ["PYTHONPATH"]
try:
    if "sockserve" not in sys.modules:
        _import_sockserve()
    importlib.import_module("sockserve.dropin").install()
except Exception as error:
    if _mode is not None:
        # An exception would let the program run, with the old socketserver.
        sys.stderr.write(f"sockserve.dropin: {type(error).__name__}: {error}\n")
        os._exit(1)
    # A child may be any Python: site reports this in two lines, and it runs as it would have run.
    raise
finally:
    _import_shadowed()
