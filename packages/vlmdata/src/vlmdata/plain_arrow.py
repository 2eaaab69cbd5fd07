"""Arrow without pandas, which takes longer to import than all of this package, and which nothing in it needs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import pyarrow as pa

__all__ = ["leave_pandas_out"]


def leave_pandas_out() -> None:
    """Let Arrow look for pandas, which it does by itself at its first conversion, while there is none to be found.

    It looks again when something is to be converted to pandas, so that no other part of the process lacks anything.
    """
    if "pandas" in sys.modules:
        return
    hidden = _Hidden()
    sys.meta_path.insert(0, hidden)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(hidden)


class _Hidden(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is left out", name=name)
        return None
