"""The peer of the benchmark trains on what vlmtrain trains on: ids, labels and pixels of the notebooks' script."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlmdata.families import FAMILIES

TESTS = Path(__file__).parents[1]
BENCHMARKS = TESTS.parent / "benchmarks"
ROWS = 4
# LLaVA 1.6: the script does not find the marker of its answers. LLaVA 1.5: see the last test.
ALIKE = [family for family in FAMILIES if not family.startswith("llava")]

pytestmark = pytest.mark.slow  # Unsloth starts anew for each family


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with pictures whose sides are multiples of 224 px, which the script's collator leaves as they are."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from full_size import build_set
    finally:
        sys.path.remove(str(BENCHMARKS))
    folder: Path = build_set(tmp_path_factory.mktemp("rows"), rows=ROWS, sizes=[(448, 224), (224, 448)])
    return folder


def collate_both(family: str, data: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same rows as the script's trainer and as vlmtrain's collator have them."""
    import torch
    from safetensors.torch import load_file

    from vlmdata.shards import open_folder
    from vlmtrain.collator import VisionCollator
    from vlmtrain.processors import load_chat_format, load_processor
    from vlmtrain.rows import open_rows
    from vlmtrain.source import find_model
    from vlmtrain.tiny import make_tiny

    model = make_tiny(family, folder / "model", hidden_size=64, layers=2, vision_hidden_size=64, vision_layers=2)
    (folder / "order.json").write_text(json.dumps(list(range(ROWS))), encoding="utf-8")
    parts = ["--instruction-part", FAMILIES[family].instruction_part, "--response-part", FAMILIES[family].response_part]
    options = ["--model", model, "--data", data, "--out", folder / "out.json", "--order", folder / "order.json"]
    options += ["--max-steps", 1, "--batch-size", ROWS, *parts]
    program = [sys.executable, TESTS / "contract" / "recipe_batches.py", folder / "batch.safetensors"]
    command = [str(each) for each in (*program, BENCHMARKS / "notebook_recipe.py", *options)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    source = find_model(str(model))
    chat = load_chat_format(source, load_processor(source))
    chat.processor.tokenizer.padding_side = "right"
    rows = [dict(row) for row in open_rows(open_folder(data).split("train"))]
    return load_file(folder / "batch.safetensors"), VisionCollator(chat, dtype=torch.float32)(rows)


def rows_of(batch: dict[str, Any], name: str) -> list[list[int]]:
    """Each row's values where it is not padding."""
    return [row[mask.bool()].tolist() for row, mask in zip(batch[name], batch["attention_mask"], strict=True)]


@pytest.mark.parametrize("family", ALIKE)
def test_the_script_trains_on_the_same_rows(family: str, data: Path, tmp_path: Path) -> None:
    import torch

    theirs, ours = collate_both(family, data, tmp_path)
    assert rows_of(theirs, "input_ids") == rows_of(ours, "input_ids")
    assert rows_of(theirs, "labels") == rows_of(ours, "labels")
    # of Gemma 3 the script makes 16-bit pixels
    torch.testing.assert_close(theirs["pixel_values"].float(), ours["pixel_values"].float(), rtol=1e-3, atol=1e-3)


def test_the_script_leaves_out_two_tokens_of_llava(data: Path, tmp_path: Path) -> None:
    theirs, ours = collate_both("llava-1.5", data, tmp_path)
    # The one that begins a text, and the one that ends an answer, before the blank that the template puts last: the
    # script trains on that blank, and not on an end.
    assert rows_of(theirs, "input_ids") == [[*row[1:-2], row[-1]] for row in rows_of(ours, "input_ids")]
    for their_labels, our_labels in zip(rows_of(theirs, "labels"), rows_of(ours, "labels"), strict=True):
        assert their_labels[:-1] == our_labels[1:-2]
        assert their_labels[-1] >= 0
        assert our_labels[-2] >= 0 > our_labels[-1]
