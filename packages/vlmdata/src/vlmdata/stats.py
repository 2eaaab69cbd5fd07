"""Figures of a built folder, taken from its columns; image bytes are never read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmdata.shards import BuiltFolder, Split

__all__ = ["STATS_NAME", "compute_stats", "format_stats", "read_rejections"]

STATS_NAME = "stats.json"
_SIDE_STEP_PX = 100


def compute_stats(folder: BuiltFolder) -> dict[str, Any]:
    """Return counts and histograms of a built folder, as they stand in stats.json."""
    counts = folder.manifest.counts
    return {
        "counts": {"read": counts.read, "kept": counts.kept, "rejected": dict(counts.rejected)},
        "splits": {name: _compute_split(split) for name, split in folder.splits.items()},
    }


def _compute_split(split: Split) -> dict[str, Any]:
    formats: Counter[str] = Counter()
    actions: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    per_row: Counter[int] = Counter()
    turns: Counter[int] = Counter()
    text_chars: list[int] = []
    salvaged = pixels = 0
    for row in split.iterate(["messages", "image_info"]):
        per_row[len(row["image_info"])] += 1
        turns[sum(message["role"] == "assistant" for message in row["messages"])] += 1
        text_chars.append(sum(len(part["text"] or "") for m in row["messages"] for part in m["content"]))
        for info in row["image_info"]:
            formats[info["format"]] += 1
            actions[info["action"]] += 1
            sizes[_bucket(max(info["width"], info["height"]))] += 1
            salvaged += info["salvaged"]
            pixels += info["width"] * info["height"]
    images = sum(formats.values())
    text_chars.sort()
    return {
        "rows": split.num_rows,
        "bytes": sum(path.stat().st_size for path in split.paths),
        "images": images,
        "images_per_row": _ordered(per_row),
        "answers_per_row": _ordered(turns),
        "formats": _ordered(formats),
        "actions": _ordered(actions),
        "salvaged": salvaged,
        "mean_pixels": round(pixels / images) if images else 0,
        "longest_side_px": dict(sorted(sizes.items(), key=lambda item: int(item[0].split("-")[0]))),
        "text_chars": {
            "min": text_chars[0] if text_chars else 0,
            "median": text_chars[len(text_chars) // 2] if text_chars else 0,
            "max": text_chars[-1] if text_chars else 0,
        },
    }


def _bucket(side_px: int) -> str:
    start = side_px // _SIDE_STEP_PX * _SIDE_STEP_PX
    return f"{start}-{start + _SIDE_STEP_PX - 1}"


def _ordered(counter: Counter[Any]) -> dict[str, int]:
    return {str(key): counter[key] for key in sorted(counter)}


def format_stats(stats: Mapping[str, Any]) -> str:
    """Return the figures as lines of text."""
    counts = stats["counts"]
    lines = [f"read {counts['read']} = kept {counts['kept']} + rejected {sum(counts['rejected'].values())}"]
    lines += [f"  {reason:<24} {count}" for reason, count in sorted(counts["rejected"].items())]
    for name, split in stats["splits"].items():
        lines.append(f"{name}: {split['rows']} rows, {split['images']} images, {split['bytes'] / 1e6:.1f} MB")
        for title in ("images_per_row", "answers_per_row", "formats", "actions", "longest_side_px", "text_chars"):
            values = ", ".join(f"{key}: {value}" for key, value in split[title].items())
            lines.append(f"  {title:<16} {values or 'none'}")
    return "\n".join(lines)


def read_rejections(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of rejected.jsonl."""
    with (folder / "rejected.jsonl").open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
