"""``python -m sockserve.client``."""

from __future__ import annotations

import sys

from sockserve.client.command_line import main

if __name__ == "__main__":
    sys.exit(main())
