"""Unsloth against the reference on a GPU: same adapter, same rows, losses within 1 %, exports that are the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from made_rows import make_row, write_folder

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("precision", ["16bit", "4bit"])
def test_first_losses_agree_and_exports_are_the_model(precision: str, tmp_path: Path) -> None:
    import backends as script

    data = write_folder(
        tmp_path / "data",
        {
            "train": [make_row(i, turns=1 + (i % 5 == 0)) for i in range(96)],
            "val": [make_row(1000 + i) for i in range(16)],
        },
    )
    # each command takes most of a minute there; test_exports.py has the other ones
    [result] = script.compare_backends(
        data, tmp_path / "out", family="qwen2.5-vl", steps=10, precisions=[precision], all_commands=False
    )
    assert result["largest_difference"] <= script.LOSS_TOLERANCE
    for backend in ("unsloth", "transformers"):
        assert result[backend]["parity"]["holds"]
        assert result[backend]["merged_weights"]["changed_layers"] > 0
