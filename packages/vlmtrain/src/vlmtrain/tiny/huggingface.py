"""transformers, untyped: its annotations are partial and its configs take keywords that their signatures lack."""

from __future__ import annotations

from typing import Any

import transformers as _transformers

__all__ = ["transformers"]

transformers: Any = _transformers
