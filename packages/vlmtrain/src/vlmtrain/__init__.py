"""Fine-tunes, evaluates and exports vision-language models on folders that `vlmdata build` made.

The names here are imported when they are first used: torch and transformers take seconds.
"""

from __future__ import annotations

from typing import Any

__all__ = ["EvalConfig", "ExportConfig", "FitConfig", "evaluate", "export", "fit", "make_tiny"]

_MODULES = {
    "EvalConfig": "vlmtrain.settings",
    "ExportConfig": "vlmtrain.settings",
    "FitConfig": "vlmtrain.config",
    "evaluate": "vlmtrain.evaluation",
    "export": "vlmtrain.exports",
    "fit": "vlmtrain.training",
    "make_tiny": "vlmtrain.tiny",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)
