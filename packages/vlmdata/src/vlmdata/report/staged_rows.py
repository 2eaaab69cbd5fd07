"""Rows of a build that is not over: any row that was prepared, whether it is kept or dropped as a duplicate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlmdata.pages.html import Child, Html, cut, tag
from vlmdata.pages.pictures import show_stored
from vlmdata.stage import StagedFiles, StagedSet, open_staged, take_in

__all__ = ["StagedRows", "show_row"]

_TEXT_CHARS = 160
_SIDE_PX = 200


class StagedRows:
    """Reads rows by their place among all prepared rows.

    Args:
        folder: of the staged partitions.
        staged: what is known of them.
    """

    def __init__(self, folder: Path, staged: StagedSet) -> None:
        self._folder = folder
        self._staged = staged

    def read(self, place: int) -> dict[str, Any]:
        """Return one row, with all columns."""
        partition = int(np.searchsorted(self._staged.first_row, place, side="right")) - 1
        at = place - int(self._staged.first_row[partition])
        number = self._staged.partitions[partition].number
        for batch in open_staged(StagedFiles(self._folder, number)):
            if at < batch.num_rows:
                return dict(take_in(batch.slice(at, 1)).to_pylist()[0])
            at -= batch.num_rows
        raise IndexError(f"no staged row {place}")


def show_row(
    row: Mapping[str, Any], remark: Child, *, kind: str | None = None, with_prompt: bool = True, position: int = 0
) -> Html:
    """Return one image of a row, small, with what it is about.

    Args:
        row: with all columns.
        remark: above the row's name, in bold.
        kind: CSS class of the figure.
        with_prompt: whether to show what is asked, and not only what is answered.
        position: which of the row's images is shown.
    """
    texts = [part["text"] for message in row["messages"] for part in message["content"] if part["text"] is not None]
    words = " → ".join(texts if with_prompt else texts[-1:])
    more = f", and {len(row['images']) - 1} more images" if len(row["images"]) > 1 else ""
    lines: list[Child] = [tag("b", remark), tag("span", cut(words, _TEXT_CHARS), class_="text")]
    if not row["images"]:
        return tag("figure", lines, tag("figcaption", row["source"]), class_=kind)
    info = row["image_info"][position]
    size = f"{info['original_width']}x{info['original_height']} px{more}"
    picture = show_stored(
        row["images"][position], info, lines, tag("br"), f"{size} · {row['source']}", side_px=_SIDE_PX
    )
    return picture if kind is None else tag("div", picture, class_=kind)
