"""An HTML page of rows, self-contained and without scripts; every text of the data is escaped."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from vlmdata.shards import Split, open_folder

__all__ = ["render_rows", "write_preview"]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882 }
:root { --user: #2a78d2; --assistant: #2c9a5b; --system: #a86bc9 }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem; max-width: 72rem }
h1 { font-size: 1.3rem } h2 { font-size: .95rem; font-weight: 600; margin: 0 0 .6rem; overflow-wrap: anywhere }
article { border: 1px solid var(--line); border-radius: 8px; padding: 1rem; margin: 1rem 0 }
.turn { border-left: 3px solid var(--line); padding: .1rem 0 .1rem .8rem; margin: .6rem 0 }
.turn.user { border-color: var(--user) } .turn.assistant { border-color: var(--assistant) }
.turn.system { border-color: var(--system) }
.role { font-size: .75rem; text-transform: uppercase; letter-spacing: .06em; opacity: .7 }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 }
figure { margin: .3rem 0; display: inline-block; vertical-align: top; margin-right: .8rem }
figure img { max-width: 22rem; max-height: 18rem; border-radius: 4px; background: var(--soft); display: block }
figcaption, .more { font-size: .78rem; opacity: .75; overflow-wrap: anywhere }
"""


def write_preview(folder: Path, target: Path, *, split: str, rows: int, seed: int | None) -> int:
    """Write a page with rows of a built folder, and return how many it shows.

    Args:
        folder: the built folder.
        target: the page.
        split: which rows.
        rows: at most so many.
        seed: None for the first rows, else random ones.

    Raises:
        DataError: no such folder or split.
    """
    chosen = open_folder(folder).split(split)
    indices = list(range(min(rows, len(chosen))))
    if seed is not None:
        indices = sorted(random.Random(seed).sample(range(len(chosen)), len(indices)))
    with target.open("w", encoding="utf-8") as file:
        file.writelines(render_rows(folder.name, chosen, indices))
    return len(indices)


def render_rows(title: str, split: Split, indices: list[int]) -> Iterator[str]:
    """Yield the page piece by piece, so that it never stands in memory as a whole."""
    heading = escape(f"{title}, {split.name}: {len(indices)} of {len(split)} rows")
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
    # nothing of the page may run or be fetched, whatever the data holds
    yield '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    yield "style-src 'unsafe-inline'\">\n"
    yield f"<title>{heading}</title><style>{_STYLE}</style></head><body>\n<h1>{heading}</h1>\n"
    for index in indices:
        yield _render_row(split[index])
    yield "</body></html>\n"


def _render_row(row: Mapping[str, Any]) -> str:
    images = iter(zip(row["images"], row["image_info"], strict=True))
    turns = []
    for message in row["messages"]:
        parts = [
            _render_image(*next(images)) if part["type"] == "image" else f'<p class="text">{escape(part["text"])}</p>'
            for part in message["content"]
        ]
        role = escape(message["role"])
        turns.append(f'<div class="turn {role}"><div class="role">{role}</div>{"".join(parts)}</div>')
    more = []
    if len(row["references"]) > 1:
        more.append("accepted answers: " + " · ".join(map(escape, row["references"])))
    if row["meta"] not in ("", "{}"):
        more.append(escape(row["meta"]))
    more.append(escape(row["source"]))
    notes = "".join(f'<div class="more">{line}</div>' for line in more)
    return f"<article><h2>{escape(row['id'])}</h2>{''.join(turns)}{notes}</article>\n"


def _render_image(stored: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    data = base64.b64encode(stored["bytes"]).decode()
    size = f"{info['width']}x{info['height']}"
    if (info["width"], info["height"]) != (info["original_width"], info["original_height"]):
        size = f"{info['original_width']}x{info['original_height']} → {size}"
    caption = f"{size} px, {info['format']}, {info['action']}"
    source = f"data:image/{info['format'].lower()};base64,{data}"
    name = escape(stored["path"] or "")
    return f'<figure><img alt="{name}" src="{source}"><figcaption>{name} {escape(caption)}</figcaption></figure>'
