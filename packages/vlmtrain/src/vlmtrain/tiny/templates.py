"""Chat templates: read from an installed package where one ships the model's own, else written here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from vlmdata.errors import MissingDependencyError

__all__ = ["read_own_template", "read_trl_template"]


def read_own_template(name: str) -> str:
    """Return a chat template of this package; each renders the same text as the hub model's own.

    Args:
        name: File name without its ending, such as `pixtral`.
    """
    return (Path(__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def read_trl_template(name: str) -> str:
    """Return a chat template that trl ships, without importing trl (which takes seconds).

    Args:
        name: File name without its ending, such as `qwen2_5_vl`.

    Raises:
        MissingDependencyError: trl is not installed, or this version of it has no such template.
    """
    spec = importlib.util.find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError("trl is not installed: pip install 'trl<=1.15.0'")
    path = Path(spec.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja"
    if not path.is_file():
        raise MissingDependencyError(f"the installed trl has no chat template {name!r}: pip install 'trl==1.15.0'")
    return path.read_text(encoding="utf-8")
