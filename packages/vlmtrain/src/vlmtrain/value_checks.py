"""Checks of settings that several sections share."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["not_positive", "not_seed", "split_names"]


def not_positive(section: Any, *names: str) -> list[str]:
    """What is wrong with values that must be above zero where they are set, a line each.

    Args:
        section: A dataclass of settings.
        *names: Its fields.
    """
    values = {name: getattr(section, name) for name in names}
    # of nan, which YAML can write, nothing is true; no setting means anything at inf
    return [
        f"{name} must be positive, not {value!r}"
        for name, value in values.items()
        if value is not None and not 0 < value < math.inf
    ]


def not_seed(section: Any) -> list[str]:
    """What is wrong with a section's `seed`: numpy takes 32 bits, and would say so after the set is read."""
    return [] if 0 <= section.seed < 2**32 else [f"seed must lie in [0, {2**32 - 1}], not {section.seed!r}"]


def split_names(values: tuple[str, ...]) -> tuple[str, ...]:
    """Names given one by one or with commas between, each once.

    Args:
        values: Of an option that may be given again.
    """
    names = (name.strip() for value in values for name in value.split(","))
    return tuple(dict.fromkeys(name for name in names if name))
