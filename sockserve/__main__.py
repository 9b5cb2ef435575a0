"""``python -m sockserve``: the command ``sockserve``."""

from __future__ import annotations

import sys

from sockserve.run.command_line import main

if __name__ == "__main__":
    sys.exit(main())
