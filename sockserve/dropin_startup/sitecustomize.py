"""Puts sockserve in the place of ``socketserver`` in a Python that starts with this directory on PYTHONPATH.

``python -m sockserve.dropin`` sets SOCKSERVE_DROPIN for the program that it runs, to "program" or "children". With
"children" the program's own child processes inherit the PYTHONPATH, but not that variable.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys

_DIRECTORY = os.path.dirname(os.path.abspath(__file__))


def _import_sockserve() -> None:
    """Import the sockserve that this file belongs to, installed or not, in a zip file or not; leave sys.path alone."""
    where = os.path.dirname(os.path.dirname(_DIRECTORY))
    spec = importlib.machinery.PathFinder.find_spec("sockserve", [where])
    if spec is None or spec.loader is None:
        raise ImportError(f"no sockserve in {where}")
    sys.modules["sockserve"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def _import_shadowed() -> None:
    """Import the sitecustomize that Python would have found without this one."""
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
    # A child may be any Python program: site reports the error in two lines, and the program runs as ever.
    raise
finally:
    _import_shadowed()
