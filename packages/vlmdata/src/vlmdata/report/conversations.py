"""Rows as chats: what is said in bubbles, images where the model gets them, and a seeded sample of rows."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlmdata.pages.html import Html, cut, tag
from vlmdata.pages.pictures import show_stored
from vlmdata.shards import BuiltFolder, Split

__all__ = ["render_row", "render_sample", "render_text", "sample_rows"]


def render_row(
    row: Mapping[str, Any], *, side_px: int | None = None, most_chars: int | None = None, most_images: int | None = None
) -> Html:
    """Return a row as an article.

    Args:
        row: with all columns.
        side_px: of the copies that stand for images that are not small; None shows what is stored.
        most_chars: of each text that are shown.
        most_images: that are shown; of others only what is known of them.
    """
    images = iter(zip(row["images"], row["image_info"], strict=True))
    shown = 0
    turns: list[Html] = []
    for message in row["messages"]:
        parts: list[Html] = []
        for part in message["content"]:
            if part["type"] != "image":
                parts.append(render_text(part["text"], most_chars))
                continue
            stored, info = next(images)
            caption = [stored["path"], tag("br") if stored["path"] else None, describe_image(info)]
            shown += 1
            if most_images is None or shown <= most_images:
                parts.append(show_stored(stored, info, caption, side_px=side_px))
            else:
                parts.append(tag("p", "image ", caption, class_="soft"))
        role = message["role"]
        turns.append(tag("div", tag("div", role, class_="role"), parts, class_=f"turn {role}"))
    notes = [tag("p", note, class_="soft") for note in _notes(row, most_chars)]
    return tag("article", tag("h3", row["id"]), turns, notes)


def render_text(text: str, most_chars: int | None = None) -> Html:
    """Return a text of the data with its line breaks."""
    return tag("p", text if most_chars is None else cut(text, most_chars), class_="text")


def describe_image(info: Mapping[str, Any]) -> str:
    """Return size, format and what was done to an image."""
    size = f"{info['width']}x{info['height']}"
    if (info["width"], info["height"]) != (info["original_width"], info["original_height"]):
        size = f"{info['original_width']}x{info['original_height']} → {size}"
    remarks = [f"{size} px", info["format"], info["action"]]
    if info["salvaged"]:
        remarks.append("file ended too early")
    if info["window"]:
        remarks.append(f"values {info['window']} became black to white")
    return ", ".join(remarks)


def _notes(row: Mapping[str, Any], most_chars: int | None) -> Iterator[str]:
    if len(row["references"]) > 1:
        yield _cut("accepted answers: " + " · ".join(row["references"]), most_chars)
    if row["objects"] is not None:
        yield f"{len(row['objects']['bbox'])} boxes"
    if row["meta"] not in ("", "{}"):
        yield _cut(row["meta"], most_chars)
    if row["source"] != row["id"]:
        yield row["source"]


def _cut(text: str, most_chars: int | None) -> str:
    return text if most_chars is None else cut(text, most_chars)


def sample_rows(split: Split, count: int, seed: int) -> list[int]:
    """Return the indices of random rows, ascending; the same ones for the same seed."""
    return sorted(random.Random(f"{seed} {split.name}").sample(range(len(split)), min(count, len(split))))


def render_sample(folder: BuiltFolder, *, rows: int, seed: int) -> Iterator[Html]:
    """Yield rows of every split, most of the largest, with a heading for each split.

    Args:
        folder: what they are drawn from.
        rows: about how many in all.
        seed: of the draw.
    """
    for split in _by_size(list(folder.splits.values())):
        share = max(2, round(rows * len(split) / max(1, folder.manifest.counts.kept)))
        chosen = sample_rows(split, share, seed)
        articles = [render_row(split[i], side_px=320, most_chars=1500, most_images=3) for i in chosen]
        yield tag("h3", f"{split.name}: {len(chosen)} of {len(split):,} rows")
        yield tag("div", articles, class_="rows")


def _by_size(splits: Sequence[Split]) -> list[Split]:
    return sorted(splits, key=lambda split: -len(split))
