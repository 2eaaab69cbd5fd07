"""Column-wise counts against loops over rows, and the bars of histograms."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlmdata import BuildConfig, build_folder, open_folder
from vlmdata.families import FAMILIES
from vlmdata.figures import count_bins, count_split, find_quantile, merge_figures
from vlmdata.stats import compute_stats, format_stats


def build(tmp_path: Path) -> Path:
    for i in range(5):
        Image.linear_gradient("L").resize((40 + 60 * i, 80)).save(tmp_path / f"{i}.png")
    rows: list[dict[str, object]] = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "<image>" * count + "How many?"},
                {"role": "assistant", "content": "many" if count else "none"},
                *([{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yé\ns"}] * (count % 2)),
            ],
            "images": [f"{(count + i) % 5}.png" for i in range(count)],
        }
        for count in (0, 1, 2, 3, 1, 0, 5)
    ]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "inputs": [str(tmp_path / "set.jsonl")],
        "out": tmp_path / "out",
        "workers": 0,
        "min_side": 16,
        "dedup": "none",
        "split": "val=0.4",
    }
    build_folder(BuildConfig.from_values(values))
    return tmp_path / "out"


def test_counts_are_those_of_a_loop_over_rows(tmp_path: Path) -> None:
    folder = open_folder(build(tmp_path))
    assert folder.manifest.counts.kept == 7
    figures = {name: count_split(split) for name, split in folder.splits.items()}
    for name, split in folder.splits.items():
        rows = list(split)
        sizes = [[(info["width"], info["height"]) for info in row["image_info"]] for row in rows]
        texts = [[[part["text"] or "" for part in m["content"]] for m in row["messages"]] for row in rows]
        found = figures[name]
        assert found.rows == len(rows)
        assert found.sizes == Counter(size for row in sizes for size in row)
        assert found.images_per_row == Counter(map(len, sizes))
        assert found.text_chars == Counter(len("".join("".join(turn) for turn in row)) for row in texts)
        assert found.answers == Counter("".join(row[-1]) for row in texts)
        assert found.answers_per_row == Counter(sum(m["role"] == "assistant" for m in row["messages"]) for row in rows)
        assert found.actions == Counter(info["action"] for row in rows for info in row["image_info"])
        for family, counts in found.image_tokens.items():
            grid = FAMILIES[family].grid
            assert +counts == Counter(sum(grid.image_tokens(*size) for size in row) for row in sizes if row)
    whole = merge_figures(figures.values())
    assert (whole.rows, whole.images) == (7, 12)
    assert whole.answers == {"many": 2, "none": 2, "Yé\ns": 3} or whole.answers.total() == 7


def test_stats_name_tokens_and_answers(tmp_path: Path) -> None:
    folder = open_folder(build(tmp_path))
    stats = compute_stats(folder)
    assert stats == json.loads((folder.path / "stats.json").read_text())
    assert sum(split["answers"]["distinct"] for split in stats["splits"].values()) >= 3
    text = format_stats(stats)
    assert "image tokens a row" in text
    assert "qwen2.5-vl" in text
    assert "\n    " + " " * 7 + "Yé s" not in text


def test_shapes_that_a_processor_refuses_are_counted() -> None:
    from vlmdata.figures import SplitFigures, _add_tokens

    figures = SplitFigures()
    _add_tokens(figures, [(6000, 20)], 3)
    assert figures.image_tokens["qwen2.5-vl"] == {None: 3}
    assert None not in figures.image_tokens["gemma3"]


@given(st.dictionaries(st.integers(0, 10**7), st.integers(1, 1000), max_size=50))
def test_bins_hold_every_value_once(counter: dict[int, int]) -> None:
    bins = count_bins(counter)
    assert len(bins) <= 26
    assert sum(count for _, _, count in bins) == sum(counter.values())
    assert all(before[1] + 1 == after[0] for before, after in itertools.pairwise(bins))
    for low, high, count in bins:
        assert count == sum(each for value, each in counter.items() if low <= value <= high)
    if bins:
        assert bins[0][2] > 0
        assert bins[-1][2] > 0


@given(st.lists(st.integers(0, 50), min_size=1), st.sampled_from([0.0, 0.25, 0.5, 0.95, 1.0]))
def test_quantiles(values: list[int], part: float) -> None:
    found = find_quantile(Counter(values), part)
    assert sum(value <= found for value in values) >= part * len(values)
    assert sum(value < found for value in values) < max(part * len(values), 1e-9)
