"""Rows that a model's family cannot represent, told from their messages before anything is rendered."""

from __future__ import annotations

import dataclasses
from typing import Any

from vlmdata.errors import DataError
from vlmdata.families import Family, row_problem
from vlmtrain.wording import list_some

__all__ = ["FamilyRows"]


class FamilyRows:
    """Collects the rows of a split that a family cannot represent, by reason.

    Args:
        family: The model's family, if it is a known one; without it, every row passes.
    """

    def __init__(self, family: Family | None) -> None:
        # Whether a system turn may stand beside an image differs between a family's templates: the one in hand refuses
        # it by itself.
        self._family = dataclasses.replace(family, system_with_images=True) if family else None
        self._rows: dict[str, list[int]] = {}

    def problem(self, messages: list[Any]) -> str | None:
        """Why the family cannot represent a row, or None.

        Args:
            messages: The row's turns, `{role, content: [{type, text}]}`.
        """
        return row_problem(self._family, messages) if self._family else None

    def add(self, row: int, problem: str) -> None:
        """Remembers a row, by its index in the split, and what is wrong with it."""
        self._rows.setdefault(problem, []).append(row)

    def look_at(self, row: int, messages: list[Any]) -> None:
        """Looks at one row and remembers its problem, if it has one."""
        if problem := self.problem(messages):
            self.add(row, problem)

    def require_none(self, split: str) -> None:
        """Refuses the split if any row was found.

        Raises:
            DataError: With each reason, how many rows it holds for, and some of them.
        """
        if not self._rows:
            return
        reasons = []
        for problem, rows in self._rows.items():
            reasons.append(f"{len(rows)} rows (rows {list_some(rows)}) have {problem}")
        raise DataError(
            f"{split}: {'; '.join(reasons)}; build the set so that images come first, or take another model"
        )
