"""Gopher (RFC 1436): the current directory as menus and files.

    python examples/gopher.py tcp://127.0.0.1:7070
    curl gopher://127.0.0.1:7070/
    python examples/gopher_client.py gopher://127.0.0.1:7070/

A client names a path, and may name any: ``..``, an absolute one, a link that leads out. So the path is resolved first,
then judged by where it leads, and only regular files and directories are opened. A file is sent piece by piece,
whatever its size.
"""

from __future__ import annotations

import logging
import mimetypes
import os
import pathlib
import shutil
import sys

import sockserve

LONGEST_SELECTOR = 1024


class Gopher(sockserve.StreamRequestHandler):
    """Serves what is in ``root``, but nothing that begins with a dot."""

    root = pathlib.Path.cwd().resolve()
    client_speaks_first = True
    timeout = 30
    wbufsize = -1

    def handle(self) -> None:
        """Answer one selector."""
        line = self.rfile.readline(LONGEST_SELECTOR + 1)
        path = self.find(line) if line.endswith(b"\n") else None
        if path is None:
            self.wfile.write(b"3Not found\t\terror.host\t1\r\n.\r\n")
        elif path.is_dir():
            self.send_menu(path)
        else:
            with path.open("rb") as file:
                shutil.copyfileobj(file, self.wfile)

    def find(self, line: bytes) -> pathlib.Path | None:
        """Give the path that a selector leads to, if that may be served."""
        try:
            path = pathlib.Path(os.path.realpath(self.root / line.rstrip(b"\r\n").decode().lstrip("/")))
            hidden = any(part.startswith(".") for part in path.relative_to(self.root).parts)
            return path if not hidden and (path.is_dir() or path.is_file()) else None
        except (ValueError, OSError):  # Not UTF-8, a NUL, outside the root; a name that is too long.
            return None

    def send_menu(self, directory: pathlib.Path) -> None:
        """Send a line for each entry: its type, its name, and where it is to be had."""
        host, port = self.connection.getsockname()[:2]
        for path in sorted(directory.iterdir()):
            selector = path.relative_to(self.root).as_posix()
            if selector.isprintable() and self.find(selector.encode()) is not None:
                is_text = (mimetypes.guess_type(path.name)[0] or "").startswith("text/")
                kind = "1" if path.is_dir() else "0" if is_text else "9"
                self.wfile.write(f"{kind}{path.name}\t/{selector}\t{host}\t{port}\r\n".encode())
        self.wfile.write(b".\r\n")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sockserve.serve(Gopher, *(sys.argv[1:] or ["tcp://127.0.0.1:0"]))
