"""Figures of a built folder, as they stand in stats.json and as `vlmdata stats` prints them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmdata.figures import SplitFigures, count_bins, count_split, find_quantile
from vlmdata.shards import BuiltFolder

__all__ = ["STATS_NAME", "compute_stats", "count_splits", "format_stats", "read_rejections"]

STATS_NAME = "stats.json"
_SIDE_STEP_PX = 100
_SHOWN_ANSWERS = 10


def count_splits(folder: BuiltFolder) -> dict[str, SplitFigures]:
    """Return the counts of every split."""
    return {name: count_split(split) for name, split in folder.splits.items()}


def compute_stats(folder: BuiltFolder, splits: Mapping[str, SplitFigures] | None = None) -> dict[str, Any]:
    """Return counts and histograms of a built folder, as they stand in stats.json.

    Args:
        folder: what is described.
        splits: from `count_splits`, where they are at hand.
    """
    counts = folder.manifest.counts
    figures = count_splits(folder) if splits is None else splits
    return {
        "counts": {"read": counts.read, "kept": counts.kept, "rejected": dict(counts.rejected)},
        "splits": {name: _describe_split(split) for name, split in figures.items()},
    }


def _describe_split(figures: SplitFigures) -> dict[str, Any]:
    return {
        "rows": figures.rows,
        "bytes": figures.bytes,
        "images": figures.images,
        "images_per_row": _ordered(figures.images_per_row),
        "answers_per_row": _ordered(figures.answers_per_row),
        "formats": _ordered(figures.formats),
        "actions": _ordered(figures.actions),
        "salvaged": figures.salvaged,
        "mean_pixels": figures.mean_pixels,
        "longest_side_px": _bucket_sides(figures.sides(max)),
        "shortest_side_px": _bucket_sides(figures.sides(min)),
        "text_chars": _summarize(figures.text_chars),
        "text_chars_bins": {f"{low}-{high}": count for low, high, count in count_bins(figures.text_chars)},
        "image_tokens": {family: _describe_tokens(counts) for family, counts in figures.image_tokens.items()},
        "answers": {
            "distinct": len(figures.answers) if figures.has_all_answers else None,
            "most_common": dict(figures.answers.most_common(_SHOWN_ANSWERS)),
        },
    }


def _describe_tokens(counts: Mapping[int | None, int]) -> dict[str, int]:
    tokens = Counter({value: count for value, count in counts.items() if value is not None})
    total = sum(value * count for value, count in tokens.items())
    return {**_summarize(tokens), "total": total, "refused_rows": counts.get(None, 0)}


def _summarize(counter: Mapping[int, int]) -> dict[str, int]:
    return {"min": min(counter, default=0), "median": find_quantile(counter, 0.5), "max": max(counter, default=0)}


def _bucket_sides(sides: Mapping[int, int]) -> dict[str, int]:
    buckets: Counter[int] = Counter()
    for side_px, count in sides.items():
        buckets[side_px // _SIDE_STEP_PX * _SIDE_STEP_PX] += count
    return {f"{start}-{start + _SIDE_STEP_PX - 1}": buckets[start] for start in sorted(buckets)}


def _ordered(counter: Counter[Any]) -> dict[str, int]:
    return {str(key): counter[key] for key in sorted(counter)}


def format_stats(stats: Mapping[str, Any]) -> str:
    """Return the figures as lines of text."""
    counts = stats["counts"]
    lines = [f"read {counts['read']} = kept {counts['kept']} + rejected {sum(counts['rejected'].values())}"]
    lines += [f"  {reason:<24} {count}" for reason, count in sorted(counts["rejected"].items())]
    for name, split in stats["splits"].items():
        lines.append(f"{name}: {split['rows']} rows, {split['images']} images, {split['bytes'] / 1e6:.1f} MB")
        for title in (
            "images_per_row",
            "answers_per_row",
            "formats",
            "actions",
            "longest_side_px",
            "shortest_side_px",
            "text_chars",
        ):
            values = ", ".join(f"{key}: {value}" for key, value in split[title].items())
            lines.append(f"  {title:<18} {values or 'none'}")
        lines += _format_answers(split["answers"])
        if split["images"]:
            lines += _format_tokens(split["image_tokens"])
    return "\n".join(lines)


def _format_answers(answers: Mapping[str, Any]) -> list[str]:
    distinct = answers["distinct"]
    lines = [f"  {'answers':<18} {'very many' if distinct is None else distinct} different"]
    # a text of the data must not reach the terminal with control characters in it
    lines += [f"    {count:>8}  {_one_line(text)}" for text, count in answers["most_common"].items() if count > 1]
    return lines


def _one_line(text: str) -> str:
    plain = "".join(character if character.isprintable() else " " for character in text)
    return plain if len(plain) <= 80 else plain[:79] + "…"


def _format_tokens(families: Mapping[str, Mapping[str, int]]) -> list[str]:
    lines = [f"  {'image tokens a row':<18} {'min':>8} {'median':>8} {'max':>8} {'in all':>12}"]
    for family, tokens in families.items():
        figures = f"{tokens['min']:>8} {tokens['median']:>8} {tokens['max']:>8} {tokens['total']:>12}"
        refused = f"  refuses the images of {tokens['refused_rows']} rows" if tokens["refused_rows"] else ""
        lines.append(f"    {family:<16} {figures}{refused}")
    return lines


def read_rejections(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of rejected.jsonl."""
    with (folder / "rejected.jsonl").open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
