"""`python -m vlmdata`."""

from __future__ import annotations

import sys

from vlmdata.cli import main

# worker processes import this module under another name and must not start a second program
if __name__ == "__main__":
    sys.exit(main())
