"""What the fork server imports and does once, so that each worker process starts with it done."""

from __future__ import annotations

import gc

from PIL import Image

import vlmdata.stage.work  # noqa: F401  (what workers run)
from vlmdata.plain_arrow import leave_pandas_out

leave_pandas_out()
# Pillow looks for its plugins at its first image
Image.init()
# What is imported stays: workers need not look through it for garbage, and so share its memory.
gc.collect()
gc.freeze()
