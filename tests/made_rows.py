"""Rows and folders for tests of training: pictures of one colour, and which it is."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlmdata.manifest import Counts, Manifest, write_manifest
from vlmdata.schema import Row
from vlmdata.set_files import write_set_files
from vlmdata.shard_writer import SplitWriter

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (245, 245, 245)}


def encode_picture(colour: tuple[int, int, int], width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def turn(role: str, *parts: str | None) -> Any:
    """A message; None stands for a picture."""
    content = [{"type": "image", "text": None} if part is None else text(part) for part in parts]
    return {"role": role, "content": content}


def make_conversation(
    index: int, messages: Sequence[Any], sizes: Sequence[tuple[int, int]] = (), colour: str = "red"
) -> Row:
    """A row of a built folder with pictures of one colour."""
    info: Any = [
        {
            "original_width": width,
            "original_height": height,
            "width": width,
            "height": height,
            "format": "PNG",
            "action": "stored",
            "window": None,
            "frame": None,
            "salvaged": False,
            "note": None,
            "pixel_hash": f"{index:032x}",
            "phash": f"{index:064x}",
        }
        for width, height in sizes
    ]
    return {
        "id": f"row-{index}",
        "messages": list(messages),
        "images": [{"bytes": encode_picture(COLOURS[colour], *size), "path": None} for size in sizes],
        "references": ["".join(part["text"] for part in messages[-1]["content"])],
        "objects": None,
        "image_info": info,
        "meta": json.dumps({}),
        "source": f"made:{index}",
    }


def make_row(index: int, *, turns: int = 1, images: int = 1) -> Row:
    """One conversation about pictures of one colour; sizes and colours follow from the index."""
    rng = random.Random(index)
    name = rng.choice(sorted(COLOURS))
    sizes = [rng.choice([(56, 56), (84, 56), (56, 84)]) for _ in range(images)]
    messages = [turn("user", *[None] * images, "Which colour is this?"), turn("assistant", name)]
    messages += [turn("user", "And in one word?"), turn("assistant", name)] * (turns - 1)
    return make_conversation(index, messages, sizes, name)


def write_folder(folder: Path, splits: dict[str, list[Row]]) -> Path:
    """A built folder with these rows, as `vlmdata build` leaves it."""
    entries = {}
    for name, rows in splits.items():
        with SplitWriter(folder, name) as writer:
            writer.write_rows(rows)
            entries[name] = writer.close()
    write_set_files(folder, entries)
    kept = sum(entry.rows for entry in entries.values())
    write_manifest(folder, Manifest(splits=entries, counts=Counts(read=kept, kept=kept), fingerprint="made"))
    return folder
