"""Checks of settings that several sections share."""

from __future__ import annotations

from typing import Any

__all__ = ["not_positive"]


def not_positive(section: Any, *names: str) -> list[str]:
    """What is wrong with values that must be above zero where they are set, a line each.

    Args:
        section: A dataclass of settings.
        *names: Its fields.
    """
    values = {name: getattr(section, name) for name in names}
    # of nan, which YAML can write, nothing is true
    return [
        f"{name} must be positive, not {value!r}"
        for name, value in values.items()
        if value is not None and not value > 0
    ]
