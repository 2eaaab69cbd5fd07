"""A small built folder and a tiny model, made once a session: pictures of one colour, and the question which."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlmdata.manifest import Counts, Manifest, write_manifest
from vlmdata.schema import Row
from vlmdata.shard_writer import SplitWriter, write_set_files

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (245, 245, 245)}


def encode_picture(colour: tuple[int, int, int], width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def make_row(index: int, *, turns: int = 1, images: int = 1) -> Row:
    """One conversation about pictures of one colour; sizes and colours follow from the index."""
    rng = random.Random(index)
    name = rng.choice(sorted(COLOURS))
    sizes = [rng.choice([(56, 56), (84, 56), (56, 84)]) for _ in range(images)]
    messages: list[Any] = []
    for turn in range(turns):
        content = [{"type": "text", "text": "Which colour is this?" if turn == 0 else "And in one word?"}]
        if turn == 0:
            content = [{"type": "image", "text": None}] * images + content
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": name}]})
    info: Any = [
        {
            "original_width": width,
            "original_height": height,
            "width": width,
            "height": height,
            "format": "PNG",
            "action": "stored",
            "pixel_hash": f"{index:032x}",
            "phash": f"{index:064x}",
        }
        for width, height in sizes
    ]
    return {
        "id": f"row-{index}",
        "messages": messages,
        "images": [{"bytes": encode_picture(COLOURS[name], *size), "path": None} for size in sizes],
        "references": [name],
        "objects": None,
        "image_info": info,
        "meta": json.dumps({}),
        "source": f"made:{index}",
    }


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


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built folder of 24 training and 6 val rows, some of several turns or pictures."""
    train = [make_row(i, turns=1 + (i % 5 == 0), images=1 + (i % 7 == 0)) for i in range(24)]
    return write_folder(tmp_path_factory.mktemp("colours"), {"train": train, "val": [make_row(100 + i) for i in range(6)]})


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL."""
    from vlmtrain.tiny import make_tiny

    return make_tiny("qwen2.5-vl", tmp_path_factory.mktemp("tiny") / "qwen2.5-vl", hidden_size=64, layers=2)
