"""The directory a program was started in, by its name in the shell: a symbolic link may name another one later.

A process keeps the directory itself, not its name (path_resolution(7)); the name is in the environment as PWD (POSIX,
"Environment Variables"). Deployments switch such a link from one release of a program to the next.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys

from sockserve.run.loading import installed_places

__all__ = ["WorkingDirectory"]


class WorkingDirectory:
    """The working directory at the time this is made. ``follow()`` is for the main thread of a new worker process."""

    def __init__(self) -> None:
        self._name: str | None = None
        """What the shell calls it; None: PWD does not name it."""
        name = os.environ.get("PWD", "")
        # It may have been removed, and PWD may be anything.
        with contextlib.suppress(OSError, ValueError):
            self._path = os.getcwd()
            self._status = os.stat(".")
            if os.path.isabs(name) and os.path.samestat(os.stat(name), self._status):
                self._name = name

    def follow(self) -> None:
        """Go where its name leads at this moment, and let what ``sys.path`` has below it be found there.

        Does nothing if the name leads nowhere, or if the program itself has gone to another directory since. Raises
        OSError for a directory that this process may not enter.
        """
        if self._name is None or not os.path.samestat(os.stat("."), self._status):
            return
        try:
            if os.path.samestat(os.stat(self._name), self._status):
                return
            os.chdir(self._name)
        except FileNotFoundError:
            return
        here = pathlib.Path.cwd()
        installed = installed_places()
        for index, entry in enumerate(sys.path):
            path = pathlib.Path(entry)
            # "" and other relative ones mean the new directory already. A virtual environment stays the one that runs.
            if path.is_relative_to(self._path) and not any(path.is_relative_to(place) for place in installed):
                sys.path[index] = str(here / path.relative_to(self._path))
