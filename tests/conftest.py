"""Before any library is loaded: none reports a test to its makers (for the commands, see `vlmtrain.quiet`)."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
