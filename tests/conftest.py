"""Loaded before any library: none of them tells its makers of a test (for the commands, `vlmtrain.quiet` has it so)."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
