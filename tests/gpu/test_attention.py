"""torch's variable-length kernel on a GPU: no further from float32 than the loop that it stands for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_one_call_is_as_near_to_float32_as_the_loop() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "attention_parity.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for case, shape in script.CASES.items():
        errors = script.errors_against_float32(*shape)
        for loop, one_call in zip(errors["loop"], errors["one call"], strict=True):
            assert one_call <= 1.1 * loop < 0.02, case
