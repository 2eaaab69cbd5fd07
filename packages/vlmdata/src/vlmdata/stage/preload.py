"""What the fork server imports and does once, so that each worker process starts with it done."""

from __future__ import annotations

import gc

import pyarrow as pa
from PIL import Image

import vlmdata.stage.work  # noqa: F401  (what workers run)

# Arrow imports pandas at its first conversion, where it is installed; Pillow looks for its plugins at its first image.
pa.array([0])
Image.init()
# What is imported stays: workers need not look through it for garbage, and so share its memory.
gc.collect()
gc.freeze()
