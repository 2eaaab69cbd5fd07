"""An HTML page of rows of a built folder, with every image as it is stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vlmdata.disk import explain_disk_errors, whole_file
from vlmdata.locations import is_remote, locator
from vlmdata.pages.frame import page_pieces
from vlmdata.pages.html import Html, tag
from vlmdata.report.conversations import render_row, sample_rows
from vlmdata.shards import Split, open_folder

__all__ = ["name_page", "write_preview"]


def name_page(folder: str | Path) -> Path:
    """Return where the page of a folder goes: beside it, or for a remote one into the working directory."""
    if is_remote(folder):
        return Path(f"{PurePosixPath(locator(folder)).name}.html")
    path = Path(locator(folder))
    return path.with_name(f"{path.resolve().name}.html")


def write_preview(folder: str | Path, target: Path, *, split: str, rows: int, seed: int | None) -> int:
    """Write a page with rows of a built folder, whole or not at all, and return how many it shows.

    Args:
        folder: the built folder.
        target: the page.
        split: which rows.
        rows: at most so many.
        seed: None for the first rows, else random ones.

    Raises:
        DataError: no such folder or split.
        ResourceError: the page cannot be written.
    """
    chosen = open_folder(folder).split(split)
    indices = list(range(min(rows, len(chosen)))) if seed is None else sample_rows(chosen, rows, seed)
    title = f"{name_page(folder).stem}, {split}: {len(indices)} of {len(chosen):,} rows"
    with (
        explain_disk_errors(target),
        whole_file(target) as part,
        part.open("w", encoding="utf-8", errors="replace") as file,
    ):
        file.writelines(page_pieces(title, _render(title, chosen, indices)))
    return len(indices)


def _render(title: str, split: Split, indices: list[int]) -> Iterator[Html]:
    yield tag("h1", title)
    yield Html('<div class="rows">')
    for index in indices:
        yield render_row(split[index])
    yield Html("</div>")
