"""Tiny randomly initialised models of each family's real architecture, made offline, for trying a pipeline out.

    families → qwen │ … → vocabulary, templates → corpus

A tiny model has the real classes, module names, processor, special tokens and chat template of its family; only the
sizes and the weights differ. Heavy imports wait until `make_tiny` is called.
"""

from __future__ import annotations

from vlmtrain.tiny.maker import TINY_FAMILIES, make_tiny
from vlmtrain.tiny.options import TinyOptions

__all__ = ["TINY_FAMILIES", "TinyOptions", "make_tiny"]
